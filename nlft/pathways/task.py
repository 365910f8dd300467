"""What every pathway knows about the tasks that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import PeftConfig

from nlft.errors import NlftError
from nlft.pathways.base_sample import read_sample
from nlft.pathways.header import WHOLE, check_config_file, check_file, read_header
from nlft.pathways.provenance import check_name, check_past
from nlft.pathways.stranger import LARGEST, check_fields, check_listed, check_stored, shown
from nlft.remote import PICKLE, WEIGHTS


@dataclass
class TaskPeftConfig(PeftConfig):
    """Fields that all pathways share.

    Args:
        target_modules: names of modules, or a regex, which injection turns into names; the pathway's own choice when
            None.
        exclude_modules: modules to leave out.
        layers_to_transform: indices of layers; all that the pathway can take when None.
        modules_to_save: further modules to train and save, as in all of PEFT.
        trainable_token_indices: none; other libraries expect the field.
        init_weights: new values start so that the model is unchanged; False draws them at random, for tests.
        key_width: K, width of whitened queries and keys; min(D, 256) when None.
        gate_layer: the gate reads the hidden states in front of this layer; no gate when None.
        gate_decay: how much of an open gate is left one token later.
        gate_others: prototypes of the background in the gate. Kept by calibration.
        gates: keys of each task's gate. Kept by calibration.
        tasks: size of each task's part (slots a layer, or rank), in the order of learning. Kept by `begin_task`.
        sizes: by task, the sizes at blocks where they are other than the largest.
        active_task: the task that is trained. Kept by `begin_task` and `end_task`.
        provenance: where each task came from and what is known of it.
        calibration: what calibrated the adapter, see `note_background`.
        base_fingerprint: sha256 of the base that the keys were made for.
        base_sample: a few weights of that base, see `sample_base`. Kept by PEFT's injection.
        nlft_version: version of nlft that made the adapter.

    Raises:
        NlftError: naming the field whose value makes no sense.
    """

    target_modules: Any = None
    exclude_modules: Any = None
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | None = None
    init_weights: bool = True
    key_width: int | None = None
    gate_layer: int | None = None
    gate_decay: float = 1.0
    gate_others: int = 0
    gates: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    active_task: str | None = None
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    base_fingerprint: str | None = None
    base_sample: dict[str, Any] | None = None
    nlft_version: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_base = True
        """Whether another base than the noted one is refused. No field: it is never stored."""
        self.is_fresh = False
        """Whether the base was noted by this process; then nothing has been learned on it yet."""
        check_fields(self)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        # Read back from JSON they are lists of pairs: see `to_dict`.
        self.tasks, self.gates = sizes_of("tasks", self.tasks), sizes_of("gates", self.gates)
        if not isinstance(self.sizes, dict):
            raise NlftError(f"sizes: {shown(self.sizes)} is no object.", WHOLE)
        self.sizes = {name: sizes_of(f"sizes.{name}", there) for name, there in self.sizes.items()}
        check_past(self.provenance, self.calibration)
        if self.base_sample:
            read_sample(self.base_sample)
        if self.key_width is not None and self.key_width < 2:
            raise NlftError(f"key_width: {self.key_width} is too narrow.", "Use at least 2.")
        if not 0 <= self.gate_decay <= 1:
            raise NlftError(f"gate_decay: {self.gate_decay} is no share.", "Use 0 (each token alone) to 1 (sticky).")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """As in PEFT, which builds the adapter next; so the tensors are compared with the settings here, by the header
        of their file alone.

        Raises:
            NlftError: naming the field or the tensor that is not what it should be, or the tensors are a pickle.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if folder.is_dir():
            check_config_file(folder)
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        check_listed(config)
        if folder.is_dir():
            weights = local_weights(folder)
        else:
            weights = fetched_weights(pretrained_model_name_or_path, subfolder, cls._split_kwargs(kwargs)[0])
        if weights is not None:
            check_stored(config, read_header(weights))
        return config

    @property
    def is_new(self) -> bool:
        """Whether nothing can have been learned with it: it was written for the base at hand, not found."""
        return not self.tasks and (self.is_fresh or not (self.base_sample or self.inference_mode))

    @property
    def keeps_tasks_apart(self) -> bool:
        """Whether every task has a part of its own; else one part serves all, and no task can be taken out."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Fields as PEFT writes them; what has an order as pairs, because PEFT sorts the keys of JSON objects."""
        pairs = {"tasks": list(map(list, self.tasks.items())), "gates": list(map(list, self.gates.items()))}
        return {**super().to_dict(), **pairs}

    def at(self, block: str) -> TaskPeftConfig:
        """The config as the core at one block sees it: `tasks` has the sizes there."""
        if not self.sizes:
            return self
        there = copy(self)
        there.tasks = {name: self.sizes.get(name, {}).get(block, size) for name, size in self.tasks.items()}
        return there

    def open_task(self, name: str, size: int) -> None:
        """Notes a new task as the one that is trained.

        Raises:
            NlftError: the task is known, or another one is still open.
        """
        self.check_new(name)
        self.tasks[name] = size
        self.active_task = name

    def resize(self, name: str, there: Mapping[str, int]) -> None:
        """Notes the size of a task's part at every block."""
        self.tasks[name] = max(there.values())
        self.sizes.pop(name, None)
        other = {block: size for block, size in there.items() if size != self.tasks[name]}
        if other:
            self.sizes[name] = other

    def check_new(self, name: str) -> None:
        """Refuses a task that cannot be opened now.

        Raises:
            NlftError: the task is known, its name cannot be printed, or another one is still open.
        """
        check_name("tasks", name)
        if name in self.tasks:
            raise NlftError(f"The task {name!r} has been learned already.", "Give the new task a name of its own.")
        if self.active_task is not None:
            raise NlftError(f"The task {self.active_task!r} is still being trained.", "Call `end_task` first.")

    def close_task(self) -> None:
        """Notes that nothing is trained any more.

        Raises:
            NlftError: no task is open.
        """
        if self.active_task is None:
            raise NlftError("No task is being trained.", "Call `begin_task` first.")
        self.active_task = None


def chosen_adapter(model: Any, adapter: str | None) -> str:
    """The adapter that is meant: the one named, else the only active one.

    Raises:
        NlftError: none is named and not exactly one is active.
    """
    active = list(getattr(model, "active_adapters", []))
    if adapter is None and len(active) != 1:
        raise NlftError(f"Which adapter is meant? Active are {active}.", "Name one by `adapter`.")
    return adapter or active[0]


def local_weights(folder: Path) -> Path | None:
    """The tensors in an adapter's folder; None where it has none.

    Raises:
        NlftError: they are a pickle, or a link to somewhere else.
    """
    if (folder / WEIGHTS).exists():
        return check_file(folder, WEIGHTS)
    if (folder / PICKLE).exists():
        refuse_pickle(str(folder))
    return None


def fetched_weights(name: str, subfolder: str | None, options: dict[str, Any]) -> Path | None:
    """The tensors of an adapter on the Hub, in the cache from which PEFT loads them next.

    Returns:
        None while the Hub is out of reach, which PEFT says.

    Raises:
        NlftError: it has no tensors but a pickle.
    """
    try:
        return Path(hf_hub_download(name, WEIGHTS, subfolder=subfolder, **options))
    except LocalEntryNotFoundError:
        return None
    except EntryNotFoundError:
        refuse_pickle(name)


def refuse_pickle(where: str) -> NoReturn:
    """Says that only safetensors are read.

    Raises:
        NlftError: always.
    """
    raise NlftError(
        f"{where} has no {WEIGHTS}. A pickle ({PICKLE}) can run code, so it is not read.",
        "Save the adapter with `save_pretrained(…, safe_serialization=True)`, PEFT's default.",
    )


def sizes_of(field: str, pairs: Any) -> dict[str, int]:
    """Sizes by name, from a mapping or from pairs.

    Raises:
        NlftError: a name cannot be printed, or a size is no number from 1.
    """
    try:
        found = dict(pairs)
    except (TypeError, ValueError) as error:
        raise NlftError(f"{field}: {shown(pairs)} is no list of pairs.", WHOLE) from error
    for name, size in found.items():
        check_name(field, name)
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST:
            raise NlftError(f"{field}.{name}: {shown(size)} is no size.", WHOLE)
    return found
