"""Errors that a person can act on.

Every failure that a user can cause is an `NlftError`: one sentence that names the key, the value and the
place, and a hint that names the next step. The CLI prints both and exits with 2.
"""

from __future__ import annotations


class NlftError(Exception):
    """A sentence about what is wrong, and a hint about what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class RecipeError(NlftError):
    """One or several errors in a recipe, found before anything ran."""

    def __init__(self, problems: list[str], hint: str = "") -> None:
        super().__init__("\n".join(problems), hint)
        self.problems = problems


class DataError(NlftError):
    """A file or a row that cannot be used; the message names file and line."""


class BaseModelError(NlftError):
    """A base model that cannot be loaded or has no block that a pathway can stand beside."""


class CheckpointError(NlftError):
    """A checkpoint that cannot be written or read; what was on disk before is untouched."""
