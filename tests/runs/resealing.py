"""For tests that change the files of a run by hand: the digests made anew, as if the run had written what is there now."""

import json
from pathlib import Path

from calmrl_lab.runs.artifact_folder import digest
from calmrl_lab.runs.run import Run


def reseal(path: Path, **summary: object) -> Run:
    """The run at `path` with records that cover its files as they are; `summary` is laid over its summary."""
    run = Run(path)
    run.finish({**values_of(path / run.SUMMARY), **summary})
    tables = {table.name: digest(table.read_bytes()) for table in path.glob("*.parquet")}
    run.write_record(run.EVALUATION, {**values_of(path / run.EVALUATION), "files": tables})
    return Run(path)


def values_of(record: Path) -> dict:
    """The values of a record without its digests; empty if there is none."""
    values = json.loads(record.read_text()) if record.exists() else {}
    return {key: value for key, value in values.items() if key not in ("files", "checksum", "of")}
