"""Adapters on the Hub: what a name names, fetching one, and what the Hub says as a sentence. Imports no torch."""

from __future__ import annotations

import errno
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from nlft.errors import NlftError, reason
from nlft.hub import offline_unless_reachable

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
"""The files that PEFT writes."""
FILES = (
    CONFIG,
    WEIGHTS,
    "README.md",
    "nlft.json",
    "recipe.yaml",
    "witness.safetensors",
    "matrix.png",
    "results/items.parquet",
    "results/runs.parquet",
    "results/summary.json",
    ".eval_results/*.yaml",
)
"""What is fetched of a repository: an exported directory or a plain PEFT adapter, nothing that can hold code."""
OWNERS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitattributes", ".gitignore")
"""What the owner of an exported directory or repository may add, change or leave out."""
MAX_TENSORS = 32 << 30
"""Most bytes of a `.safetensors` file that is fetched."""
MAX_FILE = 256 << 20
"""Most bytes of any other file that is fetched."""
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
AGAIN = "Run the same command again: it goes on with what is missing."

_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[^\s@]+))?", re.ASCII)


def is_adapter_id(name: str) -> bool:
    """Whether a name is `USER/NAME` or `USER/NAME@REVISION` on the Hub.

    It is not where something of that name, or without a revision its parent folder, is on this machine.
    """
    found = _ID.fullmatch(name)
    if found is None or Path(name).exists():
        return False
    return found["revision"] is not None or not Path(name).parent.is_dir()


def is_exported(path: str) -> bool:
    """Whether a relative path is one of an exported directory's."""
    return any(fnmatch(path, pattern) for pattern in FILES)


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """`USER/NAME@REVISION` as name and revision.

    Raises:
        NlftError: it is no id, or two revisions are named.
    """
    found = _ID.fullmatch(name)
    if found is None:
        raise NlftError(f"{name!r} is no repository on the Hub.", "Write it as USER/NAME or USER/NAME@REVISION.")
    if revision is not None and found["revision"] not in (None, revision):
        raise NlftError(f"{name!r} and revision {revision!r} name two revisions.", "Name one.")
    return found["name"], found["revision"] or revision


def fetch_adapter(name: str, revision: str | None = None) -> Path:
    """The folder of an adapter: one on this machine as it is, one on the Hub after it was downloaded.

    What is in the cache is not downloaded again. Where the Hub is out of reach the cache alone is used.
    Only the files of `FILES` are fetched, and none before their names and sizes were looked at.

    Args:
        name: a path, or `USER/NAME` or `USER/NAME@REVISION` on the Hub.
        revision: branch, tag or commit on the Hub; else its main branch.

    Returns:
        The path itself, absolute, also if nothing is there; or the snapshot's folder in the Hub's cache.

    Raises:
        NlftError: the Hub, the repository or the cache does not give it.
    """
    if not is_adapter_id(name):
        return Path(name).expanduser().resolve()
    name, revision = split_revision(name, revision)
    check_token()
    from huggingface_hub import HfApi, constants, snapshot_download

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(FILES)}
    with offline_unless_reachable():
        try:
            if constants.HF_HUB_OFFLINE:
                return checked(Path(snapshot_download(name, local_files_only=True, **wanted)), name)
            info = HfApi().model_info(name, revision=revision, files_metadata=True)
            check_adapter({file.rfilename: file.size or 0 for file in info.siblings or []}, name)
            # The commit whose files were looked at: a branch may have moved on since.
            wanted["revision"] = info.sha
            folder = checked(Path(snapshot_download(name, **wanted)), name)
        except hub_errors() as error:
            raise hub_sentence(error, name, revision) from error
    note_commit(folder, revision or "main")
    return folder


def note_commit(folder: Path, revision: str) -> None:
    """Notes in the Hub's cache which commit a branch or tag stands for, so that it is found without the Hub too.

    The client does so where it is given the branch, and it was given the commit.
    """
    commit, place = resolved_revision(folder), folder.parent.parent / "refs" / revision
    if commit in (None, revision) or ".." in place.parts or (place.is_file() and place.read_text() == commit):
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        partial.write_text(str(commit))
        partial.replace(place)
    except OSError:  # a cache that others fill; the files are here
        return


def resolved_revision(folder: Path) -> str | None:
    """The commit of a folder that was downloaded, from its place in the Hub's cache; None for another folder."""
    found = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if found else None


def checked(folder: Path, name: str) -> Path:
    """The folder of a snapshot, if it holds an adapter.

    Raises:
        NlftError: it holds none.
    """
    files = (path for path in folder.rglob("*") if path.is_file())
    check_adapter({path.relative_to(folder).as_posix(): path.stat().st_size for path in files}, name)
    return folder


def check_adapter(files: dict[str, int], name: str) -> None:
    """Refuses what is no adapter that can be read safely.

    Args:
        files: every file with its bytes.

    Raises:
        NlftError: it says what is there instead.
    """
    if CONFIG not in files:
        raise NlftError(f"{name} is no adapter: it has no {CONFIG}. {what_it_is(files)}", "Name an adapter.")
    if WEIGHTS not in files:
        if PICKLE in files:
            raise NlftError(
                f"{name} holds its adapter only as {PICKLE}, a pickle, which runs code when it is read.",
                f"Ask its owner for {WEIGHTS}; nlft reads nothing else.",
            )
        raise NlftError(f"{name} has no {WEIGHTS}.", "Its upload may not have been finished; ask its owner.")
    for path, size in files.items():
        limit = MAX_TENSORS if path.endswith(".safetensors") else MAX_FILE
        if is_exported(path) and size > limit:
            raise NlftError(
                f"{path} of {name} has {size:,} bytes, where an adapter's has {limit:,} at most.",
                "If you trust it, download it yourself and name the folder.",
            )


def what_it_is(files: dict[str, int]) -> str:
    """What a repository without an adapter seems to be, as a sentence."""
    if "config.json" in files:
        return "It seems to be a whole model, which `base.model` in a recipe can name."
    if any(CONFIG in path for path in files):
        inside = sorted(path.removesuffix(f"/{CONFIG}") for path in files if path.endswith(f"/{CONFIG}"))
        return f"It has adapters in the folders {', '.join(inside[:5])}; download one and name its folder."
    listed = ", ".join(sorted(files)[:5])
    return f"It holds {listed}{' …' if len(files) > 5 else ''}." if listed else "It is empty."


def check_token() -> None:
    """Refuses a token that cannot be sent, before an HTTP library quotes it in an error.

    Raises:
        NlftError: it holds characters that no token has.
    """
    from huggingface_hub import get_token

    if re.search(r"[^!-~]", get_token() or ""):
        raise NlftError("The Hub's token on this machine holds characters that no token has.", LOG_IN)


def hub_errors() -> tuple[type[BaseException], ...]:
    """What the Hub's client raises: for its answers, for broken connections, for names and for the cache."""
    from huggingface_hub.errors import HfHubHTTPError

    transport = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")  # httpx, or its heir
    return (transport, OSError, ValueError, RuntimeError)


def hub_sentence(error: BaseException, name: str, revision: str | None = None) -> NlftError:
    """The sentence for an error of the Hub's client.

    Raises:
        OSError: the error itself, where it is about this machine's disk.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, NlftError):
        return error
    causes = causes_of(error)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise error
    answer = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    said = without_token(reason(causes[-1] if answer is None else answer))
    if answer is None:
        if constants.HF_HUB_OFFLINE:
            return NlftError(
                f"{name} is not in the Hub's cache on this machine, and the Hub cannot be asked: it is out of reach"
                " or HF_HUB_OFFLINE is set.",
                "Connect, or name a folder.",
            )
        if isinstance(error, HFValidationError):
            return NlftError(f"{name}: {said}", "Write it as USER/NAME or USER/NAME@REVISION.")
        if isinstance(error, ValueError):
            return NlftError(f"What the Hub answered cannot be read ({said}).", AGAIN)
        if any(type(cause).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError") for cause in causes):
            return NlftError(f"The Hub cannot be reached ({said}).", "Connect, and run the same command again.")
        return NlftError(f"The connection to the Hub broke ({said}).", AGAIN)
    code, token = answer.response.status_code, get_token()
    if isinstance(answer, GatedRepoError):
        where = f"{constants.ENDPOINT}/{name}"
        return NlftError(f"{name} is gated: its owner asks readers to agree first.", f"Agree on {where}. {LOG_IN}")
    if isinstance(answer, RevisionNotFoundError):
        return NlftError(f"{name} has no revision {revision!r}.", "Give a branch, a tag or a whole commit of it.")
    if code == 401 and token and not isinstance(answer, RepositoryNotFoundError):
        return NlftError("The Hub does not take the token of this machine: it is wrong or has expired.", LOG_IN)
    if code == 401 or isinstance(answer, RepositoryNotFoundError):
        seen = "the token of this machine does not open it" if token else "it is private and no token was sent"
        return NlftError(f"There is no {name} on the Hub, or {seen}.", f"Check the name. {LOG_IN}")
    if code == 403:
        return NlftError(
            f"The token of this machine may not do that with {name} ({said}).",
            "Take a token with that permission: `hf auth login`.",
        )
    if code in (409, 412):
        return NlftError(f"{name} was changed by somebody else at the same time.", "Run the same command again.")
    if code == 429:
        return NlftError("The Hub asks to slow down (429).", f"Wait some minutes. {AGAIN}")
    if code >= 500:
        return NlftError(f"The Hub has trouble of its own ({code}).", f"Wait some minutes. {AGAIN}")
    return NlftError(f"The Hub refused {name} ({code}): {said}", "Check the name and the token.")


def causes_of(error: BaseException) -> list[BaseException]:
    """An error and what it was raised from, the first cause last."""
    causes = [error]
    while (before := causes[-1].__cause__) is not None and before not in causes:
        causes.append(before)
    return causes


def without_token(text: str) -> str:
    """A text in which this machine's token, and anything that looks like one of the Hub's, is blotted out."""
    from huggingface_hub import get_token

    own = get_token()
    return re.sub(r"\bhf_\w+", "hf_…", text.replace(own, "…") if own else text)
