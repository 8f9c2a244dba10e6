"""Former names of options, settings and their values, each with the name in use, for the hint of a refusal."""

from __future__ import annotations

# Options of the command line, by command; the first entry holds for every command.
OPTIONS: dict[str, dict[str, str]] = {
    "": {"--score": "--similarity"},
    "classify": {"--kind": "--classifier"},
    "extract": {"--keep-tokens": "--save-rerank-tokens", "--set-encoder": "--encoder-option"},
    "impute": {"--fit-on": "--fit-split", "--impute": "--method"},
    "index": {
        "--calibrate": "--impute-gaps",
        "--kind": "--index-type",
        "--set": "--nlist (ivf), --m or --ef-construction (hnsw)",
    },
    "report": {"--also": "--also-report"},
    "search": {"--effort": "--nprobe (ivf) or --ef-search (hnsw)"},
    "train-heads": {"--gate": "--risk-control"},
}
# Settings of a run, as configuration files, `--set` and Python name them.
SETTINGS = {"score": "similarity", "gate": "risk_control", "gate_level": "risk_level"}
# Values of settings, and names of plug-ins.
VALUES = {"overlap": "likelihood-ratio", "both": "sum", "likelihood": "imputer-likelihood"}


def hint(name: str, names: dict[str, str]) -> str | None:
    """The hint for a name that was in use once, or None.

    >>> hint("gate", SETTINGS)
    'it is now called risk_control'
    """
    return f"it is now called {names[name]}" if name in names else None


def option_hint(words: list[str]) -> tuple[str, str] | None:
    """The first option among the words of a command line that was in use once, and the hint for it; None if there is none.

    >>> option_hint(["report", "--runs", "runs/demo", "--also=runs/digits"])
    ('--also', 'it is now called --also-report')
    """
    command = next((word for word in words if not word.startswith("-")), "")
    names = OPTIONS[""] | OPTIONS.get(command, {})
    for word in words:
        option = word.partition("=")[0]
        if found := hint(option, names):
            return option, found
    return None
