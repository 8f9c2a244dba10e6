"""VAST's encoders on a GPU: rows a second in fp32 and bf16, their agreement, the batch that fits, matching pairs a second.

    calmrl-lab bench extract_gpu                      full size, random weights, on the GPU of this machine
    calmrl-lab bench extract_gpu --weights DIR        the same with released weights
    calmrl-lab bench extract_gpu --device cpu --tiny  two thin layers: shows that the script runs, measures nothing

Without a GPU it says what it would measure and stops.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feature_extractors.encoders.vast.architecture import (
    PUBLISHED,
    Architecture,
    AudioSizes,
    Shape,
    TextSizes,
    VisionSizes,
    checkpoint_shapes,
)
from feature_extractors.encoders.vast.audio import AudioEncoder
from feature_extractors.encoders.vast.batching import PRECISIONS
from feature_extractors.encoders.vast.checkpoint import Checkpoint, load_checkpoint
from feature_extractors.encoders.vast.encoder import VastEncoder
from feature_extractors.encoders.vast.matching import Matcher
from feature_extractors.encoders.vast.text import TextEncoder
from feature_extractors.encoders.vast.vision import VisionEncoder

MEASURED = """measured here on a GPU:
  frames, slices and captions a second of the three encoders, in fp32 and bf16 (estimated for an H100 in bf16: 655 frames/s)
  cosine between bf16 and fp32 features of each modality (at least 0.999 is wanted)
  device memory at its highest, and the batch that is left after running out of memory
  matching: pairs a second with keys and values cached once a clip, 2382 condition tokens"""
TARGET = 0.999
THIN = Architecture(
    VisionSizes(width=32, depth=2, heads=2, mlp=48, clip_dim=16),
    AudioSizes(width=48, depth=2, heads=4, mlp=64, embed=24),
    TextSizes(width=32, depth=2, heads=4, mlp=48, vocabulary=100, positions=80),
    contrastive_dim=16,
)


def random_tensors(shapes: Mapping[str, Shape], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights of the size of trained ones: normal with deviation 1/sqrt(inputs), norms and gains at one, biases at zero."""
    tensors = {}
    for name, shape in shapes.items():
        size = tuple(s or 8 for s in shape)
        if name.endswith("weight_g") or ("norm" in name.lower() and name.endswith("weight")):
            tensors[name] = torch.ones(size)
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(size)
        else:
            fan = math.prod(size[1:]) if len(size) > 1 else 1
            tensors[name] = torch.randn(size, generator=generator) * (fan**-0.5 if len(size) > 1 else 0.02)
    table = next(v for k, v in tensors.items() if k.endswith("relative_attention_bias.weight"))
    return {k: table if k.endswith("relative_attention_bias.weight") else v for k, v in tensors.items()}


def encoder(
    kind: type[VastEncoder], checkpoint: Checkpoint, device: str, precision: str, rows: int | None = None
) -> VastEncoder:
    """An encoder over weights that are in memory already."""
    made = kind(device=device, weights=checkpoint.path, precision=precision, batch_rows=rows)
    made.__dict__ |= {"checkpoint": checkpoint, "architecture": checkpoint.architecture, "_padding": 0}
    return made


def timed(function: Callable[[], Any], device: str, least: float) -> tuple[Any, float]:
    """The result and the seconds of one call, over at least `least` seconds after one call to warm up."""
    result = function()
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < least:
        function()
        calls += 1
        if device.startswith("cuda"):
            torch.cuda.synchronize()
    return result, (time.perf_counter() - start) / calls


def inputs(architecture: Architecture, clips: int) -> dict[str, tuple[type[VastEncoder], list[np.ndarray], str]]:
    """Prepared media of `clips` clips: 8 frames, one slice and one caption of 30 tokens each."""
    generator = np.random.default_rng(0)
    side, audio = architecture.vision.resolution, architecture.audio
    frames = [generator.standard_normal((8, 3, side, side), dtype=np.float32) for _ in range(clips)]
    slices = [generator.standard_normal((1, audio.slice_frames, audio.mel_bins), dtype=np.float32) for _ in range(clips)]
    words = [generator.integers(5, architecture.text.vocabulary, 30) for _ in range(clips)]
    return {
        "vision": (VisionEncoder, frames, "frames"),
        "audio": (AudioEncoder, slices, "slices"),
        "caption": (TextEncoder, words, "captions"),
    }


def measure(checkpoint: Checkpoint, device: str, clips: int, least: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "clips": clips,
    }
    for modality, (kind, batch, unit) in inputs(checkpoint.architecture, clips).items():
        features, entry = {}, {}
        for precision in PRECISIONS:
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            made = encoder(kind, checkpoint, device, precision)
            features[precision], seconds = timed(lambda made=made, batch=batch: made.encode(batch), device, least)
            entry[f"{unit}_per_second_{precision}"] = round(sum(len(b) if unit == "frames" else 1 for b in batch) / seconds, 1)
            if device.startswith("cuda"):
                entry[f"peak_gib_{precision}"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            entry[f"batch_{precision}"] = made.pieces.size
            del made
        full, half = features["fp32"], features["bf16"]
        cosine = (full * half).sum(1) / (np.linalg.norm(full, axis=1) * np.linalg.norm(half, axis=1))
        entry["lowest_cosine"] = round(float(cosine.min()), 6)
        entry["cosine_as_wanted"] = bool(cosine.min() >= TARGET)
        found[modality] = entry
    found["matching"] = matching(checkpoint, device, least)
    if device.startswith("cuda"):
        found["out_of_memory"] = overflow(checkpoint, device)
    return found


def matching(checkpoint: Checkpoint, device: str, least: float) -> dict[str, float]:
    """50 captions against one clip of 8 frames, a slice and a subtitle."""
    generator = np.random.default_rng(1)
    sizes = checkpoint.architecture
    count = 8 * sizes.vision.tokens + sizes.audio.slice_frames // 16 * sizes.audio.mel_bins // 16 + 70
    tokens = generator.standard_normal((count, sizes.text.width), dtype=np.float32)
    captions = [generator.integers(5, sizes.text.vocabulary, 20) for _ in range(50)]
    found: dict[str, float] = {"condition_tokens": count}
    for precision in PRECISIONS:
        matcher = Matcher(checkpoint, device, precision)
        _, seconds = timed(lambda m=matcher: m.scores(captions, m.keys_values(tokens)), device, least)
        found[f"pairs_per_second_{precision}"] = round(len(captions) / seconds, 1)
    return found


def overflow(checkpoint: Checkpoint, device: str) -> dict[str, Any]:
    """A batch far too large for the device: it must shrink until it fits, and give the same features."""
    made = encoder(VisionEncoder, checkpoint, device, "fp32", rows=1 << 14)
    _, batch, _ = inputs(checkpoint.architecture, 256)["vision"]
    many = made.encode(batch)
    few = encoder(VisionEncoder, checkpoint, device, "fp32").encode(batch[:4])
    return {"asked": 1 << 14, "left": made.pieces.size, "largest_difference": float(np.abs(many[:4] - few).max())}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of released weights (default: random ones)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else None)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0, help="least time of each measurement")
    parser.add_argument("--tiny", action="store_true", help="two thin layers instead of the full size")
    given = parser.parse_args(argv)
    if given.device is None:
        print("no GPU here (torch.cuda.is_available() is False), so nothing was measured\n" + MEASURED)
        return
    torch.set_float32_matmul_precision("highest")
    if given.weights is not None:
        checkpoint = load_checkpoint(given.weights)
    else:
        sizes = THIN if given.tiny else PUBLISHED
        checkpoint = Checkpoint(Path("."), sizes, random_tensors(checkpoint_shapes(sizes), torch.Generator().manual_seed(0)))
    print(json.dumps(measure(checkpoint, given.device, given.clips, given.seconds), indent=2))


if __name__ == "__main__":
    main()
