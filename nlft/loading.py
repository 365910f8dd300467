"""`nlft.load`: an adapter and the base that it was made for, in one call."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from pydantic import ValidationError

from nlft.adapter import adapter_folder, check_tensors, read_config, recipe_of
from nlft.base import UNREADABLE, FrozenBase, load_base, name_of
from nlft.config import BaseConfig
from nlft.errors import NlftError, reason
from nlft.hub import model_name
from nlft.manifest import AGAIN, FILE, Manifest, read_manifest
from nlft.pathways.base_sample import check_base
from nlft.pathways.task import TaskPeftConfig
from nlft.remote import CONFIG, fetch_adapter

DTYPES = ("float32", "bfloat16", "float16")


def load(
    path_or_id: str | Path, base: Any = None, revision: str | None = None, any_base: bool = False, **options: Any
) -> PeftModel:
    """Loads an adapter onto its base.

    Args:
        path_or_id: an exported directory, a run of `nlft train`, any PEFT adapter, or USER/NAME[@REVISION] on the Hub.
        base: a model, or what a recipe's `base.model` names; the base that the adapter notes when None.
        revision: of the adapter on the Hub.
        any_base: load onto another base than the adapter was made for, whatever comes of it.
        options: of `PeftModel.from_pretrained`, as `is_trainable` or `adapter_name`.

    Raises:
        NlftError: there is no such adapter, it is damaged, or the base is another one.
    """
    folder = adapter_folder(fetch_adapter(str(path_or_id), revision))
    if base is None or isinstance(base, str | Path):
        note = base_note(folder)
        named = note if base is None else note.model_copy(update={"model": str(base), "revision": None})
        frozen = load_base(named)
        manifest, config = read_manifest(folder), read_config(folder)
        remark = (
            None if any_base else check_fingerprint(manifest, frozen, config) or unchecked(manifest, frozen, config)
        )
        if remark is not None:
            warnings.warn(remark, stacklevel=2)
        base = frozen.model
    return put_on(folder, base, any_base, **options)


def put_on(folder: Path, base: Any, any_base: bool = False, **options: Any) -> PeftModel:
    """`PeftModel.from_pretrained(base, folder)`, after the folder's tensors were compared with its settings.

    Raises:
        NlftError: they do not fit each other or the base.
    """
    config = read_config(folder)
    if isinstance(config, TaskPeftConfig):
        check_tensors(folder, config)  # PEFT looks at the values
        if any_base:
            options["config"] = config
            config.check_base = False
    try:
        return PeftModel.from_pretrained(base, str(folder), **options)
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise NlftError(
            f"The adapter in {folder} does not load onto this {type(base).__name__}: {reason(error)}",
            "Load it onto the base that it was made for (base.model in a recipe), and check that its files are whole.",
        ) from error


def base_note(folder: Path) -> BaseConfig:
    """The base that an adapter's folder names: its manifest, the recipe of its run, or PEFT's own note.

    Raises:
        NlftError: there is none.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        note = manifest.base
        plain = note.quantization == "none" and note.dtype in DTYPES
        fields = {"model": note.model, "revision": note.revision, "quantization": note.quantization}
        try:
            return BaseConfig.model_validate(fields | {"dtype": note.dtype if plain else "auto"})
        except ValidationError as error:
            raise NlftError(f"{folder / FILE} names no base: {error.errors()[0]['msg']}.", AGAIN) from error
    recipe = recipe_of(folder, None)
    if recipe is not None:
        return recipe.base
    config = read_config(folder)
    if not config.base_model_name_or_path:
        raise NlftError(f"{folder / CONFIG} names no base model.", "Name it: nlft.load(adapter, base=MODEL).")
    return BaseConfig(model=model_name(config.base_model_name_or_path), revision=config.revision)


def check_fingerprint(manifest: Manifest | None, base: FrozenBase, config: PeftConfig) -> str | None:
    """Refuses a base with other weights than the manifest's.

    Weights of another dtype or quantisation have another hash, and so they are not compared. Where hashes differ, the
    sample of weights that nlft's own adapters note decides: the hash also covers buffers that transformers computes,
    and another version may do so in another way.

    Args:
        config: of the adapter.

    Returns:
        What there is to say about a base that is taken on its sample's word; None where the hashes agree, or one is
        missing.

    Raises:
        NlftError: they differ, and there is no sample, or it differs too.
    """
    if manifest is None or manifest.base.sha256 is None:
        return None
    alike = manifest.base.dtype == name_of(base.model.dtype)
    if not alike or manifest.base.sha256 == base.fingerprint:
        return None
    if vouched(config, base):
        return (
            f"{base.name} has another sha256 than the base of the adapter, but the weights that the adapter notes of it"
            " are the same: another version of transformers may compute its buffers in another way."
        )
    raise NlftError(
        f"The adapter was made for {manifest.base.model} with other weights (sha256"
        f" {manifest.base.sha256[:12]}…, and those of {base.name} have {base.fingerprint[:12]}…).",
        "Give the base and revision that it was made for, or say that any base will do: any_base=True.",
    )


def unchecked(manifest: Manifest | None, base: FrozenBase, config: PeftConfig) -> str | None:
    """What there is to say where an adapter of nlft's notes nothing that its base could be compared with."""
    if not isinstance(config, TaskPeftConfig) or config.base_sample or config.base_fingerprint:
        return None
    if manifest is not None and manifest.base.sha256 == base.fingerprint:
        return None
    return f"The adapter notes no weights of its base, so it was not checked whether {base.name} is that base."


def vouched(config: PeftConfig, base: FrozenBase) -> bool:
    """Whether an adapter notes a sample of its base's weights; then this base has been compared with it.

    Raises:
        NlftError: the base has other weights.
    """
    if not isinstance(config, TaskPeftConfig) or not config.base_sample:
        return False
    check_base(config, base.model)
    return config.check_base


def free_memory() -> None:
    """Gives back what nothing refers to, also on the GPU. PEFT's models refer to themselves."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
