"""Writes docs/api.md and the list of modules in docs/architecture.md from docstrings: python docs/make_api.py (a test says when to)."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Sections of the page: (heading, module, names).
SHOWN: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Stores", "calmrl_lab.store", ("FeatureStore", "write_store", "ModalitySpec")),
    ("Errors", "calmrl_lab.errors", ("CalmrlError", "WorkFailedError")),
    ("Extraction", "feature_extractors.extraction", ("extract",)),
    ("Training", "calmrl_lab.training", ("train_heads", "train")),
    ("Configuration", "calmrl_lab.config", ("TrainConfig",)),
    ("Closed form", "calmrl_lab.ppca_start", ("start_by_ppca", "StartOptions")),
    ("Closed form", "calmrl_lab.latent", ("LatentMaps",)),
    ("Evaluation", "calmrl_lab.evaluation", ("evaluate", "Evaluation")),
    ("Evaluation", "calmrl_lab.retrieval", ("rank_both", "rank", "recall")),
    ("Evaluation", "calmrl_lab.comparison", ("compare_runs",)),
    ("Imputation", "calmrl_lab.imputers.base", ("Imputer",)),
    ("Imputation", "calmrl_lab.imputers.ppca", ("PPCA",)),
    ("Imputation", "calmrl_lab.imputers.ppca_auto", ("AutoPPCA",)),
    ("Imputation", "calmrl_lab.imputers.statistics", ("Statistics",)),
    ("Imputation", "calmrl_lab.completion", ("complete_store",)),
    ("Anchors", "calmrl_lab.spectrum", ("spectrum",)),
    (
        "Anchors",
        "calmrl_lab.anchors",
        (
            "anchor_shift", "calibrated_shift", "ShiftTerms", "shift_terms", "lower_printed", "lower_ratio", "lower_sandwich", "upper_sandwich",
            "upper_gap", "upper_printed", "upper_rotation", "upper_observed_only", "helpful_error", "helpful_error_printed",
            "certified_helpful", "anchor_report",
        ),
    ),
    ("Objectives", "calmrl_lab.objectives._base", ("Objective",)),
    ("Scorers", "calmrl_lab.scorers.base", ("Scorer", "make_scorer")),
    ("Search", "calmrl_lab.gallery", ("build_gallery", "Gallery")),
    ("Experiments", "calmrl_lab.experiments", ("read_experiment", "Experiment", "Method", "Variant")),
    ("Reports", "calmrl_lab.reporting.report", ("write_report",)),
)  # fmt: skip
DOCS = Path(__file__).parent
PAGE = DOCS / "api.md"
ARCHITECTURE = DOCS / "architecture.md"
_MARKS = ("<!-- modules: begin -->", "<!-- modules: end -->")


def page() -> str:
    """The text of docs/api.md."""
    parts = [
        "# Python reference\n\nWritten by `docs/make_api.py` from the docstrings. Shapes are in brackets, True in a mask means observed.\n"
    ]
    last = None
    for heading, module, names in SHOWN:
        if heading != last:
            parts.append(f"## {heading}\n")
        last = heading
        for name in names:
            parts.append("\n".join(_entry(module, name, getattr(importlib.import_module(module), name))))
    return "\n".join(parts).rstrip() + "\n"


def _entry(module: str, name: str, thing: Any) -> Iterator[str]:
    yield f"### `{module}.{name}`\n"
    yield from _described(name, thing)
    if inspect.isclass(thing):
        for inner, method in vars(thing).items():
            if inner.startswith("_") or (
                not isinstance(method, (classmethod, staticmethod, property)) and not inspect.isfunction(method)
            ):
                continue
            plain = getattr(thing, inner) if not isinstance(method, property) else method.fget
            if inspect.getdoc(plain):
                yield f"#### `{name}.{inner}`\n"
                yield from _described(inner, plain, isinstance(method, property))


def _described(name: str, thing: Any, attribute: bool = False) -> Iterator[str]:
    fields = getattr(thing, "model_fields", None)
    if fields is None and not attribute and callable(thing):
        yield f"```text\n{name}{_signature(thing)}\n```\n"
    yield f"{(inspect.getdoc(thing) or '').strip()}\n"
    for key, field in (fields or {}).items():
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        yield f"* `{key}` ({default}): {field.description}"
    if fields:
        yield ""


def _signature(thing: Any) -> str:
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return "(...)"


def architecture() -> str:
    """The text of docs/architecture.md with its list of modules made anew."""
    before, _, rest = ARCHITECTURE.read_text(encoding="utf-8").partition(_MARKS[0])
    _, _, after = rest.partition(_MARKS[1])
    return f"{before}{_MARKS[0]}\n\n{modules()}\n\n{_MARKS[1]}{after}"


def modules() -> str:
    """A line a module or folder of both packages: what its docstring says first."""
    lines = []
    for package in ("calmrl_lab", "feature_extractors"):
        lines += ["", f"**{package}/**", ""]
        for path in sorted((DOCS.parent / package).iterdir()):
            source = path if path.suffix == ".py" else path / "__init__.py"
            if source.is_file() and not path.name.startswith("_"):
                said = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
                name = path.name if path.suffix == ".py" else f"{path.name}/"
                lines.append(f"* `{name}`: {' '.join(said.split())}")
    return "\n".join(lines).strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    ARCHITECTURE.write_text(architecture(), encoding="utf-8")
    print(f"written to {PAGE} and {ARCHITECTURE}")
