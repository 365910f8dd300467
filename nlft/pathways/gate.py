"""The gate: prototypes of each task's hidden states decide from which token on its part of a pathway is on.

One gate serves a whole adapter. It reads the hidden states in front of one decoder layer, and every pathway of
the adapter stands at or behind that layer. Each token is evidence for a task, by how much nearer its state is to
the task's prototypes than to those of the background and of earlier tasks; the evidence of a row adds up until
the gate opens. Where it is shut, the model computes the base, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from nlft.anatomy import decoder_layers, root_of
from nlft.errors import NlftError
from nlft.ops.gate import accumulate, sticky
from nlft.ops.keys import nearest, whitened
from nlft.pathways.forward_pass import (
    Pass,
    attended_tokens,
    begin_pass,
    cache_of,
    check_uncached,
    forget_passes,
    recall_passes,
)
from nlft.pathways.task import TaskPeftConfig

LARGEST_KEY_WIDTH = 256
"""Leading directions kept by default; more would make the stored whitener the bulk of an adapter."""
GATES = "nlft_gate"
"""Name of the gates' container below the decoder."""


class GateKeys(nn.Module):
    """What a gate knows of one task.

    Prototypes [M, K]; the drift [] (cosine) that is taken from every token's evidence, so that evidence on the
    background falls; the height [] that the sum must pass, and a shift [] that is added to it.
    """

    keys: torch.Tensor
    drift: torch.Tensor
    height: torch.Tensor
    shift: torch.Tensor

    def __init__(self, keys: torch.Tensor, drift: torch.Tensor, height: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("keys", keys)
        self.register_buffer("drift", drift)
        self.register_buffer("height", height)
        self.register_buffer("shift", torch.zeros_like(height))


class GateHistory(DynamicLayer):
    """A layer of a key-value cache that holds the evidence that a gate has seen: keys are [B, 1, T, tasks].

    As a part of the cache it follows beams, cuts and repeats without being asked.
    """

    adapter = ""


class GateDict(nn.ModuleDict):
    """The gates of a model by adapter."""


class PrototypeGate(nn.Module):
    """The gate of one adapter: [B, T, D] hidden states to [B, T, tasks], 0 shut to 1 open."""

    mean: torch.Tensor
    whitener: torch.Tensor
    others: torch.Tensor

    def __init__(self, width: int, adapter: str, config: TaskPeftConfig) -> None:
        super().__init__()
        self.width, self.adapter, self.decay = width, adapter, config.gate_decay
        self.key_width = min(width, config.key_width or LARGEST_KEY_WIDTH)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whitener", torch.eye(width, self.key_width))
        self.register_buffer("others", torch.zeros(config.gate_others, self.key_width))
        self.tasks = nn.ModuleList()
        for size in config.gates.values():
            self.tasks.append(GateKeys(torch.zeros(size, self.key_width), torch.zeros(()), torch.zeros(())))
        self.handles: list[Any] = []
        self.now = Pass()
        """The forward pass that is running, or ran last."""

    @property
    def open(self) -> torch.Tensor | None:
        """How far the gate is open in the forward pass that is running, [B, T, tasks]."""
        return self.now.open

    def add_task(self, keys: torch.Tensor, drift: float, height: float) -> None:
        """Adds what is known of a new task."""
        self.tasks.append(
            GateKeys(keys.detach().to(self.mean), self.mean.new_tensor(drift), self.mean.new_tensor(height))
        )

    @property
    def task_keys(self) -> list[GateKeys]:
        """What is known of each task, in the order of learning."""
        return cast("list[GateKeys]", list(self.tasks))

    @torch.no_grad()
    def queries(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states [N, D] to whitened queries [N, K] of length 1."""
        return whitened(states.to(self.mean.dtype), self.mean, self.whitener)

    @torch.no_grad()
    def contrast(self, queries: torch.Tensor, keys: list[torch.Tensor]) -> torch.Tensor:
        """How much nearer queries [N, K] are to each task's keys than to all before and the background's, [N, tasks].

        Tasks that come later do not take part, so that learning them leaves the gates of earlier ones as they are.
        """
        rival = nearest(queries, self.others)[0]
        found = []
        for own in keys:
            near = nearest(queries, own)[0]
            found.append(near - rival)
            rival = torch.maximum(rival, near)
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def evidence(self, states: torch.Tensor) -> torch.Tensor:
        """Evidence for every task at every token, [B, T, tasks] float32."""
        with torch.autocast(states.device.type, enabled=False):
            found = self.contrast(self.queries(states.reshape(-1, self.width)), [task.keys for task in self.task_keys])
            drift = torch.stack([task.drift for task in self.task_keys])
            return (found - drift).view(*states.shape[:2], -1)

    def opened(self, evidence: torch.Tensor) -> torch.Tensor:
        """How far the gate is open, [B, T, tasks], by all evidence of a row so far."""
        heights = torch.stack([task.height + task.shift for task in self.task_keys])
        return sticky(accumulate(evidence) > heights, self.decay)

    def values(self, task: int, like: torch.Tensor) -> torch.Tensor:
        """How far one task is on at each token of `like` [..., D], as [..., 1].

        Raises:
            NlftError: the gate has not seen the tokens that the module sees, or not yet.
        """
        opened = self.now.open
        if self.now.unseen:
            raise NlftError(
                "The key-value cache was filled without this adapter's gate, which must see every token.",
                "Run the prompt through the adapted model.",
            )
        if opened is None:
            raise NlftError(
                "A gated module stands in front of its gate.", "Choose later layers, or an earlier gate.layer."
            )
        if opened.shape[:-1].numel() != like.shape[:-1].numel():
            raise NlftError(
                f"A gated module got tokens of shape {tuple(like.shape[:-1])}, but the gate saw"
                f" {tuple(opened.shape[:2])}.",
                "Modules that see only some of the tokens (experts) cannot be gated; leave them out of target_modules.",
            )
        return opened[..., task].reshape(*like.shape[:-1], 1).to(like.device)

    def note_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder: which tokens are padding, and the cache of earlier ones."""
        self.now = begin_pass(module, args, kwargs)
        if module.training:
            recall_passes(module, getattr(module, GATES))

    def observe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the gate's layer: reads its hidden states."""
        states = args[0] if args else kwargs["hidden_states"]
        now = self.now
        if not len(self.tasks) or now.open is not None:  # open: the layer is being recomputed
            return
        evidence = self.evidence(states.detach())
        attended = attended_tokens(now.mask, now.tokens_before, evidence.shape[1])
        if attended is not None:
            evidence = evidence.masked_fill(~attended[..., None].to(evidence.device), 0.0)
        now.evidence = evidence
        if now.documents is not None:
            now.open = now.documents.together(self.opened(now.documents.apart(evidence)))
            return
        if now.tokens_before:
            history = self.history(now.past)
            earlier = None if history is None else history.keys
            if earlier is None or earlier.shape[2:] != (now.tokens_before, len(self.tasks)):
                now.unseen, now.evidence = True, None
                return
            evidence = torch.cat([earlier[:, 0].to(evidence), evidence], dim=1)
        now.open = self.opened(evidence)[:, -states.shape[1] :]

    def remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """After the decoder: keeps the evidence in the cache."""
        now = self.now
        past = cache_of(output, now.past)
        check_uncached(now, past)
        evidence, now.evidence, now.past, now.mask = now.evidence, None, None, None
        if past is None or evidence is None:
            return
        history = self.history(past)
        if history is None:
            history = GateHistory()
            history.adapter = self.adapter
            # As the others, or the masks of a static cache would from now on be made for another kind of cache.
            history.is_compileable = past.is_compileable
            past.layers.append(history)
        states = evidence[:, None]
        history.update(states, states[..., :0])

    def history(self, past: Any) -> GateHistory | None:
        """This gate's part of a cache."""
        layers = [] if past is None else past.layers
        return next((one for one in layers if isinstance(one, GateHistory) and one.adapter == self.adapter), None)


def install_gate(model: Any, adapter: str, config: TaskPeftConfig) -> PrototypeGate | None:
    """Puts a gate in front of the layer that the config names; returns the one that is there if there is one.

    Raises:
        NlftError: the base has no such layer.
    """
    if config.gate_layer is None:
        return None
    decoder = decoder_of(model)
    if not hasattr(decoder, GATES):
        decoder.add_module(GATES, GateDict())
    gates = gates_of(model)
    if adapter in gates:
        return cast(PrototypeGate, gates[adapter])
    layer = layer_behind_gate(model, config.gate_layer)
    width = model.config.get_text_config().hidden_size
    gate = PrototypeGate(width, adapter, config).to(next(layer.parameters()).device)
    gates[adapter] = gate
    gate.handles = [
        decoder.register_forward_pre_hook(gate.note_inputs, with_kwargs=True),
        layer.register_forward_pre_hook(gate.observe, with_kwargs=True),
        decoder.register_forward_hook(gate.remember, with_kwargs=True),
    ]
    return gate


def layer_behind_gate(model: Any, index: int) -> nn.Module:
    """The first layer behind a gate, whose input the gate reads.

    Raises:
        NlftError: the base has no such layer.
    """
    _, layers = decoder_layers(model)
    if not 0 <= index < len(layers):
        raise NlftError(f"gate.layer: {index} is no layer of this base.", f"Choose from 0 to {len(layers) - 1}.")
    return layers[index]


def check_behind_gate(layers: Sequence[int] | None, gate_layer: int | None) -> None:
    """Refuses layers that a gate cannot serve.

    Raises:
        NlftError: a chosen layer lies in front of the gate.
    """
    early = [index for index in layers or () if gate_layer is not None and index < gate_layer]
    if early:
        raise NlftError(
            f"layers: layer {early[0]} lies in front of the gate, which reads the input of layer {gate_layer}.",
            "Choose later layers, or an earlier gate.layer.",
        )


def gate_module(model: Any, adapter: str) -> str:
    """Full name of the decoder layer whose input an adapter's gate reads."""
    prefix, _ = decoder_layers(model.get_base_model())
    return f"{prefix}.{model.peft_config[adapter].gate_layer}"


def remove_gate(model: Any, adapter: str) -> None:
    """Takes a gate away, if there is one."""
    gates = gates_of(model)
    if adapter in gates:
        for handle in cast(Any, gates[adapter]).handles:
            handle.remove()
        del gates[adapter]
    if not len(gates) and hasattr(decoder_of(model), GATES):
        delattr(decoder_of(model), GATES)
        forget_passes(decoder_of(model), gates)


def decoder_of(model: Any) -> nn.Module:
    """The text decoder, which every forward pass goes through."""
    root = root_of(model)
    return root.get_decoder() if hasattr(root, "get_decoder") else root


def gates_of(model: Any) -> GateDict:
    """The gates of a model by adapter."""
    return getattr(decoder_of(model), GATES, GateDict())
