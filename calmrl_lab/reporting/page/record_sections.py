"""Sections of the page on the protocol, the data, the runs and the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import yaml

from calmrl_lab.config import SIMILARITY_WORDS
from calmrl_lab.reporting.page.context import Findings, Section
from calmrl_lab.reporting.page.result_sections import chart, details
from calmrl_lab.reporting.results.collect import Gathered, Method
from calmrl_lab.runtime.console import listed

_REASONS = (
    ("absent", "absent", "absent by nature"),
    ("failed", "failed", "failed"),
    ("not extracted", "skipped", "not extracted"),
)


def record_sections(found: Findings, files: Sequence[str], environment: Any) -> list[Section]:
    """How it was measured, the data, the runs with their settings, and `files` to take away."""
    return [
        Section(
            "protocol", "How it was measured", _render(environment, "protocol", {"protocol": protocol(found)}), short="Method"
        ),
        Section("data", "The data", _render(environment, "data", _data(found)), short="Data"),
        Section("runs", "Runs and settings", _trained(found) + _render(environment, "runs", _runs(found)), short="Runs"),
        Section(
            "files",
            "Files",
            details("All files", _files(files), f"{len(files)} files"),
            "The same tables and figures for a paper, a spreadsheet or a script.",
        ),
    ]


def _render(environment: Any, name: str, context: dict[str, Any]) -> str:
    return str(environment.get_template(f"{name}.html.j2").render(**context))


def protocol(found: Findings) -> list[tuple[str, str]]:
    """What was evaluated and how, as pairs of name and value."""
    gathered, recalls = found.gathered, found.recalls
    rows = [("dataset", str(gathered.store.get("dataset") or "not recorded")), ("split", gathered.split)]
    results = [found for result in recalls.methods for found in result.directions.values()]
    if results:
        asked = {name for direction in recalls.directions for name in direction}
        queries, galleries = sorted({r.queries for r in results}), sorted({r.gallery for r in results})
        rows += [
            (
                "directions",
                f"{len(recalls.directions)}: every query modality against every other as gallery"
                if len(recalls.directions) == len(asked) * (len(asked) - 1) > 2
                else ", ".join(f"{a} → {b}" for a, b in recalls.directions),
            ),
            ("queries per direction", _range(queries)),
            ("gallery", f"{_range(galleries)} candidates, nothing hidden from it; the query's own item is the positive"),
            ("resampling unit", f"{len(recalls.resamples.groups)} groups of items (near duplicates share a group), and seeds"),
        ]
        chance = next(iter(recalls.methods)).chance
        rows.append(("chance level", ", ".join(f"Recall@{depth} {100 * value:.2f} %" for depth, value in chance.items())))
    rows += [
        ("hidden in training", ", ".join(dict.fromkeys(method.scenario for method in gathered.methods)) or "unknown"),
        ("similarity", f"{_similarity(gathered)}; no re-ranking, no dual softmax"),
        ("ties", "a tied candidate counts with the probability of a hit under a random order of the ties"),
        ("median rank", "median over queries and seeds of the expected rank, best positive"),
        ("seeds", ", ".join(map(str, sorted({seed for method in gathered.methods for seed in method.seeds}))) or "none"),
        ("intervals", f"95 %, percentile bootstrap, {recalls.resamples.replicates} resamples of groups and of seeds"),
        ("differences", "paired by query and seed; variance clustered by groups and by seeds, Student's t (one seed: bootstrap and sign flips)"),
        ("p-values", f"two-sided, corrected by Holm's rule for {len(found.compared.pairs)} comparisons"),
        ("model selection", "on the validation split only"),
    ]  # fmt: skip
    return rows


def _similarity(gathered: Gathered) -> str:
    """What pairs were compared by, and by whom where methods differ."""
    labels: dict[str, list[str]] = {}
    for method in gathered.methods:
        for name in {str(run.scores["scorer"].iloc[0]) if "scorer" in run.scores.columns else "cosine" for run in method.runs}:
            labels.setdefault(name, []).append(method.label)
    if len(labels) == 1:
        (only,) = labels
        return SIMILARITY_WORDS.get(only, only)
    return "; ".join(f"{SIMILARITY_WORDS.get(name, name)} ({listed(own)})" for name, own in labels.items())


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _data(found: Findings) -> dict[str, Any]:
    store = found.gathered.store
    splits = store.get("splits") or {}
    rows = [
        ("dataset", store.get("dataset")),
        ("items", f"{store['items']:,}" if isinstance(store.get("items"), int) else None),
        ("splits", ", ".join(f"{name} {count}" for name, count in splits.items())),
        ("licence", store.get("licence")),
        ("attribution", store.get("attribution")),
        ("store", store.get("path")),
        ("digest", store.get("digest")),
    ]
    total = int(store.get("items") or 0)
    missing = store.get("missing") or {}
    modalities = [_modality(store, name, missing[name], total) for name in missing] if total else []
    patterns = dict(list((store.get("patterns") or {}).items())[:24])
    names = list(store.get("modalities") or [])
    shown_names = list(dict.fromkeys(m for method in found.gathered.methods for m in _counts(method).get("observed", {})))
    return {
        "provenance": [(name, str(value)) for name, value in rows if value],
        "modalities": modalities,
        "patterns": [
            {
                "dots": [name in pattern.split("+") for name in names],
                "count": f"{count:,}",
                "share": round(100 * count / max(total, 1), 2),
                "words": f"{count} items with {pattern or 'nothing'}",
            }
            for pattern, count in patterns.items()
        ],
        "pattern_modalities": names,
        "shown": [_shown(method, shown_names) for method in found.gathered.methods if _counts(method)],
        "shown_modalities": shown_names,
    }


def _modality(store: dict[str, Any], name: str, gaps: dict[str, int], total: int) -> dict[str, Any]:
    observed = total - sum(gaps.values())
    parts = [{"kind": "observed", "share": round(100 * observed / total, 2)}]
    parts += [{"kind": kind, "share": round(100 * gaps.get(key, 0) / total, 2)} for key, kind, _ in _REASONS if gaps.get(key)]
    words = [f"{observed} observed", *(f"{gaps[key]} {text}" for key, _, text in _REASONS if gaps.get(key))]
    return {
        "name": name,
        "encoder": (store.get("encoders") or {}).get(name, ""),
        "dimension": (store.get("dims") or {}).get(name, ""),
        "observed": f"{observed:,}",
        "parts": parts,
        "words": f"{name}: {', '.join(words)}",
    }


def _counts(method: Method) -> dict[str, Any]:
    return dict(method.runs[0].summary.get("counts") or {}) if method.runs else {}


def _shown(method: Method, names: Sequence[str]) -> dict[str, Any]:
    counts = _counts(method)
    return {
        "label": method.label,
        "scenario": method.scenario,
        "total": counts.get("train_items", ""),
        "complete": counts.get("complete", ""),
        "counts": [counts.get("observed", {}).get(name, 0) for name in names],
    }


def _runs(found: Findings) -> dict[str, Any]:
    methods = [*found.gathered.methods, *found.gathered.absent]
    first = next((run.environment for method in methods for run in method.runs if run.environment), {})
    summary = ", ".join(f"{key} {first[key]}" for key in ("calmrl_lab", "python", "platform") if first.get(key))
    return {
        "gathered": found.gathered,
        "methods": [_method(method) for method in methods],
        "environment": {"summary": summary, "text": yaml.safe_dump(first, sort_keys=False, allow_unicode=True)}
        if first
        else None,
    }


def _trained(found: Findings) -> str:
    return chart(found.figures["training"]) if "training" in found.figures else ""


def _method(method: Method) -> dict[str, Any]:
    count = len(method.runs)
    config = {key: value for key, value in method.runs[0].config.items() if key != "seed"} if method.runs else method.settings
    tuning = "; ".join(
        f"{json.dumps(row.get('settings', {}), sort_keys=True)}: MRR {row.get('validation_mrr', float('nan')):.4f}"
        for row in method.tuning
    )
    runs = [
        {
            "name": run.name, "seed": run.seed, "epochs": run.summary.get("epochs", ""), "best_epoch": run.summary.get("best_epoch", ""),
            "validation": _number(run.summary.get("validation_mrr"), 4), "seconds": _number(run.summary.get("seconds"), 1),
        }
        for run in method.runs
    ]  # fmt: skip
    return {
        "label": method.label,
        "what": f"{method.role}, {count} run{'s' if count != 1 else ''}",
        "runs": runs,
        "tuning": tuning,
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    }


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ""


def _files(files: Sequence[str]) -> str:
    """One row per table or figure, with a link per format."""
    formats: dict[str, list[str]] = {}
    for name in files:
        formats.setdefault(name.rsplit(".", 1)[0], []).append(name)
    rows = "".join(
        f'<tr><th scope="row">{escape(stem)}</th><td>'
        + "".join(f'<a href="{escape(name)}">{escape(name.rsplit(".", 1)[1])}</a>' for name in names)
        + "</td></tr>"
        for stem, names in formats.items()
    )
    head = '<thead><tr><th scope="col">what</th><th scope="col">as</th></tr></thead>'
    return f'<div class="scroll"><table class="files">{head}<tbody>{rows}</tbody></table></div>'
