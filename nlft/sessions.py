"""Sessions: what a memory has learned goes on from one sequence to the next, into a file and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import nlft
from nlft.base import UNREADABLE, fingerprint, named_tensors
from nlft.checkpoint import PARTIAL, disk_error
from nlft.digest import digest_tensors
from nlft.errors import CheckpointError, NlftError, reason
from nlft.pathways.hope.layer import HopeCore
from nlft.pathways.hope.model import hope_cores
from nlft.pathways.state import Carried, State, StateKeeper, keepers_of
from nlft.pathways.task import chosen_adapter

KIND = "nlft session"
"""What a session's file says that it is."""
DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
"""Of the tensors in a session's file, as it names them."""


@dataclass(frozen=True)
class Change:
    """How far the memory of one block has moved, by row."""

    norm: list[float]
    """Length (Frobenius) of what was added."""
    relative: list[float]
    """The same, divided by the length of all that the memory holds now: 0 nothing is new, 1 everything is."""
    tokens: list[int]
    """Tokens that were read."""


class Session:
    """A context in which every sequence without a past starts where the last one ended.

    Every forward pass moves the state, also those of `generate`; the newest pass counts. The number of rows stays the
    same, and beams are refused. `generate` needs its key-value cache: without one it reads the prompt anew for every
    token, and learns it as often. Weights are never written.
    """

    def __init__(self, model: Any, adapter: str, learn: bool) -> None:
        self.model, self.adapter = model, adapter
        self.cores: dict[str, HopeCore] = hope_cores(model, adapter)
        if not self.cores or adapter not in keepers_of(model):
            raise NlftError(
                f"The adapter {adapter!r} has no memory that learns while it reads.",
                "Sessions need an NLFT_HOPE adapter.",
            )
        self.carried = Carried(learns=learn)
        self.start: dict[str, State] | None = None
        """Where `changed` counts from."""
        self.base_fingerprint: str | None = None

    @property
    def keeper(self) -> StateKeeper:
        """The keeper of the adapter's states."""
        return cast(StateKeeper, keepers_of(self.model)[self.adapter])

    def __enter__(self) -> Session:
        if self.keeper.carried is not None:
            raise NlftError("A session of this adapter is open already.", "Leave it first.")
        self.keeper.carried = self.carried
        return self

    def __exit__(self, *_: object) -> None:
        self.keeper.carried = None

    @property
    def surprise(self) -> dict[str, torch.Tensor]:
        """How surprising every token of the last forward pass was, [B, T] by block; zero at padding.

        The length of the local gradient of all heads together: of `M k - v` with the objective l2, of `v` with dot.
        """
        return dict(self.carried.surprise)

    def reset(self) -> None:
        """Forgets everything: the model computes what it computed before the session."""
        self.carried.states, self.start = None, None
        self.carried.surprise = {}

    def changed(self) -> dict[str, Change]:
        """By block, how far the memory has moved since it was loaded or reset, else since the session was made."""
        found = {}
        for block, state in (self.carried.states or {}).items():
            before = self.cores[block].fresh(len(state["count"])) if self.start is None else self.start[block]
            names = [name for name in state if name.startswith("running")]
            moved = length([state[name] - before[name].detach().to(state[name].device) for name in names])
            whole = length([state[name] for name in names])
            share = torch.where(moved > 0, moved / whole, 0.0)
            tokens = state["count"].cpu() - before["count"].cpu()
            found[block] = Change(moved.tolist(), share.tolist(), tokens.tolist())
        return found

    def save(self, path: str | Path) -> None:
        """Writes the state into a safetensors file, whole or not at all.

        Raises:
            NlftError: the memory has diverged.
            CheckpointError: the disk is full or cannot be written.
        """
        path = Path(path).expanduser()
        if not all(bool(t.isfinite().all()) for state in (self.carried.states or {}).values() for t in state.values()):
            raise NlftError(
                "The memory holds numbers that are not finite, so the session was not saved.",
                "Reset it, and lower rate_max.",
            )
        tensors = {
            f"{block}/{name}": tensor.cpu().contiguous().clone()
            for block, state in (self.carried.states or {}).items()
            for name, tensor in state.items()
        }
        partial = path.with_name(path.name + PARTIAL)
        try:
            save_file(tensors, partial, metadata=self.identity() | {"nlft_version": nlft.__version__})
            partial.replace(path)
        except UNREADABLE as error:
            raise disk_error(cast(OSError, error), path, "The session") from error
        finally:
            partial.unlink(missing_ok=True)

    def load(self, path: str | Path) -> None:
        """Goes on from a file that `save` wrote.

        Raises:
            CheckpointError: it cannot be read, or holds something else than a state of this adapter on this base.
        """
        path = Path(path).expanduser()
        try:
            with safe_open(str(path), "pt") as file:
                self.check_identity(path, file.metadata() or {})
                states = self.read(path, file)
        except UNREADABLE as error:
            raise CheckpointError(
                f"The session {path} cannot be read: {reason(error)}", "Take a whole copy."
            ) from error
        self.reset()
        self.carried.states = self.start = states or None

    def identity(self) -> dict[str, str]:
        """What a session's file must say: its kind, the base and the adapter."""
        if self.base_fingerprint is None:
            names = (name for name, _ in named_tensors(self.model) if ".nlft_" not in name)
            self.base_fingerprint = fingerprint(self.model, frozenset(names))
        return {"kind": KIND, "base_fingerprint": self.base_fingerprint, "adapter_digest": digest(self.cores)}

    def check_identity(self, path: Path, said: dict[str, str]) -> None:
        """Compares what a file says of itself with this model.

        Raises:
            CheckpointError: it is no session, or one of another base or adapter.
        """
        for name, value in self.identity().items():
            if said.get(name) == value:
                continue
            if name == "kind" or name not in said:
                raise CheckpointError(f"{path} is no session.", "Give a file that `save` of a session wrote.")
            what = "base" if name == "base_fingerprint" else "adapter, or of this one before it was trained further"
            raise CheckpointError(
                f"The session {path} is one of another {what}: its {name} is {said[name][:12]}, and here it is"
                f" {value[:12]}.",
                "States mean nothing to other weights. Use what the session was made with, or start a new one.",
            )

    def read(self, path: Path, file: Any) -> dict[str, State]:
        """The states of a file, compared with what the adapter keeps before a tensor is read.

        Raises:
            CheckpointError: naming the first tensor that is missing, unknown, of another shape or dtype, or not finite.
        """
        keys = set(file.keys())
        if not keys:
            return {}
        wanted = {f"{b}/{n}": tensor for b, core in self.cores.items() for n, tensor in core.fresh(1).items()}
        for key in sorted(keys ^ set(wanted)):
            raise damaged(path, f"{key} is {'missing' if key in wanted else 'unknown'}.")
        rows, states = None, {block: State() for block in self.cores}
        for key, like in wanted.items():
            found = file.get_slice(key)
            shape = list(found.get_shape())
            rows = shape[0] if rows is None and shape else rows
            if not rows or shape != [rows, *like.shape[1:]]:
                raise damaged(path, f"{key} has the shape {shape}, and {[rows or 'B', *like.shape[1:]]} is needed.")
            if DTYPES.get(found.get_dtype()) != like.dtype:
                raise damaged(path, f"{key} is {found.get_dtype()}, and {like.dtype} is needed.")
        for key, like in wanted.items():
            tensor = file.get_tensor(key)
            if like.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise damaged(path, f"{key} holds a number that is not finite.")
            if not like.is_floating_point() and bool((tensor < 0).any()):
                raise damaged(path, f"{key} counts below zero.")
            block, _, name = key.partition("/")
            states[block][name] = tensor.to(like.device)
        return states


def session(model: Any, adapter: str | None = None, learn: bool = True) -> Session:
    """Lets an adapter's memory go on from sequence to sequence: `with nlft.session(model) as s:`.

    Args:
        model: a PEFT model with an NLFT_HOPE adapter.
        adapter: its name; the active one when None.
        learn: False reads the memory as it stands and writes nothing into it.

    Raises:
        NlftError: the adapter has no memory that learns while it reads, or it is unclear which adapter is meant.
    """
    if not isinstance(model, PeftModel):
        raise NlftError(f"A session needs a PEFT model, and this is {type(model).__name__}.", "Load an adapter first.")
    return Session(model, chosen_adapter(model, adapter), learn)


def digest(cores: dict[str, nn.Module] | dict[str, HopeCore]) -> str:
    """sha256 over every tensor of an adapter's blocks, whatever the adapter is called."""
    every = cores.items()
    return digest_tensors((f"{block}/{name}", one) for block, core in every for name, one in core.state_dict().items())


def length(parts: list[torch.Tensor]) -> torch.Tensor:
    """Frobenius norm [B] of tensors [B, ...] taken together."""
    return torch.stack([part.detach().flatten(1).norm(dim=1) for part in parts]).norm(dim=0)


def damaged(path: Path, problem: str) -> CheckpointError:
    """The sentence for a file whose tensors are not those of a session."""
    return CheckpointError(f"The session {path} is damaged: {problem}", "Take a whole copy.")
