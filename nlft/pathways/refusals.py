"""What PEFT's interface offers and no pathway can do, refused with a sentence instead of done in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from nlft.errors import NlftError
from nlft.pathways.base_sample import plain_name
from nlft.pathways.header import PREFIX
from nlft.pathways.stranger import name_modules
from nlft.pathways.task import TaskPeftConfig

ORDER = (
    "Load nlft's adapter onto the base itself. A LoRA can be put around it afterwards, under a name of its own, or be"
    " merged into the base before."
)


class Configs(dict[str, PeftConfig]):
    """Configs by adapter. PEFT shares them with every method that is put around a model, and would let another method
    take an adapter's name, whose config were then lost."""

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        held = self.get(name)
        if held is not None and type(held) is not type(config):
            raise NlftError(
                f"The model has an adapter {name!r} of another kind ({type(held).__name__}).",
                "Give the new one a name of its own: `get_peft_model(model, config, adapter_name=…)`.",
            )
        super().__setitem__(name, config)

    def update(self, configs: Mapping[str, PeftConfig]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for name, config in configs.items():
            self[name] = config


class RefusingTuner(BaseTuner):
    """A tuner that says so where it would train nothing, lose a config, mix adapters by row, or add adapters up."""

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        for name, config in getattr(model, "peft_config", {}).items():
            if not isinstance(config, TaskPeftConfig):
                raise NlftError(f"The model carries the adapter {name!r} ({type(config).__name__}) already.", ORDER)
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        self.peft_config = Configs(self.peft_config)
        cast(Any, self.model).peft_config = self.peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As in PEFT, with names in the place of patterns."""
        name_modules(self.peft_config[adapter_name], model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output.

        Raises:
            NlftError: the model is to be trained, and nothing of it can be.
        """
        if self.training and torch.is_grad_enabled() and kwargs.get("inputs_embeds") is None:
            check_trainable(self)
        return super().forward(*args, **kwargs)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuses."""
        raise NotImplementedError(
            "add_weighted_adapter: the adapters are not linear in their weights, so a weighted sum of them is no"
            " adapter. Put the tasks of two adapters into one by `nlft tasks ADAPTER --add OTHER`, or activate both."
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise NlftError(
                "`adapter_names` (an adapter for each row) is not supported by memories.",
                "Use `set_adapter`.",
            )
        yield


def check_trainable(tuner: BaseTuner) -> None:
    """Refuses to train a model without a trainable parameter: with gradient checkpointing nobody else would notice.

    Raises:
        NlftError: naming what was left out.
    """
    if any(parameter.requires_grad for parameter in tuner.model.parameters()):
        return
    name = next(iter(tuner.active_adapters), "")
    config = tuner.peft_config.get(name)
    if isinstance(config, TaskPeftConfig) and config.keeps_tasks_apart and config.active_task is None:
        raise NlftError(
            f"Nothing would be trained: the adapter {name!r} has no open task.",
            "Calibrate the adapter and call `begin_task` before training; `nlft train` does both.",
        )
    raise NlftError(
        "Nothing would be trained: no parameter of the adapter takes a gradient.",
        "Load it with `is_trainable=True`; to compute without training, call `model.eval()`.",
    )


def in_place(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under the names that they have in a model, which may be compiled.

    Args:
        tensors: under the names that they would have in a model that is not.

    Raises:
        NlftError: naming the first for which the model has no place, and which PEFT would drop with a warning.
    """

    def place(name: str) -> str:
        return plain_name(name).removeprefix(PREFIX)

    every = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    places = {place(name): name for name, _ in every}
    lost = [name for name in tensors if place(name) not in places]
    if lost:
        raise NlftError(
            f"The adapter's tensor {lost[0]} has no place in the model.",
            "Load it onto the base itself; `load_adapter` puts a second adapter beside the first.",
        )
    return {places[place(name)]: tensor for name, tensor in tensors.items()}
