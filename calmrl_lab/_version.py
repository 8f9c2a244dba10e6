"""The version of the package: read by the build, by `calmrl-lab --version` and by what a run records."""

__version__ = "0.1.0"
