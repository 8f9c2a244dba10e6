"""VAST's encoders on a GPU, at full size with random weights: precision, speed, out-of-memory, and an extraction that is killed.

    calmrl-lab bench extract_gpu                 three to four minutes on one GPU; needs the extras media and vast, 6 GB of disk
    calmrl-lab bench extract_gpu --weights DIR   the same with released weights
    calmrl-lab bench extract_gpu --quick         two thin layers and short clips, also without a GPU: shows that it runs

Weights in the released layout and clips laid out as MSR-VTT are made first, so nothing is downloaded. What is measured is printed as it
comes (and kept by --out); a stage that fails is recorded and the next one runs; no stage begins after --budget seconds. Without a GPU, and
without --quick, it says what it would measure and stops.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _made_clips import write_msrvtt
from _random_release import THIN, write_release

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import console
from calmrl_lab.store import FeatureStore
from feature_extractors.datasets import datasets
from feature_extractors.encoders import encoders
from feature_extractors.encoders.vast.batching import PRECISIONS
from feature_extractors.encoders.vast.checkpoint import Checkpoint, load_checkpoint
from feature_extractors.encoders.vast.encoder import VastEncoder
from feature_extractors.encoders.vast.networks.architecture import PUBLISHED
from feature_extractors.encoders.vast.rerank.matching import Matcher
from feature_extractors.protocols import Item
from feature_extractors.shards.shard import Part
from feature_extractors.workers.prepare import attempt

MEASURED = """measured here on a GPU:
  frames, slices and captions per second of the three encoders, in fp32 and bf16 (estimated for an H100 in bf16: 655 frames/s)
  cosine between bf16 and fp32 features of each modality (at least 0.999 is wanted), and between the GPU's and the CPU's
  device memory at its highest, and the batch that is left after running out of memory
  matching: pairs per second with keys and values cached once per clip, 2382 condition tokens
  a whole extraction: who waited for whom, and whether one that was killed goes on to the same bytes"""
TARGET = 0.999
UNITS = {"vision": "frames", "audio": "slices", "caption": "captions"}
_GIB = 2**30


@dataclass(frozen=True)
class Scale:
    """How much is measured: items of a batch, clips of the extraction, how different and how long these are, seconds a measurement."""

    batch: int
    clips: int
    distinct: int
    frames: int
    size: tuple[int, int]
    seconds: float
    block: int
    workers: int | None


FULL = Scale(batch=32, clips=384, distinct=12, frames=250, size=(640, 360), seconds=2.0, block=64, workers=None)
QUICK = Scale(batch=4, clips=24, distinct=3, frames=30, size=(96, 64), seconds=0.05, block=2, workers=1)
# Finished blocks after which the extraction is killed; the times of all but the first, which loads the weights, are those of a long run.
_KEPT = 3


class Bench:
    """The stages, over one folder of weights and one of clips."""

    def __init__(self, folder: Path, weights: Path | None, device: str, scale: Scale, quick: bool) -> None:
        self.folder, self.device, self.scale, self.quick = folder, device, scale, quick
        self.weights = weights or folder / "weights"
        self.media = folder / "media"
        self.made = weights is None
        self._prepared: dict[str, list[np.ndarray]] = {}

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(self.weights)

    @cached_property
    def items(self) -> Sequence[Item]:
        return datasets.get("msrvtt")(self.media).manifest().items

    def machine(self) -> dict[str, Any]:
        about: dict[str, Any] = {"device": self.device, "torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
        if self.on_gpu:
            about |= {
                "device": torch.cuda.get_device_name(self.device),
                "memory_gib": round(torch.cuda.get_device_properties(self.device).total_memory / _GIB, 1),
            }
        return about

    def files(self) -> dict[str, Any]:
        """Weights and clips, made and read."""
        found: dict[str, Any] = {}
        if self.made:
            begun = time.perf_counter()
            size = write_release(self.weights, THIN if self.quick else PUBLISHED, self.device)
            found |= {"weights_gib": round(size / _GIB, 2), "weights_written_s": _since(begun)}
        begun = time.perf_counter()
        s = self.scale
        write_msrvtt(self.media, s.clips, s.distinct, s.frames, s.size, load_vocabulary(self.weights))
        found |= {"clips": s.clips, "clips_written_s": _since(begun)}
        begun = time.perf_counter()
        return found | {"tensors": len(self.checkpoint.tensors), "weights_checked_s": _since(begun)}

    def encoder(self, modality: str, precision: str, device: str | None = None, rows: int | None = None) -> VastEncoder:
        """The encoder of the preset `vast-paper`, over weights that are read once."""
        name = datasets.get("msrvtt").presets["vast-paper"][modality]
        made = encoders.get(name)(device=device or self.device, weights=self.weights, precision=precision, batch_rows=rows)
        made.__dict__["checkpoint"] = self.checkpoint
        return made

    def prepared(self, modality: str, count: int) -> list[np.ndarray]:
        """Media of the first `count` items as the encoder takes them; those of the few different clips are prepared once."""
        if modality not in self._prepared:
            encoder = self.encoder(modality, "fp32", "cpu")
            distinct = self.items if modality == "caption" else self.items[: self.scale.distinct]
            made = [attempt(encoder, item.media[modality][0], self.media) for item in distinct]
            self._prepared[modality] = [one for one in made if isinstance(one, np.ndarray)]
            assert len(self._prepared[modality]) == len(made), made
        there = self._prepared[modality]
        return [there[number % len(there)] for number in range(count)]

    def modality(self, modality: str) -> dict[str, Any]:
        """Rows per second and agreement of the two precisions."""
        batch = self.prepared(modality, self.scale.batch * (1 if modality == "vision" else 8))
        count = sum(map(len, batch)) if modality != "caption" else len(batch)
        found: dict[str, Any] = {"rows": count}
        features = {}
        for precision in PRECISIONS:
            made = self.encoder(modality, precision)
            if self.on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            features[precision], seconds = self.timed(lambda made=made: made.encode(batch))
            found[f"{UNITS[modality]}_per_second_{precision}"] = round(count / seconds, 1)
            found[f"batch_{precision}"] = made.pieces.size
            if self.on_gpu:
                found[f"peak_gib_{precision}"] = round(torch.cuda.max_memory_allocated() / _GIB, 2)
            self.say(f"{modality} {precision}: {count / seconds:.1f} {UNITS[modality]}/s")
        lowest, mean = agreement(features["fp32"], features["bf16"])
        return {**found, "lowest_cosine": lowest, "mean_cosine": mean, "cosine_as_wanted": lowest >= TARGET}

    def matching(self) -> dict[str, Any]:
        """50 captions against one clip of 8 frames, a slice and a subtitle."""
        sizes = self.checkpoint.architecture
        count = 8 * sizes.vision.tokens + sizes.audio.slice_frames // 16 * sizes.audio.mel_bins // 16 + 70
        tokens = np.random.default_rng(1).standard_normal((count, sizes.text.width), dtype=np.float32)
        captions = self.prepared("caption", min(50, self.scale.clips))
        found: dict[str, Any] = {"condition_tokens": count}
        scores = {}
        for precision in PRECISIONS:
            matcher = Matcher(self.checkpoint, self.device, precision)
            scores[precision], seconds = self.timed(lambda m=matcher: m.scores(captions, m.keys_values(tokens)))
            found[f"pairs_per_second_{precision}"] = round(len(captions) / seconds, 1)
        return found | {"largest_difference": round(float(np.abs(scores["fp32"] - scores["bf16"]).max()), 5)}

    def out_of_memory(self) -> dict[str, Any]:
        """A batch too large for what is free on the device: it must shrink until it fits, and give the same features."""
        if not self.on_gpu:
            return {"skipped": "needs a GPU"}
        batch = self.prepared("vision", 4 * self.scale.batch)
        rows = sum(map(len, batch))
        made = self.encoder("vision", "bf16", rows=rows)
        few = made.encode(batch[:2])
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        # Room for the input and for the work on a part of it; the rest of the device is taken.
        room = 4 * sum(one.nbytes for one in batch)
        room = min(free, room)
        ballast = torch.empty(free - room, dtype=torch.uint8, device=self.device)
        try:
            many = made.encode(batch)
        finally:
            del ballast
            torch.cuda.empty_cache()
        lowest, _ = agreement(many[:2], few)
        found = {
            "asked": rows,
            "left": made.pieces.size,
            "free_gib": round(room / _GIB, 2),
            "lowest_cosine_with_small_batch": lowest,
        }
        return {**found, "halved": made.pieces.size < rows}

    def extraction(self) -> dict[str, Any]:
        """The command itself, once in one go and once killed in the middle."""
        whole, broken = self.folder / "whole.zarr", self.folder / "broken.zarr"
        begun = time.perf_counter()
        lines = self.extract(whole)
        found: dict[str, Any] = {"clips": self.scale.clips, "precision": "bf16", "seconds": _since(begun)}
        found["profile"] = next((line for line in lines if line.startswith("encoders waited")), "nothing had to be read")
        self.say(found["profile"])
        store = FeatureStore.open(whole)
        found["busy_s"] = store.provenance["busy_seconds"]
        found["gaps"] = {m: int((~store.mask[:, i]).sum()) for i, m in enumerate(store.modalities)}
        begun = time.perf_counter()
        kept = self.killed(broken)
        found |= {"killed_after_blocks": len(kept), "later_blocks": self.steady(kept[1:])}
        self.say(f"killed after {len(kept)} blocks, {_since(begun)} s; the later ones: {found['later_blocks']}")
        begun = time.perf_counter()
        lines = self.extract(broken)
        found["resumed_s"] = _since(begun)
        found["resumed"] = next((line for line in lines if "blocks were there already" in line), "from the start")
        return found | compared(whole, broken)

    def steady(self, parts: Sequence[Part]) -> dict[str, float]:
        """What a long extraction would do: frames per second of the model alone and with waiting, and who waited."""
        spent = {kind: sum(part.seconds[f"{kind} vision"] for part in parts) for kind in ("encode", "wait", "prepare")}
        frames = sum(len(part.rows["vision"]) for part in parts) * self.encoder("vision", "bf16", "cpu").settings()["frames"]
        everything = {
            kind: sum(s for p in parts for what, s in p.seconds.items() if what.startswith(kind)) for kind in ("encode", "wait")
        }
        rates = {
            "frames_per_second_encoding": frames / max(spent["encode"], 1e-9),
            "frames_per_second_with_waiting": frames / max(spent["encode"] + spent["wait"], 1e-9),
            "frames_per_second_prepared_by_one_process": frames / max(spent["prepare"], 1e-9),
        }
        waited = everything["wait"] / max(everything["wait"] + everything["encode"], 1e-9)
        return {name: round(rate, 1) for name, rate in rates.items()} | {"waited": round(waited, 3)}

    def command(self, out: Path) -> list[str]:
        words = ["extract", "--dataset", "msrvtt", "--encoders", "vast-paper", "--precision", "bf16", "--device", self.device]
        words += ["--media", str(self.media), "--weights", str(self.weights), "--out", str(out)]
        words += ["--block-size", str(self.scale.block)]
        words += ["--workers", str(self.scale.workers)] if self.scale.workers else []
        return [sys.executable, "-m", "calmrl_lab", *words]

    def extract(self, out: Path) -> list[str]:
        done = subprocess.run(self.command(out), stdout=subprocess.PIPE, text=True, env=_environment())
        if done.returncode:
            raise CalmrlError(f"the extraction ended with exit code {done.returncode}")
        return done.stdout.splitlines()

    def killed(self, out: Path) -> list[Part]:
        """Begin an extraction and kill it without warning as soon as some blocks are finished; the parts it leaves."""
        folder = out.with_name(out.name + ".parts")
        process = subprocess.Popen(self.command(out), stdout=subprocess.DEVNULL, env=_environment())
        while process.poll() is None and len(list(folder.glob("*.part"))) < _KEPT:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        parts = [Part.read(path) for path in sorted(folder.glob("*.part"))]
        return [part for part in parts if part is not None]

    def cpu(self) -> dict[str, Any]:
        """The same media in fp32 on the GPU and on the CPU."""
        if not self.on_gpu:
            return {"skipped": "needs a GPU"}
        found = {}
        for modality in UNITS:
            batch = [one[:4] if modality == "vision" else one for one in self.prepared(modality, 2)]
            here, there = (self.encoder(modality, "fp32", device).encode(batch) for device in (self.device, "cpu"))
            found[f"lowest_cosine_{modality}"] = agreement(here, there)[0]
            found[f"largest_relative_difference_{modality}"] = round(float(np.abs(here - there).max() / np.abs(there).max()), 7)
        return found

    def batches(self) -> dict[str, Any]:
        """Frames per second in bf16 by the number of frames that go through the model at once."""
        batch = self.prepared("vision", self.scale.batch)
        made = self.encoder("vision", "bf16")
        found = {}
        for rows in (16, 32, 64, 128, 256):
            made.pieces.size = rows
            _, seconds = self.timed(lambda: made.encode(batch))
            found[f"frames_per_second_at_{rows}"] = round(sum(map(len, batch)) / seconds, 1)
        return found

    def timed(self, function: Callable[[], Any]) -> tuple[Any, float]:
        """The result and the seconds of one call, over at least `seconds` after one call to warm up."""
        result = function()
        calls, begun = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - begun < self.scale.seconds:
            function()
            calls += 1
        return result, (time.perf_counter() - begun) / calls

    def say(self, what: str) -> None:
        console.note(f"    {what}")


# In the order of their weight; the seconds that each may take on a GPU, for the budget.
STAGES: Mapping[str, float] = {
    "machine": 1,
    "files": 30,
    "vision": 30,
    "audio": 10,
    "caption": 10,
    "extraction": 100,
    "out_of_memory": 15,
    "matching": 15,
    "cpu": 20,
    "batches": 25,
}


def run(bench: Bench, budget: float, out: Path | None) -> dict[str, Any]:
    """Stage by stage; what is known is printed, and written to `out`, after each."""
    begun = time.perf_counter()
    found: dict[str, Any] = {}
    for name, expected in STAGES.items():
        spent = time.perf_counter() - begun
        if spent + expected > budget and not bench.quick:
            found[name] = {"skipped": f"{budget - spent:.0f} s are left of the budget, {expected:.0f} may be needed"}
        else:
            console.note(f"{spent:6.1f} s  {name}")
            stage = bench.modality if name in UNITS else getattr(bench, name)
            try:
                found[name] = stage(name) if name in UNITS else stage()
            except Exception as error:
                # Unattended and once: one stage that fails must not take the others along. It is reported, and the exit code says so.
                traceback.print_exc()
                found[name] = {"failed": f"{type(error).__name__}: {error}"}
        if bench.on_gpu:
            torch.cuda.empty_cache()
        console.err.print(f"        {json.dumps({name: found[name]})}", markup=False, soft_wrap=True)
        if out is not None:
            out.write_text(json.dumps(found, indent=2) + "\n")
    return found | {"seconds": _since(begun)}


def agreement(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """The lowest and the mean cosine between rows."""
    one, two = one.astype(np.float64), two.astype(np.float64)
    cosine = (one * two).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1))
    return round(float(cosine.min()), 7), round(float(cosine.mean()), 7)


def compared(one: Path, two: Path) -> dict[str, Any]:
    """Whether two stores are the same byte for byte, all but their provenance; if not, how far their features are apart."""
    names = [{p.relative_to(s) for p in s.rglob("*") if p.is_file() and p.name != "provenance.json"} for s in (one, two)]
    differing = sorted(
        str(n) for n in names[0] | names[1] if n not in names[0] & names[1] or (one / n).read_bytes() != (two / n).read_bytes()
    )
    if not differing:
        return {"same_bytes": True}
    left, right = FeatureStore.open(one), FeatureStore.open(two)
    apart = {
        m: float(np.abs(left.features(m).astype(np.float32) - right.features(m).astype(np.float32)).max())
        for m in left.modalities
    }
    return {"same_bytes": False, "differing_files": differing, "largest_difference": apart}


def load_vocabulary(weights: Path) -> int:
    """The number of words of the weights' vocabulary."""
    from feature_extractors.encoders import encoders

    return len(encoders.get("vast/bert-caption")(weights=weights).vocabulary)


def show(found: Mapping[str, Any]) -> None:
    for name, stage in found.items():
        console.out.print(f"{name}: {json.dumps(stage)}", soft_wrap=True, markup=False)


def _since(begun: float) -> float:
    return round(time.perf_counter() - begun, 2)


def _environment() -> dict[str, str]:
    # The command runs from the same source as this script.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in (str(Path(__file__).parents[1]), *sys.path) if path)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of released weights (default: random ones)")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else None)
    parser.add_argument("--quick", action="store_true", help="two thin layers and short clips")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds after which no stage begins")
    parser.add_argument(
        "--folder", type=Path, help="where weights, clips and stores are made and removed (default: the system's)"
    )
    parser.add_argument("--out", type=Path, help="file for the results, written after every stage")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    device = given.device or ("cpu" if given.quick else None)
    if device is None:
        console.out.print(
            "no GPU here (torch.cuda.is_available() is False), so nothing was measured\n" + MEASURED, markup=False
        )
        return
    with tempfile.TemporaryDirectory(prefix="calmrl-bench-", dir=given.folder) as name:
        found = run(
            Bench(Path(name), given.weights, device, QUICK if given.quick else FULL, given.quick), given.budget, given.out
        )
    console.emit(found, given.json, lambda: show(found))
    if any("failed" in stage for stage in found.values() if isinstance(stage, dict)):
        sys.exit(1)


if __name__ == "__main__":
    main()
