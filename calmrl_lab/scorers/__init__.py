"""Scorers: how similar a query of one modality is to an item that shows any subset of the others. One file per scorer."""

from calmrl_lab.registry import Registry, exported

scorers = Registry("scorer", "calmrl_lab.scorers")
__getattr__, __dir__ = exported(scorers)
