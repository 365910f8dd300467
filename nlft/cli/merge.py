"""`nlft merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nlft.cli.argument import AnyBase, NoRescore, ScoredBy, going_on, open_console, say


def merge(
    source: Annotated[str, typer.Argument(metavar="RUN|DIR|USER/NAME", help="A run, an adapter, or one on the Hub.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the merged model.")],
    recipe: ScoredBy = None,
    onto_full_precision: Annotated[
        bool, typer.Option("--onto-full-precision", help="Of a quantised recipe: merge into the unquantised base.")
    ] = False,
    gguf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Convert it too, by llama.cpp's converter if that is here.")
    ] = None,
    no_rescore: NoRescore = False,
    any_base: AnyBase = False,
) -> None:
    """Merge a linear adapter (LoRA, changes of pretrained maps) into its base, and score it again."""
    from rich.markup import escape
    from rich.table import Table

    from nlft.premises import check_empty, check_source
    from nlft.recipes import load_recipe

    check_source(source)
    check_empty(out.expanduser().resolve())
    loaded = load_recipe(recipe) if recipe else None
    console = open_console()
    with going_on():
        from nlft.gguf import check_free, convert_to_gguf
        from nlft.merging import merge as merge_adapter

        if gguf is not None:
            check_free(gguf)
        merged = merge_adapter(
            source,
            out,
            recipe=loaded,
            onto_full_precision=onto_full_precision,
            any_base=any_base,
            rescore=not no_rescore,
            console=console,
        )
        before = f"{merged.quantised} base + adapter" if merged.quantised else "base + adapter"
        table = Table("column", "metric", "rows", before, "merged", "difference")
        for column in table.columns[2:]:
            column.justify = "right"
        for one in merged.scores:
            numbers = f"{one.adapter:.4f}", f"{one.merged:.4f}", f"{one.merged - one.adapter:+.4f}"
            table.add_row(escape(one.column), escape(one.metric), str(one.n_rows), *numbers)
        console.print(table) if merged.scores else say(console, "Nothing was scored (--no-rescore).")
        beside = "the unquantised base with the adapter on" if merged.quantised else "the base with the adapter on"
        say(console, f"Logits differ from {beside} by {merged.logits:.2g} at most ({merged.tolerance:.2g} allowed).")
        if merged.rounding is not None:
            say(console, merged.rounding.sentence(merged.dtype))
        say(console, f"The merged model ({merged.dtype}) is in {merged.folder}.")
        if gguf is not None:
            converter = convert_to_gguf(merged.folder, gguf)
            say(console, f"{converter} wrote {gguf}, whose numbers were not measured: a conversion may round.")
