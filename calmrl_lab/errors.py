"""The errors a user can meet: one sentence on what is wrong and where, one hint on what to do."""

from __future__ import annotations

import re


class CalmrlError(Exception):
    """The request makes no sense as it stands (exit code 2).

    `message` says what is wrong and where, with what was got and what was expected; `hint` says what to do next.

    >>> from calmrl_lab.errors import CalmrlError
    >>> str(CalmrlError("there is no store 'x.zarr'"))
    "there is no store 'x.zarr'"
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        # Exceptions cross process borders (extraction workers, experiment jobs); the default would drop the hint.
        return type(self), (self.message, self.hint)


class WorkFailedError(CalmrlError):
    """The request made sense, but the work could not be finished (exit code 1)."""

    exit_code = 1


class MissingExtraError(CalmrlError):
    """An optional package is not installed; the hint names the extra that brings it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)


def missing_extra(package: str, extra: str, needed_for: str) -> MissingExtraError:
    """The error for an optional `package` that is not importable."""
    return MissingExtraError(
        f"the package '{package}' is not installed, and {needed_for} needs it",
        hint=f"pip install 'calmrl-lab[{extra}]'",
    )


def complaint(error: Exception) -> str:
    """An exception in one line that is the same in every run: without addresses in memory."""
    said = re.sub(r"0x[0-9a-fA-F]{6,}", "0x...", " ".join(str(error).split()))
    return f"{type(error).__name__}: {said}"[:300] if said else type(error).__name__
