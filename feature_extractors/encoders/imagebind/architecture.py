"""ImageBind's towers: their sizes, and what their parameters are called in the released checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders._released_weights import Names, layer_names

if TYPE_CHECKING:
    from torch import nn

FILE = "architecture.json"


@dataclass(frozen=True)
class Part:
    """Width, depth, heads and perceptron width of one tower."""

    width: int
    depth: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class Architecture:
    """Sizes of `imagebind_huge`: 224 x 224 pixels in patches of 2 frames x 14 x 14, 128 x 204 mel spectrograms in patches of 16 every 10, 77 words."""

    vision: Part = Part(1280, 32, 16, 5120)
    audio: Part = Part(768, 12, 12, 3072)
    text: Part = Part(1024, 24, 16, 4096)
    dimension: int = 1024
    side: int = 224
    mel_bins: int = 128
    mel_frames: int = 204
    words: int = 49_408
    length: int = 77

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


PUBLISHED = Architecture()


def read_architecture(path: Path) -> Architecture:
    """The published sizes, changed by the file `path` where there is one (reduced models for tests). Raises CalmrlError for a broken file."""
    if not path.is_file():
        return PUBLISHED
    try:
        changes = json.loads(path.read_text(encoding="utf-8"))
        parts = {name: replace(getattr(PUBLISHED, name), **changes.pop(name, {})) for name in ("vision", "audio", "text")}
        return replace(PUBLISHED, **parts, **changes)
    except (ValueError, TypeError, AttributeError) as error:
        raise CalmrlError(
            f"'{path}' is not a valid architecture file: {error}",
            hint=f"remove it to use the published sizes; its fields: {', '.join(f.name for f in fields(Architecture))}",
        ) from None


def tower(part: str, sizes: Architecture) -> tuple[nn.Module, Names]:
    """The tower of `vision`, `audio` or `text` on the meta device, and the released names of its parameters."""
    from feature_extractors.encoders._towers import PatchSizes, PatchTower, TextTower, TrunkSizes, on_meta

    this = getattr(sizes, part)
    trunk = TrunkSizes(this.width, this.depth, this.heads, this.mlp, key_bias=part == "audio")
    head, stem = f"modality_heads.{part}", f"modality_preprocessors.{part}"
    names: dict[str, list[str]] = {}
    for number in range(this.depth):
        names |= _block_names(f"blocks.{number}", f"modality_trunks.{part}.blocks.{number}", trunk.key_bias)
    if part == "text":
        names |= {"words.weight": [f"{stem}.token_embedding.weight"], "position": [f"{stem}.pos_embed"]}
        names |= layer_names({"post_norm": f"{head}.proj.0"}) | {"projection.weight": [f"{head}.proj.1.weight"]}
        return on_meta(TextTower, sizes.words, sizes.length, trunk, sizes.dimension), names
    names |= {"class_token": [f"{stem}.cls_token"], "position": [f"{stem}.pos_embedding_helper.pos_embed"]}
    names |= layer_names({"post_norm": f"{head}.0"}) | {"projection.weight": [f"{head}.2.weight"]}
    if part == "vision":
        names |= {"patch.weight": [f"{stem}.rgbt_stem.proj.1.weight"]}
        names |= layer_names({"pre_norm": f"modality_trunks.{part}.pre_transformer_layer.0"})
        patches = PatchSizes(3, (2, sizes.side, sizes.side), (2, 14, 14), (2, 14, 14))
    else:
        names |= {"patch.weight": [f"{stem}.rgbt_stem.proj.weight"]} | layer_names(
            {"patch_norm": f"{stem}.rgbt_stem.norm_layer"}
        )
        patches = PatchSizes(1, (sizes.mel_bins, sizes.mel_frames), (16, 16), (10, 10), norm=True, pre_norm=False)
    return on_meta(PatchTower, patches, trunk, sizes.dimension), names


def _block_names(ours: str, released: str, key_bias: bool) -> dict[str, list[str]]:
    names = {f"{ours}.attention.qkv.{tail}": [f"{released}.attn.in_proj_{tail}"] for tail in ("weight", "bias")}
    if key_bias:
        names |= {f"{ours}.attention.{name}": [f"{released}.attn.{name}"] for name in ("bias_k", "bias_v")}
    return names | layer_names(
        {
            f"{ours}.attention.out": f"{released}.attn.out_proj",
            f"{ours}.norm1": f"{released}.norm_1",
            f"{ours}.norm2": f"{released}.norm_2",
            f"{ours}.fc1": f"{released}.mlp.fc1",
            f"{ours}.fc2": f"{released}.mlp.fc2",
        }
    )
