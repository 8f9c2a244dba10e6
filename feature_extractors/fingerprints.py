"""Fingerprints of encoders: what must be equal for two features to be comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(weights: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """sha256 over the digests of the weight files and the canonical JSON of architecture and preprocessing settings."""
    canonical = json.dumps({"weights": dict(weights), "settings": dict(settings)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
