"""What a recipe's paths name: something on this machine, or on the Hub. Nothing here imports torch."""

from __future__ import annotations

import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from nlft.errors import BaseModelError

WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
PROBE_SECONDS = 5.0


def model_location(name: str) -> str:
    """Turns a builtin name into its directory; checks a directory; leaves a Hub id alone.

    Raises:
        BaseModelError: what is there is no model.
    """
    if name.startswith("builtin:"):
        folder = resources.files("nlft") / "builtin" / name.removeprefix("builtin:")
        if not (folder / "config.json").is_file():
            raise BaseModelError(
                f"base.model: there is no built-in model {name!r}.", "The one shipped is `builtin:tiny`."
            )
        return str(folder)
    path = Path(name).expanduser()
    if path.exists():
        check_model_folder(path, name)
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BaseModelError(f"base.model: there is no directory {name!r}.", "Check the path.")
    return name


def is_hub_model(name: str) -> bool:
    """Whether a base's name is a model's id on the Hub; nothing is asked of the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.startswith("builtin:") or Path(name).expanduser().exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def model_name(location: str) -> str:
    """The name of which `model_location` makes a directory: `builtin:tiny` for nlft's own; another stays as it is."""
    own = Path(str(resources.files("nlft"))) / "builtin"
    return f"builtin:{Path(location).name}" if Path(location).parent == own else location


def check_model_folder(path: Path, name: str) -> None:
    """Refuses what `save_pretrained` cannot have written; loads nothing."""
    hint = "Give the directory that `save_pretrained` wrote."
    if not path.is_dir():
        raise BaseModelError(f"base.model: {name!r} is a file, not a model's directory.", hint)
    if not (path / "config.json").is_file():
        raise BaseModelError(f"base.model: {name!r} is no model: it has no config.json.", hint)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"base.model: config.json in {name!r} cannot be read: {error}.", hint) from error
    if not isinstance(config, dict):
        raise BaseModelError(f"base.model: config.json in {name!r} holds no model's settings.", hint)
    if not any(True for pattern in WEIGHTS for _ in path.glob(pattern)):
        raise BaseModelError(f"base.model: {name!r} holds no weights (*.safetensors or *.bin).", hint)


def is_dataset_id(path: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a path that is not here can be a dataset's id on the Hub.

    Something with a file's suffix is a missing file, and so is something in a folder that is here.
    """
    place = Path(path)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) or place.suffix.lower() in suffixes:
        return False
    return len(place.parts) == 1 or not place.parent.is_dir()


@contextmanager
def offline_unless_reachable(*modules: Any) -> Iterator[bool]:
    """Lets the Hub's clients read their cache alone while the Hub is out of reach.

    Without it they retry every file for half a minute before they fail.

    Args:
        modules: more modules with a copy of `HF_HUB_OFFLINE` (`datasets.config`).

    Yields:
        False if the Hub is out of reach and nobody asked for that with HF_HUB_OFFLINE.
    """
    from huggingface_hub import constants

    asked = constants.HF_HUB_OFFLINE
    reachable = asked or is_reachable(constants.ENDPOINT)
    places: tuple[Any, ...] = (constants, *modules)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places if not reachable else ():
            place.HF_HUB_OFFLINE = True
        yield reachable
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def is_reachable(endpoint: str) -> bool:
    """Whether a server answers, with any status; goes through the proxies of the environment."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        # A certificate that Python does not know may be known to the Hub's client.
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
