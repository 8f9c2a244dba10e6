"""The folder of an experiment: its runs, and experiment.json, which says what was asked, what was chosen and what failed."""

from __future__ import annotations

from typing import Any, ClassVar

from calmrl_lab.runs.artifact_folder import ArtifactFolder


class ExperimentFolder(ArtifactFolder):
    """The folder of an experiment. experiment.json has a checksum of itself, since a report takes methods, labels and roles from it.

    Every run in the folder covers its own files.
    """

    kind: ClassVar[str] = "experiment"
    EXPERIMENT: ClassVar[str] = "experiment.json"
    RECORD: ClassVar[str] = EXPERIMENT

    def hint(self, name: str) -> str:
        return "calmrl-lab experiment writes it anew, and keeps the runs that have finished"

    def write(self, values: dict[str, Any]) -> None:
        """Write experiment.json whole. Raises WorkFailedError if that is not possible; an old one is then as it was."""
        self.write_record(self.EXPERIMENT, values)

    def read(self) -> dict[str, Any]:
        """What experiment.json holds; empty if there is none. Raises CalmrlError if it is damaged or of an older version.

        >>> import tempfile
        >>> folder = ExperimentFolder(tempfile.mkdtemp())
        >>> folder.write({"title": "three methods"})
        >>> folder.read()
        {'title': 'three methods'}
        """
        values = self.read_record(self.EXPERIMENT) or {}
        return {key: value for key, value in values.items() if key != "files"}
