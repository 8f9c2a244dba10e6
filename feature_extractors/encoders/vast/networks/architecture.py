"""The sizes of VAST's four encoders, and the table of every tensor a checkpoint must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from calmrl_lab.errors import CalmrlError

Shape = tuple[int, ...]
FILE = "architecture.json"


@dataclass(frozen=True)
class VisionSizes:
    """EVA01-CLIP-g/14 (arXiv 2303.15389): pre-LN blocks, class token, learned positions, no bias on the keys."""

    width: int = 1408
    depth: int = 40
    heads: int = 16
    mlp: int = 6144
    patch: int = 14
    resolution: int = 224
    clip_dim: int = 1024

    @property
    def tokens(self) -> int:
        return (self.resolution // self.patch) ** 2 + 1


@dataclass(frozen=True)
class AudioSizes:
    """BEATs iter3+ (arXiv 2212.09058) as VAST feeds it: 64 mel bins, slices of 1024 frames of 10 ms.

    `max_distance`, `buckets` and `deep_norm` live only in the original BEATs file and are pinned here; `weights check`
    compares them with that file when it is there.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    embed: int = 512
    patch: int = 16
    position_kernel: int = 128
    position_groups: int = 16
    buckets: int = 320
    max_distance: int = 800
    deep_norm: bool = True
    mel_bins: int = 64
    slice_frames: int = 1024


@dataclass(frozen=True)
class TextSizes:
    """bert-base-uncased with cross-attention in every layer (used only by the matching head)."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2


@dataclass(frozen=True)
class Architecture:
    """All sizes of one VAST system; the defaults are the published ones."""

    vision: VisionSizes = field(default_factory=VisionSizes)
    audio: AudioSizes = field(default_factory=AudioSizes)
    text: TextSizes = field(default_factory=TextSizes)
    contrastive_dim: int = 512

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


PUBLISHED = Architecture()


def read_architecture(path: Path | None) -> Architecture:
    """The published sizes, changed by the file `path` if there is one (reduced models for tests).

    The file holds any subset of the fields, e.g. `{"vision": {"width": 32, "depth": 2, "heads": 2}}`. Raises CalmrlError for a
    broken file or an unknown field.
    """
    if path is None:
        return PUBLISHED
    try:
        changes = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(changes, dict):
            raise TypeError(f"expected an object, got {type(changes).__name__}")
        parts = {"vision": VisionSizes, "audio": AudioSizes, "text": TextSizes}
        unknown = set(changes) - {*parts, "contrastive_dim"}
        if unknown:
            raise TypeError(f"unknown field '{min(unknown)}'")
        sizes = {name: kind(**changes.get(name, {})) for name, kind in parts.items()}
        return Architecture(**sizes, contrastive_dim=int(changes.get("contrastive_dim", PUBLISHED.contrastive_dim)))
    except (ValueError, TypeError) as error:
        raise CalmrlError(
            f"'{path}' is not a valid architecture file: {error}",
            hint=f"remove it to use the published sizes; known fields of vision: {', '.join(f.name for f in fields(VisionSizes))}",
        ) from None


def vision_shapes(sizes: VisionSizes) -> dict[str, Shape]:
    """Tensors below `vision_encoder.visual.`: 13 a block and 8 around them."""
    w = sizes.width
    shapes: dict[str, Shape] = {
        "cls_token": (1, 1, w),
        "pos_embed": (1, sizes.tokens, w),
        "patch_embed.proj.weight": (w, 3, sizes.patch, sizes.patch),
        "patch_embed.proj.bias": (w,),
        **_norm("norm", w),
        **_linear("head", w, sizes.clip_dim),
    }
    for i in range(sizes.depth):
        block = f"blocks.{i}"
        shapes |= _norm(f"{block}.norm1", w) | _norm(f"{block}.norm2", w)
        shapes |= {f"{block}.attn.qkv.weight": (3 * w, w), f"{block}.attn.q_bias": (w,), f"{block}.attn.v_bias": (w,)}
        shapes |= _linear(f"{block}.attn.proj", w, w)
        shapes |= _linear(f"{block}.mlp.fc1", w, sizes.mlp) | _linear(f"{block}.mlp.fc2", sizes.mlp, w)
    return shapes


def audio_shapes(sizes: AudioSizes) -> dict[str, Shape]:
    """Tensors below `audio_encoder.`: 20 a layer and 10 around them.

    Every layer holds a copy of the one table of relative positions, as the module is shared in the original.
    """
    w, head = sizes.width, sizes.width // sizes.heads
    shapes: dict[str, Shape] = {
        "patch_embedding.weight": (sizes.embed, 1, sizes.patch, sizes.patch),
        **_norm("layer_norm", sizes.embed),
        **_linear("post_extract_proj", sizes.embed, w),
        "encoder.pos_conv.0.bias": (w,),
        "encoder.pos_conv.0.weight_g": (1, 1, sizes.position_kernel),
        "encoder.pos_conv.0.weight_v": (w, w // sizes.position_groups, sizes.position_kernel),
        **_norm("encoder.layer_norm", w),
    }
    for i in range(sizes.depth):
        layer = f"encoder.layers.{i}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{name}", w, w)
        shapes |= _linear(f"{layer}.self_attn.grep_linear", head, 8)
        shapes[f"{layer}.self_attn.grep_a"] = (1, sizes.heads, 1, 1)
        shapes[f"{layer}.self_attn.relative_attention_bias.weight"] = (sizes.buckets, sizes.heads)
        shapes |= _norm(f"{layer}.self_attn_layer_norm", w) | _norm(f"{layer}.final_layer_norm", w)
        shapes |= _linear(f"{layer}.fc1", w, sizes.mlp) | _linear(f"{layer}.fc2", sizes.mlp, w)
    return shapes


def text_shapes(sizes: TextSizes) -> dict[str, Shape]:
    """Tensors below `multimodal_encoder.bert.`: 26 a layer (10 of them cross-attention) and 5 embeddings."""
    w = sizes.width
    shapes: dict[str, Shape] = {
        "embeddings.word_embeddings.weight": (sizes.vocabulary, w),
        "embeddings.position_embeddings.weight": (sizes.positions, w),
        "embeddings.token_type_embeddings.weight": (sizes.types, w),
        **_norm("embeddings.LayerNorm", w),
    }
    for i in range(sizes.depth):
        layer = f"encoder.layer.{i}"
        for attention in ("attention", "crossattention"):
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                shapes |= _linear(f"{layer}.{attention}.{name}", w, w)
            shapes |= _norm(f"{layer}.{attention}.output.LayerNorm", w)
        shapes |= _linear(f"{layer}.intermediate.dense", w, sizes.mlp) | _linear(f"{layer}.output.dense", sizes.mlp, w)
        shapes |= _norm(f"{layer}.output.LayerNorm", w)
    return shapes


def head_shapes(architecture: Architecture) -> dict[str, Shape]:
    """The heads and the matching module, named from the root. Frame embeddings have a free length, written 0 here."""
    v, a, t, d = architecture.vision.width, architecture.audio.width, architecture.text.width, architecture.contrastive_dim
    shapes: dict[str, Shape] = {
        f"contra_head_{m}.linear.weight": (d, width) for m, width in zip("tsva", (t, t, v, a), strict=True)
    }
    for name, width in (("va", v + a), ("vs", v + t), ("vas", v + a + t)):
        shapes |= _linear(f"contra_head_{name}", width, d)
    shapes["contra_temp"] = ()
    shapes |= {"vision_frame_embedding": (1, 0, t), "audio_frame_embedding": (1, 0, t)}
    for name, width in (("vision", v), ("audio", a), ("subtitle", t)):
        shapes[f"{name}_type_embeddings"] = (1, 1, t)
        shapes |= _linear(f"hidden_trans_{name}_multimodal.0", width, t) | _norm(f"hidden_trans_{name}_multimodal.1", t)
    return shapes | _linear("itm_head.linear1", t, t) | _norm("itm_head.layernorm", t) | _linear("itm_head.linear2", t, 2)


def optional_shapes(architecture: Architecture) -> dict[str, Shape]:
    """What only some systems hold: GRAM's head for depth maps."""
    return {"contra_head_d.linear.weight": (architecture.contrastive_dim, architecture.vision.width)}


def checkpoint_shapes(architecture: Architecture = PUBLISHED) -> dict[str, Shape]:
    """Every tensor that a released checkpoint must hold, by its released name."""
    parts: dict[str, Mapping[str, Shape]] = {
        "vision_encoder.visual.": vision_shapes(architecture.vision),
        "audio_encoder.": audio_shapes(architecture.audio),
        "multimodal_encoder.bert.": text_shapes(architecture.text),
        "": head_shapes(architecture),
    }
    return {prefix + name: shape for prefix, shapes in parts.items() for name, shape in shapes.items()}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
