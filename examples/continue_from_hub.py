"""From a run to the Hub and on: learn people, push, then go on from USER/NAME and learn ships.

python examples/continue_from_hub.py USER/NAME

Needs a token that may write (`hf auth login`). The repository is private.
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

from nlft.continuing import next_recipe
from nlft.export import export
from nlft.measure.summary import summary_of
from nlft.parcel import pack
from nlft.recipes import load_recipe
from nlft.run import run_method
from nlft.upload import push

if len(sys.argv) != 2:
    sys.exit("usage: python examples/continue_from_hub.py USER/NAME")
name, folder = sys.argv[1], Path(mkdtemp())
recipe = load_recipe("demo", ["methods.sparse_memory.lr=0.3", "train.steps=40", "background.limit=1000"])
memory = {"sparse_memory": recipe.methods["sparse_memory"]}
recipe = recipe.model_copy(update={"tasks": recipe.tasks[:1], "probes": recipe.probes[:1], "methods": memory})
run = run_method(recipe, None, folder / "people", report=False)
export(run, folder / "adapter", rescore=False)
pushed = push(pack(folder / "adapter"), name)
print(f"pushed as {name}@{pushed.commit[:8]}")

world = "builtin:world/tasks/ships"
following = next_recipe(
    f"{name}@{pushed.commit}", [f"ships={world}/train,{world}/test"], ["tasks.ships.test.limit=100"]
)
run = run_method(following, None, folder / "ships", report=False)
summary = summary_of(run)
[result] = summary["runs"]
for column, start, end in zip(summary["columns"], result["matrix"][0], result["matrix"][-1], strict=True):
    if column["split"] == "test":
        print(f"{column['role']:5} {column['name']:7} {start:6.1%} before, {end:6.1%} after")
