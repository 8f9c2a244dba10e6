"""Command groups of the command line: parse, call the Python API, print."""
