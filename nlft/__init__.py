"""nlft: continual finetuning of frozen language models, with forgetting measured.

`import nlft` makes nlft's pathways known to PEFT, at once if `peft` is already imported, else at the moment
it is; until then neither torch nor peft is loaded.
"""

from __future__ import annotations

from typing import Any

import wrapt

__version__ = "0.1.0"


def _register(_peft: object) -> None:
    from nlft.pathways.registry import register_pathways

    register_pathways()


wrapt.register_post_import_hook(_register, "peft")


def __getattr__(name: str) -> Any:
    # Its module imports torch, so it waits until somebody asks.
    if name == "session":
        from nlft.sessions import session

        return session
    if name == "Learner":
        from nlft.learner import Learner

        return Learner
    if name == "load":
        from nlft.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
