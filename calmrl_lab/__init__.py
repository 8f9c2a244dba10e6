"""calmrl-lab: align many modalities over cached features when some of them are missing (CalMRL, arXiv 2511.12034)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Resolved on first use, so that `calmrl-lab --help` does not import torch.
_HOME = {
    "FeatureStore": "calmrl_lab.store",
    "PPCA": "calmrl_lab.imputers.ppca",
    "train_heads": "calmrl_lab.training.train",
    "evaluate": "calmrl_lab.evaluation.evaluate",
    "evaluate_matrix": "calmrl_lab.evaluation.score_matrix",
    "Run": "calmrl_lab.runs.run",
    "AlignmentModel": "calmrl_lab.model.alignment_model",
    "CalmrlError": "calmrl_lab.errors",
}
__all__ = ["PPCA", "AlignmentModel", "CalmrlError", "FeatureStore", "Run", "evaluate", "evaluate_matrix", "train_heads"]

if TYPE_CHECKING:
    from calmrl_lab.errors import CalmrlError
    from calmrl_lab.evaluation.evaluate import evaluate
    from calmrl_lab.evaluation.score_matrix import evaluate_matrix
    from calmrl_lab.imputers.ppca import PPCA
    from calmrl_lab.model.alignment_model import AlignmentModel
    from calmrl_lab.runs.run import Run
    from calmrl_lab.store import FeatureStore
    from calmrl_lab.training.train import train_heads


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'calmrl_lab' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    # Without the modules and names that this file needs for itself.
    return sorted({name for name in globals() if name.startswith("__")} | set(__all__))
