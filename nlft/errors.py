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


class DamagedError(CheckpointError):
    """A checkpoint that is there and cannot be read."""


def combined(problems: list[NlftError]) -> NlftError:
    """Several errors as one; a hint that they share is said once."""
    if len(problems) == 1:
        return problems[0]
    if len({problem.hint for problem in problems}) == 1:
        return RecipeError([problem.message for problem in problems], problems[0].hint)
    return RecipeError([str(problem) for problem in problems])


def reason(error: BaseException) -> str:
    """What a library says, as one sentence: its first line, and what belongs to it when that ends in a colon.

    Lines that list something are joined until one ends the sentence.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    count = 1
    while count < len(lines) and lines[count - 1].endswith((":", ",", " or", " and", " to")):
        count += 1
    if count > 1:  # a list goes on to the end of its last sentence
        while count < len(lines) and not lines[count - 1].endswith((".", "!", "?")):
            count += 1
    said = " ".join(lines[:count]).rstrip()
    return said if len(said) <= 600 else f"{said[:597]}..."
