"""Sends a checked directory to the Hub in one commit. Imports no torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlft.errors import NlftError
from nlft.manifest import FILE, read_manifest
from nlft.parcel import Parcel
from nlft.remote import LOG_IN, check_token, hub_errors, hub_sentence, is_exported, split_revision

BLANK = (".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
"""What a repository may hold and still count as empty."""


@dataclass(frozen=True)
class Pushed:
    """What the Hub holds after a push."""

    name: str
    url: str
    commit: str
    """All 40 digits, to be pinned as `revision`."""
    private: bool
    created: bool
    """The repository was made."""
    changed: bool
    """False: everything was there already, and no commit was made."""


def push(
    parcel: Parcel,
    name: str,
    *,
    public: bool = False,
    branch: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
) -> Pushed:
    """Sends a checked directory to the Hub as one commit.

    A repository that is not there is made, private unless `public`; the visibility of one that is there stays as it
    is. Large files that the Hub has already are not sent again, so a push that was cut goes on where it stopped.

    Args:
        name: `USER/NAME`.
        branch: made from `main` if it is not there.
        message: of the commit.
        overwrite: write into a repository that holds something else; its other files stay.

    Raises:
        NlftError: the Hub or what the repository holds speaks against it.
    """
    check_name(name)
    check_token()
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if get_token() is None:
        raise NlftError("No token of the Hub is on this machine.", f"{LOG_IN} It must be one that may write.")
    api = HfApi()
    try:
        created = False
        try:
            api.model_info(name)
        except RepositoryNotFoundError:
            api.create_repo(name, private=not public, exist_ok=True)
            created = True
        try:
            info = api.model_info(name, revision=branch)
        except RevisionNotFoundError:
            api.create_branch(name, branch=branch or "main", exist_ok=True)
            info = api.model_info(name, revision=branch)
        there = [file.rfilename for file in info.siblings or []]
        ours = same_adapter(api, parcel, name, str(info.sha), there)
        if not ours and not overwrite:
            refuse_others(name, there)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # our few results
            done = api.create_commit(
                name,
                operations(parcel, there if ours else []),
                commit_message=message or f"{parcel.manifest.method or parcel.manifest.peft_type} adapter by nlft",
                revision=branch,
                parent_commit=info.sha,
            )
    except hub_errors() as error:
        raise hub_sentence(error, name, branch) from error
    return Pushed(
        name, f"{api.endpoint}/{name}", done.oid, bool(info.private), created, created or done.oid != info.sha
    )


def check_name(name: str) -> None:
    """Refuses what cannot be a repository, or names a revision.

    Raises:
        NlftError: it says how to write it.
    """
    repository, revision = split_revision(name)
    if revision is not None:
        raise NlftError(f"{name!r} names a revision.", f"Write {repository} --revision {revision}.")


def operations(parcel: Parcel, there: Sequence[str]) -> list[Any]:
    """One addition a file, and the deletion of files that an earlier export had and this one has not."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    stale = [path for path in there if path not in parcel.files and path not in BLANK and is_exported(path)]
    return [
        *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(parcel.folder / path)) for path in parcel.files),
        *(CommitOperationDelete(path_in_repo=path) for path in stale),
    ]


def same_adapter(api: Any, parcel: Parcel, name: str, commit: str, there: Sequence[str]) -> bool:
    """Whether a repository holds an adapter of nlft's for the same base, whose next version this may be."""
    if FILE not in there:
        return False
    found = read_manifest(Path(api.hf_hub_download(name, FILE, revision=commit)).parent)
    return found is not None and found.base.model == parcel.manifest.base.model


def refuse_others(name: str, there: Sequence[str]) -> None:
    """Refuses a repository that holds something else.

    Raises:
        NlftError: naming some of it.
    """
    others = sorted(set(there) - set(BLANK))
    if others:
        raise NlftError(
            f"{name} holds something else than an adapter of nlft's for this base: {', '.join(others[:4])}"
            f"{' …' if len(others) > 4 else ''}.",
            "Take another name, or write over it with --overwrite; what it holds beside these files stays.",
        )
