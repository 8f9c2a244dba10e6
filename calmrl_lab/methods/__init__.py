"""Methods: named sets of training settings, one YAML file each; a new one is a new file in this folder."""

from calmrl_lab.methods.method import Method, describe, load, names

__all__ = ["Method", "describe", "load", "names"]
