"""Sends a checked directory to the Hub in one commit. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlft.errors import NlftError
from nlft.manifest import FILE, read_manifest
from nlft.parcel import Parcel
from nlft.remote import LOG_IN, OWNERS, check_token, hub_errors, hub_sentence, is_exported, split_revision
from nlft.snippet import ID

CARD = "README.md"


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
    is, and one that is public is written to only with `public`. Large files that the Hub has already are not sent
    again, so a push that was cut goes on where it stopped.

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
            found = api.model_info(name)
            if not found.private and not public:
                raise NlftError(
                    f"{name} is there already and is public: everyone could read what is sent.",
                    f"If that is meant, add --public; else make it private first ({api.endpoint}/{name}/settings).",
                )
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
                operations(parcel, name, there if ours else []),
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


def operations(parcel: Parcel, name: str, there: Sequence[str]) -> list[Any]:
    """One addition a file, the card's with the repository's name, and the deletion of files of an earlier export."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    stale = [path for path in there if path not in parcel.files and path not in OWNERS and is_exported(path)]
    sent: dict[str, str | bytes] = {path: str(parcel.folder / path) for path in parcel.files}
    sent |= named_card(parcel, name)
    return [
        *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in sent.items()),
        *(CommitOperationDelete(path_in_repo=path) for path in stale),
    ]


def named_card(parcel: Parcel, name: str) -> dict[str, bytes]:
    """The card with the repository's name where it has a place for it, and the manifest with the card's new hash.

    A card that was edited since the export keeps the hash of the one that was exported. The files of the folder stay.
    """
    if CARD not in parcel.files:
        return {}
    card = (parcel.folder / CARD).read_bytes()
    named = card.replace(ID.encode(), name.encode())
    if named == card:
        return {}
    data = json.loads((parcel.folder / FILE).read_text(encoding="utf-8"))
    if data["files"].get(CARD, {}).get("sha256") == hashlib.sha256(card).hexdigest():
        data["files"][CARD] = {"bytes": len(named), "sha256": hashlib.sha256(named).hexdigest()}
    return {CARD: named, FILE: (json.dumps(data, indent=1) + "\n").encode()}


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
    others = sorted(set(there) - set(OWNERS))
    if others:
        raise NlftError(
            f"{name} holds something else than an adapter of nlft's for this base: {', '.join(others[:4])}"
            f"{' …' if len(others) > 4 else ''}.",
            "Take another name, or write over it with --overwrite; what it holds beside these files stays.",
        )
