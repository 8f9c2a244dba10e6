"""Feature store: rows x modalities of frozen features on disk, with a reason for each gap."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Resolved on first use, so that commands which only name the store stay quick.
_HOME = {
    "FeatureStore": "calmrl_lab.store.reader",
    "write_store": "calmrl_lab.store.writer",
    "ModalitySpec": "calmrl_lab.store.schema",
    "Reason": "calmrl_lab.store.schema",
    "offsets_of": "calmrl_lab.store.schema",
    "verify": "calmrl_lab.store.verification",
    "describe": "calmrl_lab.store.description",
    "merge": "calmrl_lab.store.convert.merge",
    "import_features": "calmrl_lab.store.convert.import_arrays",
    "export_store": "calmrl_lab.store.convert.export",
    "restore": "calmrl_lab.store.convert.restore",
    "assign_splits": "calmrl_lab.store.splits",
    "group_by_links": "calmrl_lab.store.splits",
}
__all__ = [
    "FeatureStore",
    "ModalitySpec",
    "Reason",
    "assign_splits",
    "describe",
    "export_store",
    "group_by_links",
    "import_features",
    "merge",
    "offsets_of",
    "restore",
    "verify",
    "write_store",
]

if TYPE_CHECKING:
    from calmrl_lab.store.convert.export import export_store
    from calmrl_lab.store.convert.import_arrays import import_features
    from calmrl_lab.store.convert.merge import merge
    from calmrl_lab.store.convert.restore import restore
    from calmrl_lab.store.description import describe
    from calmrl_lab.store.reader import FeatureStore
    from calmrl_lab.store.schema import ModalitySpec, Reason, offsets_of
    from calmrl_lab.store.splits import assign_splits, group_by_links
    from calmrl_lab.store.verification import verify
    from calmrl_lab.store.writer import write_store


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'calmrl_lab.store' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
