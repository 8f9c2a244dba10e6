"""Checkpoints of training: what a run needs to go on, bound to its configuration and its store, with a digest of itself."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runs.artifact_folder import digest
from calmrl_lab.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

# The digest stands behind the file of torch.save, in as many characters.
_MARK = b"\nsha256:"
_TRAILER = len(_MARK) + 64
_HINT = "train the run again: the same command without --resume"


def write_checkpoint(run: RunFolder, state: dict[str, Any], store_digest: str) -> None:
    """Write state.pt: `state` (tensors, numbers and text), the configuration of the run and the store that it belongs to."""
    import torch

    buffer = io.BytesIO()
    logged = run.read_bytes(run.METRICS)
    about = {"config": run.config_digest(), "store": store_digest, "metrics_bytes": len(logged), "metrics": digest(logged)}
    torch.save({**state, **about}, buffer)
    payload = buffer.getvalue()
    run.write_bytes(run.CHECKPOINT, payload + _MARK + digest(payload).encode())


def read_checkpoint(run: RunFolder, keys: tuple[str, ...], store_digest: str, device: torch.device) -> dict[str, Any] | None:
    """The state in state.pt, tensors on `device`, or None if the run was killed before its first checkpoint. Nothing in the file is executed.

    Raises CalmrlError if the file is damaged, lacks one of `keys`, or belongs to another configuration or another version of the store.
    """
    import torch

    path = run.path / run.CHECKPOINT
    if not path.exists():
        return None
    data = run.read_bytes(run.CHECKPOINT)
    payload, trailer = data[:-_TRAILER], data[-_TRAILER:]
    if trailer != _MARK + digest(payload).encode():
        raise CalmrlError(f"checkpoint '{path}' is damaged: it is not as it was written", hint=_HINT)
    try:
        state = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        raise CalmrlError(f"checkpoint '{path}' cannot be read: {str(error).splitlines()[0]}", hint=_HINT) from None
    known = state if isinstance(state, dict) else {}
    lacking = [key for key in (*keys, "config", "store", "metrics", "metrics_bytes") if key not in known]
    if lacking:
        raise CalmrlError(f"checkpoint '{path}' is of another version: it has no '{lacking[0]}'", hint=_HINT)
    if state["config"] != run.config_digest():
        raise CalmrlError(f"checkpoint '{path}' belongs to another configuration than '{run.path / run.CONFIG}'", hint=_HINT)
    if state["store"] != store_digest:
        raise CalmrlError(f"the store of run '{run.path}' has changed since checkpoint '{path}' was written", hint=_HINT)
    return dict(state)


def remove_checkpoint(run: RunFolder) -> None:
    """Remove state.pt of a finished run, most of what its folder weighs; nothing happens without one."""
    (run.path / run.CHECKPOINT).unlink(missing_ok=True)


def rewind_metrics(run: RunFolder, state: dict[str, Any] | None) -> None:
    """Cut metrics.jsonl back to what it held at the checkpoint `state`; to nothing without one. Raises CalmrlError if that was changed since."""
    if state is None:
        (run.path / run.METRICS).unlink(missing_ok=True)
        return
    kept = run.read_bytes(run.METRICS)[: state["metrics_bytes"]]
    if digest(kept) != state["metrics"]:
        raise run.damaged(run.METRICS, f"it does not begin with what it held when {run.CHECKPOINT} was written")
    run.write_bytes(run.METRICS, kept)
