"""EVA01-CLIP-g/14 on transformers' BLIP-2 vision tower, which has the same blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import Float

from feature_extractors.encoders.vast.networks.architecture import VisionSizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# The tail of a block's released name -> its name in the BLIP-2 tower.
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def rename(weights: Mapping[str, Tensor], sizes: VisionSizes) -> dict[str, Tensor]:
    """Released EVA names to the BLIP-2 tower's. The 1408 -> 1024 CLIP head is dropped: VAST pools the tokens before it.

    EVA has biases on queries and values only; the tower's joint bias gets zeros for the keys.
    """
    import torch

    renamed = {
        "embeddings.class_embedding": weights["cls_token"],
        "embeddings.position_embedding": weights["pos_embed"],
    }
    for tail in ("weight", "bias"):
        renamed[f"embeddings.patch_embedding.{tail}"] = weights[f"patch_embed.proj.{tail}"]
        renamed[f"post_layernorm.{tail}"] = weights[f"norm.{tail}"]
    for i in range(sizes.depth):
        released, ours = f"blocks.{i}", f"encoder.layers.{i}"
        query, value = weights[f"{released}.attn.q_bias"], weights[f"{released}.attn.v_bias"]
        renamed[f"{ours}.self_attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        for old, new in _BLOCK.items():
            for tail in ("weight", "bias"):
                if f"{released}.{old}.{tail}" in weights:
                    renamed[f"{ours}.{new}.{tail}"] = weights[f"{released}.{old}.{tail}"]
    return renamed


def build(sizes: VisionSizes) -> nn.Module:
    """The tower without weights, on the meta device."""
    import torch
    from transformers import Blip2VisionConfig, Blip2VisionModel

    config = Blip2VisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.heads,
        image_size=sizes.resolution,
        patch_size=sizes.patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        qkv_bias=True,
    )
    with torch.device("meta"):
        return Blip2VisionModel(config).eval()


def load(weights: Mapping[str, Tensor], sizes: VisionSizes) -> nn.Module:
    """The tower with the `vision` part of a checkpoint."""
    model = build(sizes)
    model.load_state_dict(rename(weights, sizes), strict=True, assign=True)
    return model.requires_grad_(False)


def tokens(
    model: nn.Module, pixels: Float[torch.Tensor, "frames 3 height width"]
) -> Float[torch.Tensor, "frames tokens width"]:
    """All tokens after the final norm; token 0 is the class token."""
    return model(pixel_values=pixels).last_hidden_state
