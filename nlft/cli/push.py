"""`nlft push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nlft.cli.argument import open_console, say


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `nlft export` wrote.")],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository on the Hub; made if it is not there.")],
    public: Annotated[
        bool, typer.Option("--public", help="A new repository is public, and one that is may be written to.")
    ] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="Another branch than main.")] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Message of the commit.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also into a repository that holds something else.")
    ] = False,
    base_weights: Annotated[
        bool, typer.Option("--base-weights", help="Also with tensors of the base, such as embedding rows.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the files; send nothing.")] = False,
) -> None:
    """Put an exported adapter on the Hub, in one commit.

    The token is the one of `hf auth login` or HF_TOKEN.
    """
    console = open_console()
    from huggingface_hub import constants

    from nlft import parcel, upload
    from nlft.snippet import load_lines

    checked = parcel.pack(folder, base_weights)
    upload.check_name(name)
    branch = f", branch {revision}" if revision else ""
    say(console, f"{checked.folder} to {constants.ENDPOINT}/{name}{branch}:")
    for path, size in checked.files.items():
        say(console, f"  {size:>13,}  {path}")
    say(console, f"  {sum(checked.files.values()):>13,}  bytes in {len(checked.files)} files")
    if parcel.is_local(checked.manifest.base.model):
        say(console, f"Its base is a folder of this machine, {checked.manifest.base.model}: nobody else can load it.")
    if dry_run:
        say(console, "Nothing was sent (--dry-run).")
        return
    done = upload.push(checked, name, public=public, branch=revision, message=message, overwrite=overwrite)
    if not done.created and done.private and public:
        say(console, f"The repository was there already, is private and stays so ({done.url}/settings).")
    say(
        console,
        f"{done.url} ({'private' if done.private else 'public'})",
        f"commit {done.commit}" if done.changed else f"Everything was there already, in commit {done.commit}.",
        "",
        *load_lines(checked.manifest, name, done.commit),
    )
