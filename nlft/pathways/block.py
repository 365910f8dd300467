"""What every pathway shares: a wrapped module, and the PEFT tuner that puts it in place."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from nlft.anatomy import block_input, find_blocks, root_of
from nlft.errors import NlftError
from nlft.pathways.base_sample import check_base, plain_name, sample_base
from nlft.pathways.gate import GATES, GateDict, install_gate, remove_gate
from nlft.pathways.precision import Float32Memories
from nlft.pathways.refusals import RefusingTuner, in_place
from nlft.pathways.state import install_keeper, remove_keeper
from nlft.pathways.stranger import check_stored, enough_memory
from nlft.pathways.task import TaskPeftConfig

NO_MERGE = (
    "A memory is no linear map, so it cannot be merged into the base's weights. "
    "Keep the adapter beside the base, or call `unload()` to get the base back."
)


class PathwayLayer(Float32Memories, BaseTunerLayer):
    """A module with memories beside it: `y = module(x) + sum of memory(x)` over the active adapters.

    The module (an MLP block, or a linear map) is kept whole as `base_layer`, so its kind (dense, mixture of
    experts, quantised) does not matter; a tuple that it returns, and further arguments that it takes, pass through.

    Where a layer has no MLP block but two bare maps, the second is wrapped, and `listen` lets the memories read what
    the first one reads.

    A subclass names the ModuleDict of its memories in `adapter_layer_names` and builds one in `make_core`. A
    core maps [..., D] to the shape of the module's output, float32. Its `tasks` is a ModuleList with a part for
    each task that it has learned. What must never be trained is a buffer of the core, since PEFT
    turns gradients of every parameter on when an adapter is activated.
    """

    def __init__(self, base_layer: nn.Module, width: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.width = width
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.listener: Any = None
        self.heard: torch.Tensor | None = None
        setattr(self, self.adapter_layer_names[0], nn.ModuleDict())

    @property
    def cores(self) -> nn.ModuleDict:
        """The memories by adapter."""
        return getattr(self, self.adapter_layer_names[0])

    def listen(self, module: nn.Module) -> None:
        """From now on the memories read the input of another module, which runs before this one."""
        self.listener = self.listener or module.register_forward_pre_hook(self.hear)

    def hear(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the other module."""
        self.heard = args[0]

    def make_core(self, config: Any) -> nn.Module:
        """A memory as its config describes it."""
        raise NotImplementedError

    def update_layer(self, adapter_name: str, config: PeftConfig) -> None:
        """Adds an adapter."""
        with enough_memory(f"The adapter {adapter_name!r}"):
            self.cores[adapter_name] = self.make_core(config)
        self.whole.discard(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        # A block has no `weight` to ask. No dtype: memories stay float32 whatever the base is.
        return next((tensor.device for tensor in base_layer.parameters()), None), None

    def __getattr__(self, name: str) -> Any:
        # `layer.mlp.gate_proj` must go on working.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuses."""
        raise NotImplementedError(NO_MERGE)

    def unmerge(self) -> None:
        """Nothing is ever merged."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output with the active memories added; writes no state."""
        x = args[0] if args else next(iter(kwargs.values()))
        if self.listener is not None:
            x, self.heard = cast(torch.Tensor, self.heard), None
        added = []
        if not self.disable_adapters:
            cores: Any = self.cores
            # Before the block, which may write into its input.
            added = [self.read(name, cores[name], x) for name in self.active_adapters if name in cores]
        output = self.base_layer(*args, **kwargs)
        if not added:
            return output
        y, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        for memory in added:
            y = y + memory.to(y.dtype).view_as(y)
        return y if rest is None else (y, *rest)

    @torch.no_grad()
    def is_silent(self, x: torch.Tensor) -> bool:
        """Whether the active memories add nothing at block inputs [N, D]; False where these alone do not tell."""
        active = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.cores]
        cores: list[Any] = [self.cores[name] for name in active]
        if any(core.gate is not None or core.keeper is not None for core in cores):
            return False
        return not any(bool(self.compute(name, core, x).any()) for name, core in zip(active, cores, strict=True))

    def read(self, name: str, core: Any, x: torch.Tensor) -> torch.Tensor:
        """What one memory adds; a memory with a state gets sequences, also where the layer has joined its rows."""
        rows = core.keeper[0].now.rows if core.keeper is not None else None
        return self.compute(name, core, x.view(rows, -1, x.shape[-1]) if x.ndim == 2 and rows else x)


class PathwayModel(RefusingTuner):
    """PEFT tuner that wraps MLP blocks; a subclass sets `prefix` and `tuner_layer_cls`."""

    tuner_layer_cls: type[PathwayLayer]  # pyright: ignore[reportIncompatibleVariableOverride]

    def _check_new_adapter_config(self, config: Any) -> None:
        # PEFT's first step of an injection: nothing has been changed yet.
        super()._check_new_adapter_config(config)
        if config.is_new:
            config.base_sample, config.is_fresh = sample_base(self.model) or None, True
        else:
            check_base(config, self.model)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.target_modules is None:
            peft_config.target_modules = set(map(plain_name, self.default_targets(peft_config)))
        return peft_config

    @classmethod
    def keeps_state(cls, config: Any) -> bool:
        """Whether a sequence has a state under this config, so that a keeper is needed."""
        return False

    @classmethod
    def adds_to_maps(cls, config: Any) -> bool:
        """Whether the wrapped modules are linear maps whose own input is read, instead of MLP blocks."""
        return False

    def default_targets(self, peft_config: TaskPeftConfig) -> set[str]:
        """Names of the modules that are wrapped when the config names none."""
        return chosen_blocks(find_blocks(self.model), peft_config.layers_to_transform)

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional: Any,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            layer = target
        else:
            layer = self.tuner_layer_cls(target, self.model.config.get_text_config().hidden_size)
            layer._active_adapter = self.active_adapters
        source = current_key if self.adds_to_maps(peft_config) else block_input(self.model, current_key)
        if source != current_key:
            layer.listen(self.model.get_submodule(source))
        layer.update_layer(adapter_name, peft_config.at(plain_name(current_key)))
        gate = install_gate(self.model, adapter_name, peft_config)
        keeper = install_keeper(self.model, adapter_name) if self.keeps_state(peft_config) else None
        core: Any = layer.cores[adapter_name]
        core.block = plain_name(current_key)
        # In tuples, so that gate and keeper do not become parts of every module that asks them.
        core.gate = None if gate is None else (gate,)
        core.keeper = None if keeper is None else (keeper,)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def delete_adapter(self, adapter_name: str) -> None:
        """Takes an adapter away, its gate and its keeper of states too."""
        super().delete_adapter(adapter_name)
        remove_gate(self.model, adapter_name)
        remove_keeper(self.model, adapter_name)

    def unload(self) -> nn.Module:
        """The base as it was, without wrappers, gates and keepers."""
        for adapter_name in list(self.peft_config):
            remove_gate(self.model, adapter_name)
            remove_keeper(self.model, adapter_name)
        return super().unload()

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, PathwayLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            if isinstance(child, PathwayLayer) and child.listener is not None:
                child.listener.remove()
            # PEFT would hand over `child.weight`, which a block does not have.
            setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NO_MERGE)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        # PEFT has dropped every key with another adapter's name anywhere in it, and "0" is the name of a
        # layer too.
        every = {**model.state_dict(), **state_dict}
        wanted = tuple(
            f"{name}.{module.adapter_layer_names[0]}.{adapter_name}."
            for name, module in model.named_modules()
            if isinstance(module, cls.tuner_layer_cls)
        )
        wanted += tuple(
            f"{name}.{adapter_name}." for name, module in model.named_modules() if isinstance(module, GateDict)
        )
        return {key: tensor for key, tensor in every.items() if key.startswith(wanted)}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        # PEFT puts the adapter's name into keys of the modules that it wrapped; the gate is none of them. It is
        # taken apart first, for an adapter may have its name.
        check_stored(config, state_dict)
        gates = {key: tensor for key, tensor in state_dict.items() if f".{GATES}." in key}
        rest = {key: tensor for key, tensor in state_dict.items() if key not in gates}
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, rest)
        named = {key.replace(f".{GATES}.", f".{GATES}.{adapter_name}.", 1): gates[key] for key in gates}
        return in_place(model, {**remapped, **named})

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT looks for the name in the last two places of a key; a core's tensors lie deeper.
        key = plain_name(key)
        for attribute in (*cls.tuner_layer_cls.adapter_layer_names, GATES):
            head, found, tail = key.partition(f".{attribute}.{adapter_name}.")
            if found:
                return f"{head}.{attribute}.{tail}"
        return super()._remove_adapter_name_from_key(key, adapter_name)


def chosen_blocks(blocks: list[str], layers: list[int] | int | None) -> set[str]:
    """Names of the blocks of the chosen layers; of all layers when None.

    Raises:
        NlftError: the base has no such layer.
    """
    if layers is None:
        return set(blocks)
    indices = [layers] if isinstance(layers, int) else layers
    beyond = [index for index in indices if not 0 <= index < len(blocks)]
    if beyond or not indices:
        raise NlftError(
            f"layers: {indices} names layer {beyond[0]}, but the base has layers 0 to {len(blocks) - 1}."
            if beyond
            else "layers: no layer is named.",
            f"Choose from 0 to {len(blocks) - 1}.",
        )
    return {blocks[index] for index in indices}


def cores_of(model: Any, layer: type[PathwayLayer], adapter: str) -> dict[str, Any]:
    """The memories of one adapter by module, of the kind that stands in such layers."""
    root = root_of(model)
    return {
        name: module.cores[adapter]
        for name, module in root.named_modules()
        if isinstance(module, layer) and adapter in module.cores
    }
