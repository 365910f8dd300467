"""What each pathway adds to one frozen MLP block: time per token, weights, and bytes of state per sequence.

    python eval/bench/pathways.py            # one thread, float32, CPU; about a minute

One layer of a random Llama of the width of Qwen2.5-0.5B (D = 896, F = 4864). Reading means one forward pass over 512
tokens of one sequence; decoding means one token after them. Times are medians over rounds in which all take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import transformers
from peft import get_peft_model
from rich.console import Console
from rich.table import Table

from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import begin_task, memories
from nlft.pathways.state import keepers_of

WIDTH, HIDDEN, TOKENS, ROUNDS = 896, 4864, 512, 15
CANDIDATES: dict[str, Any] = {
    "slots, 1,500": SparseMemoryPeftConfig(),
    "slots, 1,500, input-dependent": SparseMemoryPeftConfig(input_dependent=True),
    "CMS, 3 levels of 16": CmsPeftConfig(),
    "CMS, 3 levels of 112": CmsPeftConfig(r=112),
    "CMS, 3 sequential levels of 112": CmsPeftConfig(r=112, variant="sequential"),
    "CMS, 3 levels of 16, online": CmsPeftConfig(online_chunk=64),
    "Hope, linear, 4 x 64": HopePeftConfig(head_width=64),
    "Hope, linear, 1 x 128": HopePeftConfig(heads=1, head_width=128),
    "Hope, MLP, 4 x 64": HopePeftConfig(head_width=64, memory="mlp", read="boundary", objective="l2"),
    "Hope, self-modifying, 4 x 64": HopePeftConfig(head_width=64, self_modifying=True),
    "Hope, linear, 4 x 64, 3 levels of 16": HopePeftConfig(head_width=64, periods=[1, 8, 64]),
}


def main() -> None:
    """Prints one table."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, TOKENS, WIDTH, generator=draw)
    blocks = {name: adapted(config) for name, config in CANDIDATES.items()}
    runs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    base = next(iter(blocks.values()))[0].base_layer
    runs["frozen MLP"] = (lambda: base(x), lambda: base(x[:, :1]))
    states: dict[str, int] = {}
    for name, (block, model) in blocks.items():
        keeper: Any = next(iter(keepers_of(model).values()), None)
        states[name] = 0
        core = block.cores["default"]
        if keeper is not None:
            keeper.now.kept = {}
            with torch.inference_mode():
                core(x)
            after = dict(keeper.now.kept)
            states[name] = sum(tensor.nbytes for state in after.values() for tensor in state.values())
            runs[name] = (
                lambda core=core, keeper=keeper: passed(core, keeper, x, None),
                lambda core=core, keeper=keeper, after=after: passed(core, keeper, x[:, :1], after),
            )
        else:
            runs[name] = (lambda core=core: core(x), lambda core=core: core(x[:, :1]))
    times = {name: ([], []) for name in runs}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, pair in runs.items():
                for one, found in zip(pair, times[name], strict=True):
                    begun = time.perf_counter()
                    one()
                    found.append(time.perf_counter() - begun)
    table = Table(
        "beside the block", "weights", "reading: us a token", "of the MLP", "decoding: us", "of the MLP", "state"
    )
    mlp = tuple(median(found) for found in times["frozen MLP"])
    for name, (reading, decoding) in times.items():
        trained = sum(p.numel() for p in base.parameters()) if name == "frozen MLP" else weights(blocks[name][0])
        added = median(reading), median(decoding)
        table.add_row(
            name,
            f"{trained:,}",
            f"{1e6 * added[0] / TOKENS:.1f}",
            f"{100 * added[0] / mlp[0]:.1f} %",
            f"{1e6 * added[1]:.0f}",
            f"{100 * added[1] / mlp[1]:.0f} %",
            f"{states.get(name, 0):,}",
        )
    console = Console(width=140)
    console.print(table)
    console.print("Rows below the first give what is added to it; weights are all numbers that are kept.")


def passed(core: Any, keeper: Any, x: torch.Tensor, states: Any) -> Any:
    """What a memory adds to tokens behind `states`."""
    keeper.now.states, keeper.now.kept = states, {}
    return core(x)


def weights(block: Any) -> int:
    """Numbers that the memory of a block keeps."""
    return sum(tensor.numel() for tensor in block.cores["default"].state_dict().values())


def adapted(config: Any) -> tuple[Any, Any]:
    """A wrapped MLP block, and its model."""
    torch.manual_seed(0)
    llama = transformers.LlamaConfig(
        vocab_size=97, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=14,
        num_key_value_heads=2,
    )  # fmt: skip
    model: Any = transformers.LlamaForCausalLM(llama).eval().requires_grad_(False)
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(model, config).eval()
    if isinstance(config, SparseMemoryPeftConfig):
        found = {}
        for block, core in memories(model).items():
            found[block] = (
                torch.nn.functional.normalize(torch.randn(1500, core.key_width), dim=1),
                torch.full((1500,), 0.2),
            )
        begin_task(model, "one", found)
    return model.get_base_model().model.layers[0].mlp, model


if __name__ == "__main__":
    main()
