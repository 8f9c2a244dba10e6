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
    ("Training", "calmrl_lab.training.train", ("train_heads", "train")),
    ("Runs", "calmrl_lab.runs.run", ("Run",)),
    ("Models", "calmrl_lab.model.alignment_model", ("AlignmentModel",)),
    ("Models", "calmrl_lab.model.embeddings", ("Embeddings",)),
    ("Models", "calmrl_lab.runs.embed_store", ("embed_store",)),
    ("Configuration", "calmrl_lab.config", ("TrainConfig",)),
    ("Closed form", "calmrl_lab.model.closed_form", ("start_by_ppca", "StartOptions")),
    ("Closed form", "calmrl_lab.ppca.latent_maps", ("LatentMaps",)),
    ("Evaluation", "calmrl_lab.evaluation.evaluate", ("evaluate", "Evaluation")),
    ("Evaluation", "calmrl_lab.evaluation.score_matrix", ("evaluate_matrix", "MatrixEvaluation")),
    ("Evaluation", "calmrl_lab.evaluation.retrieval", ("rank_both", "recall")),
    ("Evaluation", "calmrl_lab.evaluation.comparison", ("compare_runs",)),
    ("Imputation", "calmrl_lab.imputers.base", ("Imputer",)),
    ("Imputation", "calmrl_lab.imputers.ppca", ("PPCA",)),
    ("Imputation", "calmrl_lab.imputers.ppca_auto", ("AutoPPCA",)),
    ("Imputation", "calmrl_lab.ppca.statistics", ("Statistics",)),
    ("Imputation", "calmrl_lab.completion.fill_store", ("complete_store",)),
    ("Anchors", "calmrl_lab.linalg.spectrum", ("spectrum",)),
    ("Anchors", "calmrl_lab.anchors.shift", ("anchor_shift", "calibrated_shift", "ShiftTerms", "shift_terms")),
    (
        "Anchors",
        "calmrl_lab.anchors.bounds",
        (
            "lower_printed", "lower_ratio", "lower_sandwich", "upper_sandwich",
            "upper_gap", "upper_printed", "upper_rotation", "upper_observed_only", "helpful_error", "helpful_error_printed",
            "certified_helpful", "anchor_report",
        ),
    ),
    ("Objectives", "calmrl_lab.objectives.terms.base", ("Objective",)),
    ("Scorers", "calmrl_lab.scorers.base", ("Scorer", "make_scorer")),
    ("Search", "calmrl_lab.search.index_folder", ("build_gallery", "Gallery")),
    ("Experiments", "calmrl_lab.experiments.loading", ("read_experiment",)),
    ("Experiments", "calmrl_lab.experiments.spec", ("Experiment", "Method", "Variant")),
    ("Reports", "calmrl_lab.reporting.report", ("write_report",)),
)  # fmt: skip
DOCS = Path(__file__).parent
PAGE = DOCS / "api.md"
ARCHITECTURE = DOCS / "architecture.md"
# Folders whose files `calmrl-lab list` or `calmrl-lab --help` shows.
_PLUG_INS = ("objectives", "imputers", "scorers", "encoders", "datasets", "commands")
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
    """Both packages as a nested list: what the docstring of each folder and of each module in it says first."""
    lines = []
    for package in ("calmrl_lab", "feature_extractors"):
        lines += ["", f"**{package}/**", "", *_listed(DOCS.parent / package, "")]
    return "\n".join(lines).strip()


def _listed(folder: Path, indent: str) -> Iterator[str]:
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        source = path if path.suffix == ".py" else path / "__init__.py"
        if not source.is_file() or path.name.startswith("_"):
            continue
        said = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        yield f"{indent}* `{path.name if path.is_file() else f'{path.name}/'}`: {' '.join(said.split())}"
        if path.is_dir() and path.name not in _PLUG_INS:
            yield from _listed(path, f"{indent}  ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    ARCHITECTURE.write_text(architecture(), encoding="utf-8")
    print(f"written to {PAGE} and {ARCHITECTURE}")
