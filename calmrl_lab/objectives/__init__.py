"""Alignment objectives, one file a system: (embeddings, mask, imputed) -> named loss terms."""

from calmrl_lab.objectives.terms.base import Objective
from calmrl_lab.registry import Registry

objectives = Registry("objective", "calmrl_lab.objectives")

__all__ = ["Objective", "objectives"]
