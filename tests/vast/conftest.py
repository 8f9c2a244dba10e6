"""A VAST system of two thin layers, saved exactly as the real ones are released."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from feature_extractors.encoders.vast.networks.architecture import (
    Architecture,
    AudioSizes,
    TextSizes,
    VisionSizes,
    checkpoint_shapes,
)

WORDS = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
]
WORDS += [
    "a",
    "the",
    "dog",
    "cat",
    "is",
    "man",
    "woman",
    "playing",
    "person",
    "car",
    "##s",
    "##ing",
    ".",
    ",",
    "'",
    "sing",
    "run",
]
WORDS = list(dict.fromkeys(WORDS))

TINY = Architecture(
    vision=VisionSizes(width=32, depth=2, heads=2, mlp=48, clip_dim=16),
    audio=AudioSizes(width=48, depth=2, heads=4, mlp=64, embed=24),
    text=TextSizes(width=32, depth=2, heads=4, mlp=48, vocabulary=len(WORDS), positions=80),
    contrastive_dim=16,
)


def random_tensors(architecture: Architecture = TINY, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values for every tensor of a released checkpoint; norms start near one, frame embeddings have 8 and 1 rows."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in checkpoint_shapes(architecture).items():
        rows = {"vision_frame_embedding": 8, "audio_frame_embedding": 1}.get(name, 1)
        values = torch.randn(tuple(size or rows for size in shape), generator=generator) * 0.15
        norm = any(part in name.lower() for part in ("norm", ".1.weight")) and name.endswith("weight")
        tensors[name] = values + 1 if norm or name.endswith("weight_g") else values
    shared = tensors["audio_encoder.encoder.layers.0.self_attn.relative_attention_bias.weight"]
    return {k: shared.clone() if k.endswith("relative_attention_bias.weight") else v for k, v in tensors.items()}


def released_extras(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What released files hold besides: the CLIP text tower, the masked-language head, an old BERT buffer."""
    return {
        **tensors,
        "vision_encoder.text.token_embedding.weight": torch.zeros(4, 8),
        "vision_encoder.logit_scale": torch.tensor(2.6),
        "multimodal_encoder.cls.predictions.bias": torch.zeros(len(WORDS)),
        "multimodal_encoder.bert.embeddings.position_ids": torch.arange(80)[None],
    }


def save_weights(folder: Path, tensors: dict[str, torch.Tensor], architecture: Architecture = TINY) -> Path:
    """`folder` laid out as VAST's run folders are: log/hps.json, ckpt/model_step_N.pt, the vocabulary, and our sizes."""
    (folder / "log").mkdir(parents=True)
    (folder / "ckpt").mkdir()
    (folder / "bert" / "bert-base-uncased").mkdir(parents=True)
    config = {
        "model_cfg": {
            "vision_encoder_type": "evaclip01_giant",
            "audio_encoder_type": "beats",
            "audio_melbins": 64,
            "audio_target_length": 1024,
        }
    }
    (folder / "log" / "hps.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "ckpt" / "model_step_204994.pt")
    (folder / "bert" / "bert-base-uncased" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "architecture.json").write_text(json.dumps(architecture.as_json()))
    return folder


@pytest.fixture(scope="session")
def tensors() -> dict[str, torch.Tensor]:
    return random_tensors()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor]) -> Path:
    """A tiny VAST release. Read-only: tests that change it make their own."""
    return save_weights(tmp_path_factory.mktemp("weights") / "vast", released_extras(tensors))


@pytest.fixture
def architecture() -> Architecture:
    return TINY


@pytest.fixture
def make_weights(tmp_path: Path):
    """Makes a release in a fresh folder from given tensors."""

    def make(tensors: dict[str, torch.Tensor], name: str = "release", architecture: Architecture = TINY) -> Path:
        return save_weights(tmp_path / name, tensors, architecture)

    return make
