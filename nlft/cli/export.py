"""`nlft export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nlft.cli.argument import NoRescore, going_on, open_console, say

if TYPE_CHECKING:
    from rich.console import Console

    from nlft.export import Exported
    from nlft.verification import Verified


def export(
    run: Annotated[str, typer.Argument(metavar="RUN|ADAPTER", help="A result folder, a cell or an adapter.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that holds nothing yet.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Of what was learned; keys and thresholds stay as they are."),
    ] = "float32",
    no_rescore: NoRescore = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an older export in DIR.")] = False,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="Of the adapter, for its card, as apache-2.0 or words.")
    ] = None,
) -> None:
    """Write a PEFT directory with card, recipe and results, and verify it.

    A fresh process loads it, compares its logits with those in memory and scores tasks and probes again. If anything
    differs, nothing is left in DIR.
    """
    console = open_console()
    with going_on():
        from nlft.premises import check_place, check_source

        check_source(run)
        check_place(folder.expanduser().resolve(), force)
        from nlft.export import export as write
        from nlft.snippet import load_lines

        done = write(run, folder, dtype, not no_rescore, force, console, license)
    show_checks(done.verified, console)
    show_size(done, console)
    said = f"witness.safetensors holds {done.rows_note}"
    if done.manifest.method is not None:
        said += ", and results/items.parquet the model's answers to all of them"
    say(console, f"{said}.", f"Written to {done.folder}. Load it:", "")
    say(console, *load_lines(done.manifest, str(done.folder)))
    say(console, "", f"or with its base in one: nlft.load({str(done.folder)!r})")


def show_checks(verified: Verified, console: Console) -> None:
    """What was checked."""
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "found", "wanted", "")
    for check in verified.checks:
        ok = {True: "ok", False: "NO", None: "–"}[check.ok]
        table.add_row(Text(check.name), Text(check.found), Text(check.wanted), ok)
    console.print(table)


def show_size(done: Exported, console: Console) -> None:
    """Bytes by part, beside a LoRA's."""
    from rich.table import Table
    from rich.text import Text

    table = Table("part", "bytes")
    table.columns[1].justify = "right"
    for name, count in done.parts.items():
        table.add_row(Text(name), f"{count:,}")
    table.add_row("all files", f"{sum(done.parts.values()):,}")
    lora = done.manifest.lora
    if lora is not None:
        of = f"LoRA r{lora.rank}, every linear layer (computed, not measured)"
        if not lora.computed:
            of = f"LoRA {lora.run_id}: learned {lora.learning:.0%} at the end, no less than this run"
            if not lora.learning or lora.learning <= 0:
                of = f"LoRA {lora.run_id}: nothing was learned, by it or by this run"
        table.add_row(Text(of), f"{lora.bytes:,}")
    console.print(table)
