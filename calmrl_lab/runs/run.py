"""A run: its folder, and what it learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from calmrl_lab.model.alignment_model import AlignmentModel


class Run(RunFolder):
    """One run: its folder, and what it learned."""

    def model(self) -> AlignmentModel:
        """What this run learned, on the CPU. Raises CalmrlError for a run that has not finished, or whose model is absent or damaged."""
        from calmrl_lab.model.alignment_model import AlignmentModel

        if not self.finished():
            raise CalmrlError(
                f"run '{self.path}' has not finished", hint=f"go on with: calmrl-lab train-heads --resume {self.path}"
            )
        return AlignmentModel.load(self)
