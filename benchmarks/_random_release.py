"""Random weights of any size, laid out on disk exactly as VAST's are released."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from feature_extractors.encoders.vast.networks.architecture import (
    FILE,
    PUBLISHED,
    Architecture,
    AudioSizes,
    Shape,
    TextSizes,
    VisionSizes,
    checkpoint_shapes,
)

# Two thin layers each: shows that everything runs, in seconds.
THIN = Architecture(
    VisionSizes(width=32, depth=2, heads=2, mlp=48, clip_dim=16),
    AudioSizes(width=48, depth=2, heads=4, mlp=64, embed=24),
    TextSizes(width=32, depth=2, heads=4, mlp=48, vocabulary=400),
    contrastive_dim=16,
)
_RUN = {
    "model_cfg": {
        "vision_encoder_type": "evaclip01_giant",
        "audio_encoder_type": "beats",
        "audio_melbins": 64,
        "audio_target_length": 1024,
    }
}
_SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}  # where bert-base-uncased has them


def write_release(folder: Path, architecture: Architecture, device: str = "cpu") -> int:
    """`folder` as a run folder of VAST with random weights, drawn on `device`; returns the bytes of the checkpoint."""
    for inner in ("log", "ckpt", "bert/bert-base-uncased"):
        (folder / inner).mkdir(parents=True)
    (folder / "log" / "hps.json").write_text(json.dumps(_RUN))
    (folder / "bert" / "bert-base-uncased" / "vocab.txt").write_text("\n".join(words(architecture.text.vocabulary)) + "\n")
    if architecture != PUBLISHED:
        (folder / FILE).write_text(json.dumps(architecture.as_json()))
    path = folder / "ckpt" / "model_step_1.pt"
    torch.save(random_tensors(checkpoint_shapes(architecture), device), path)
    return path.stat().st_size


def random_tensors(shapes: Mapping[str, Shape], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Weights of the size of trained ones: normal with deviation 1/sqrt(inputs), norms and gains at one, biases at zero."""
    generator = torch.Generator(device).manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        size = tuple(length or 8 for length in shape)
        if name.endswith("weight_g") or ("norm" in name.lower() and name.endswith("weight")):
            tensors[name] = torch.ones(size)
        elif name.endswith("bias"):
            tensors[name] = torch.zeros(size)
        else:
            spread = math.prod(size[1:]) ** -0.5 if len(size) > 1 else 0.02
            tensors[name] = (torch.randn(size, generator=generator, device=device) * spread).cpu()
    # BEATs' layers share one table.
    table = next(values for name, values in tensors.items() if name.endswith("relative_attention_bias.weight"))
    return {name: table if name.endswith("relative_attention_bias.weight") else values for name, values in tensors.items()}


def words(count: int) -> list[str]:
    """A vocabulary of `count` made-up words, with the special tokens in their places."""
    return [_SPECIAL.get(place, f"word{place}") for place in range(count)]
