"""Makes nlft's pathways known to PEFT, which has an enum of its methods but no entry points."""

from __future__ import annotations

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from nlft.errors import NlftError


def peft_type(name: str) -> PeftType:
    """The member of PEFT's enum for a method, added if it is not there.

    Args:
        name: lower case, such as `nlft_sparse_memory`.
    """
    value = name.upper()
    if value in PeftType.__members__:
        return PeftType[value]
    member = str.__new__(PeftType, value)
    order = len(PeftType.__members__)
    attributes = {"_name_": value, "_value_": value, "__objclass__": PeftType, "_sort_order_": order}
    for attribute, content in attributes.items():
        setattr(member, attribute, content)
    # An Enum class refuses new attributes; its metaclass's parent does not.
    type.__setattr__(PeftType, value, member)
    PeftType._member_names_.append(value)
    PeftType._member_map_[value] = member
    PeftType._value2member_map_[value] = member
    if hasattr(PeftType, "_hashable_values_"):  # CPython 3.13 and later
        getattr(PeftType, "_hashable_values_").append(value)  # noqa: B009
    return member


def register_pathways() -> None:
    """Registers every pathway with PEFT; calling it again changes nothing.

    Raises:
        NlftError: another package has taken the name.
    """
    from nlft.pathways.cms.config import CmsPeftConfig
    from nlft.pathways.cms.model import CmsModel
    from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
    from nlft.pathways.gated_lora.model import GatedLoraModel
    from nlft.pathways.hope.config import HopePeftConfig
    from nlft.pathways.hope.model import HopeModel
    from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
    from nlft.pathways.sparse_memory.model import SparseMemoryModel

    for name, config, model in (
        ("nlft_sparse_memory", SparseMemoryPeftConfig, SparseMemoryModel),
        ("nlft_gated_lora", GatedLoraPeftConfig, GatedLoraModel),
        ("nlft_cms", CmsPeftConfig, CmsModel),
        ("nlft_hope", HopePeftConfig, HopeModel),
    ):
        known = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type(name))
        if known is None:
            # One prefix for all, so that transformers' `load_adapter` finds their gates too.
            register_peft_method(name=name, config_cls=config, model_cls=model, prefix=model.prefix)
        elif known is not config:
            raise NlftError(
                f"PEFT already has a method {name!r}, from {known.__module__}.",
                "Remove the package that adds it.",
            )
