"""Alignment objectives, one file per system: (embeddings, mask, imputed) -> named loss terms."""

from typing import TYPE_CHECKING, Any

from calmrl_lab.registry import Registry, exported

if TYPE_CHECKING:
    from calmrl_lab.objectives.terms.base import Objective

objectives = Registry("objective", "calmrl_lab.objectives")
_plug_in, __dir__ = exported(objectives)

__all__ = ["Objective", "objectives"]


def __getattr__(name: str) -> Any:
    # The base class brings torch, which listing names does not need.
    if name == "Objective":
        from calmrl_lab.objectives.terms.base import Objective

        return Objective
    return _plug_in(name)
