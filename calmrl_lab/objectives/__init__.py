"""Alignment objectives, one file a system: (embeddings, mask, imputed) -> named loss terms."""

from calmrl_lab.objectives.terms.base import Objective
from calmrl_lab.registry import Registry, exported

objectives = Registry("objective", "calmrl_lab.objectives")
__getattr__, __dir__ = exported(objectives)

__all__ = ["Objective", "objectives"]
