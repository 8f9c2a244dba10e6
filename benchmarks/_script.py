"""A benchmark as a script of its own: what cannot be done is said in one sentence, with the exit code of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console


def run(main: Callable[[], None]) -> None:
    """`main`, with a CalmrlError as a sentence and its exit code."""
    try:
        main()
    except CalmrlError as error:
        console.note(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
        sys.exit(error.exit_code)
