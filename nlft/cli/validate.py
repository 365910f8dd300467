"""`nlft validate`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlft.cli.argument import Overrides, RecipeName

if TYPE_CHECKING:
    from nlft.config import DataConfig, Recipe
    from nlft.document import Document, KeyPath
    from nlft.errors import NlftError
    from nlft.types import Row

KNOWN_FIELDS = {"r", "lora_alpha", "lora_dropout", "target_modules"}
"""Fields of LoRA that need no question to PEFT."""


def validate(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe and its data; loads no model.

    Files and built-in data are read and every row is checked. What is on the Hub is not looked up.
    """
    from nlft.plan import plan_cells
    from nlft.recipes import open_recipe

    loaded, document = open_recipe(recipe, overrides)
    data = _read_data(loaded, document)
    train, runs = loaded.train, len(plan_cells(loaded))
    _line("base", f"{loaded.base.model} (dtype {loaded.base.dtype}, quantization {loaded.base.quantization})")
    for where, description in data.items():
        _line(where, description)
    for name, method in loaded.methods.items():
        rates = ", ".join(f"{lr:g}" for lr in method.lrs if lr)
        _line(f"methods.{name}", f"{method.kind}, lr {rates}" if rates else method.kind)
    _line("train", f"{train.steps} steps of {train.batch_size} rows a task, {train.schedule} schedule")
    _line("compare", f"{runs} run{'s' * (runs != 1)}")
    print("ok")


def _line(where: str, what: str) -> None:
    print(f"{where:24} {what}")


def _sections(recipe: Recipe) -> dict[KeyPath, tuple[str, DataConfig]]:
    """Every data section: its place in the recipe, its key as it is said in errors, and itself."""
    sections: dict[KeyPath, tuple[str, DataConfig]] = {}
    for section, number, task in recipe.all_tasks():
        for part, data in (("train", task.train), ("test", task.test), ("seen", task.seen)):
            if data is not None:
                sections[section, number, part] = f"{section}.{task.name}.{part}", data
    for number, probe in enumerate(recipe.probes):
        for part, data in (("data", probe.data), ("shots_from", probe.shots_from)):
            if data is not None:
                sections["probes", number, part] = f"probes.{probe.name}.{part}", data
    if recipe.background is not None:
        sections["background",] = "background", recipe.background
    return sections


def _read_data(recipe: Recipe, document: Document) -> dict[str, str]:
    """Read what is on this machine; say so of what is not."""
    from nlft.data.domain import WITHOUT_EARLIER
    from nlft.data.source import Source, is_hub_id, load
    from nlft.errors import DataError, RecipeError

    found: dict[str, str] = {}
    sources: dict[str, Source] = {}
    unread = False
    problems: list[tuple[KeyPath, NlftError]] = [*_check_base(recipe), *_check_methods(recipe)]
    problems += _check_harness(recipe, found)
    for path, (where, data) in _sections(recipe).items():
        if is_hub_id(data.path):
            found[where] = f"{data.path}: a Hub dataset, not looked up"
            continue
        try:
            sources[where] = load(data, where)
            found[where] = sources[where].description
        except DataError as error:
            lost = WITHOUT_EARLIER if path[0] == "earlier" else ""
            problems.append((path, DataError(error.message, f"{error.hint} {lost}".strip())))
            unread = True
    problems += _check_metrics(recipe, {where: tuple(source.rows) for where, source in sources.items()}, found)
    if problems:
        said = [f"{document.where(path)}: {error}" for path, error in problems]
        raise RecipeError(said, "Relative paths start at the current directory." if unread else "")
    return found


def _check_harness(recipe: Recipe, found: dict[str, str]) -> list[tuple[KeyPath, NlftError]]:
    """What can be said of lm-eval tasks without loading them."""
    from nlft.data.domain import harness_task
    from nlft.data.harness import check_task
    from nlft.errors import NlftError

    problems: list[tuple[KeyPath, NlftError]] = []
    for number, probe in enumerate(recipe.probes):
        if probe.lm_eval is None:
            continue
        try:
            found[f"probes.{probe.name}"] = check_task(harness_task(probe))
        except NlftError as error:
            said = NlftError(f"probes.{probe.name}.lm_eval: {error.message}", error.hint)
            problems.append((("probes", number, "lm_eval"), said))
    return problems


def _check_base(recipe: Recipe) -> list[tuple[KeyPath, NlftError]]:
    from nlft.errors import BaseModelError
    from nlft.hub import model_location

    try:
        model_location(recipe.base.model)
    except BaseModelError as error:
        return [(("base", "model"), error)]
    return []


def _depth(recipe: Recipe) -> int | None:
    """Number of the base's layers, if its config.json is on this machine and says so."""
    import json

    from nlft.errors import BaseModelError
    from nlft.hub import model_location

    try:
        file = Path(model_location(recipe.base.model)) / "config.json"
    except BaseModelError:
        return None
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    text = config.get("text_config") or config
    return text.get("num_hidden_layers") or text.get("n_layer")


def _check_methods(recipe: Recipe) -> list[tuple[KeyPath, NlftError]]:
    from nlft.errors import NlftError

    found: list[tuple[KeyPath, NlftError]] = []
    depth = _depth(recipe)
    for name, method in recipe.methods.items():
        if depth:
            found += _check_layers(name, method, depth, recipe.base.model)
        if method.kind == "lora" and not (method.peft_type == "LORA" and set(method.peft) <= KNOWN_FIELDS):
            # Only PEFT knows its fields, and it brings torch with it.
            from nlft.methods import build_method
            from nlft.run import naming

            try:
                with naming(name):
                    build_method(method)
            except NlftError as error:
                found.append((("methods", name), error))
    return found


def _check_layers(name: str, method: Any, depth: int, base: str) -> list[tuple[KeyPath, NlftError]]:
    """Layers that the base does not have, or that a gate cannot serve."""
    from nlft.errors import NlftError

    layers, gate = getattr(method, "layers", None) or [], getattr(method, "gate", None)
    behind = 0 if gate is None else gate.place(depth)
    found: list[tuple[KeyPath, NlftError]] = []
    for key, chosen in (("gate.layer", [behind]), ("layers", layers)):
        beyond = [layer for layer in chosen if not 0 <= layer < depth]
        if beyond:
            message = f"methods.{name}.{key}: {beyond[0]} is no layer of {base!r}."
            found.append((("methods", name, *key.split(".")), NlftError(message, f"It has 0 to {depth - 1}.")))
    early = [layer for layer in layers if 0 <= layer < behind]
    if early:
        message = f"methods.{name}.layers: layer {early[0]} lies in front of the gate, which reads the input of layer"
        error = NlftError(f"{message} {behind}.", "Choose later layers, or an earlier gate.layer.")
        found.append((("methods", name, "layers"), error))
    return found


def _check_metrics(
    recipe: Recipe, rows: dict[str, tuple[Row, ...]], found: dict[str, str]
) -> list[tuple[KeyPath, NlftError]]:
    """What `train` would refuse of metrics and their rows; names what is not on this machine in `found`."""
    from nlft.data.source import share_choices
    from nlft.errors import NlftError
    from nlft.measure.evaluation import check_evaluation
    from nlft.measure.metric import METRICS
    from nlft.types import Evaluation

    problems: list[tuple[KeyPath, NlftError]] = []
    wanted: list[tuple[KeyPath, str, str, str]] = []
    for section, number, task in recipe.all_tasks():
        train = f"{section}.{task.name}.train"
        wanted += [
            ((section, number), f"{section}.{task.name}.{part}", train, task.metric)
            for part in ("test", "seen")
            if part == "test" or task.seen is not None
        ]
    wanted += [
        (("probes", number), f"probes.{probe.name}.data", "", probe.metric)
        for number, probe in enumerate(recipe.probes)
        if probe.data is not None
    ]
    for path, where, train, metric in wanted:
        here = metric in METRICS or Path(metric.partition("#")[0]).expanduser().exists()
        near = get_close_matches(metric, METRICS, n=1, cutoff=0.5)
        if not here and near and "/" not in metric:
            error = NlftError(f"{where}: the metric {metric!r} is unknown.", f"Did you mean {near[0]!r}?")
            problems.append(((*path, "metric"), error))
        elif not here:
            found[f"{where} metric"] = f"{metric}: a Hub metric, not looked up"
        elif where in rows and (not train or train in rows):
            scored = share_choices(rows.get(train, ()), rows[where])
            try:
                check_evaluation(Evaluation(where, "task", "test", tuple(scored), metric))
            except NlftError as error:
                problems.append((path, NlftError(f"{where}: {error.message}", error.hint)))
    return problems
