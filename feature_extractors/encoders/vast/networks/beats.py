"""BEATs (arXiv 2212.09058), inference only: a spectrogram slice to its patch tokens, by attention with a gated position bias."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from feature_extractors.encoders.vast.networks.architecture import AudioSizes


def buckets(length: int, sizes: AudioSizes) -> Int[Tensor, "length length"]:
    """The bucket of every relative position (key minus query), as in T5: half the buckets a sign, exact near, logarithmic far."""
    positions = torch.arange(length)
    relative = positions[None, :] - positions[:, None]
    half = sizes.buckets // 2
    exact = half // 2
    distance = relative.abs()
    # float32 on purpose: the released code rounds its logarithm there, and bucket borders depend on it.
    scale = torch.log(distance.float() / exact) / math.log(sizes.max_distance / exact) * (half - exact)
    far = (exact + scale.clamp_min(0).to(torch.long)).clamp_max(half - 1)
    return (relative > 0) * half + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """Self-attention whose position bias is scaled, a query and a head at a time, by a gate read off the query."""

    def __init__(self, sizes: AudioSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.k_proj = nn.Linear(sizes.width, sizes.width)
        self.v_proj = nn.Linear(sizes.width, sizes.width)
        self.q_proj = nn.Linear(sizes.width, sizes.width)
        self.out_proj = nn.Linear(sizes.width, sizes.width)
        self.grep_linear = nn.Linear(sizes.width // sizes.heads, 8)
        self.grep_a = nn.Parameter(torch.empty(1, sizes.heads, 1, 1))

    def forward(self, x: Float[Tensor, "b t w"], bias: Float[Tensor, "1 h t t"]) -> Float[Tensor, "b t w"]:
        query, key, value = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        gates = torch.sigmoid(self.grep_linear(query).unflatten(-1, (2, 4)).sum(-1))
        update, reset = gates[..., :1], gates[..., 1:]
        scale = update * (reset * self.grep_a - 1.0) + 2.0
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=(scale * bias).to(query.dtype))
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Post-norm transformer layer with the residual scaled up (deep-norm, arXiv 2203.00555)."""

    def __init__(self, sizes: AudioSizes) -> None:
        super().__init__()
        self.alpha = (2 * sizes.depth) ** 0.25 if sizes.deep_norm else 1.0
        self.self_attn = Attention(sizes)
        self.self_attn_layer_norm = nn.LayerNorm(sizes.width)
        self.fc1 = nn.Linear(sizes.width, sizes.mlp)
        self.fc2 = nn.Linear(sizes.mlp, sizes.width)
        self.final_layer_norm = nn.LayerNorm(sizes.width)

    def forward(self, x: Float[Tensor, "b t w"], bias: Float[Tensor, "1 h t t"]) -> Float[Tensor, "b t w"]:
        x = self.self_attn_layer_norm(x * self.alpha + self.self_attn(x, bias))
        return self.final_layer_norm(x * self.alpha + self.fc2(functional.gelu(self.fc1(x))))


class Encoder(nn.Module):
    """A convolution for positions, then `depth` layers that share one table of relative positions."""

    def __init__(self, sizes: AudioSizes) -> None:
        super().__init__()
        self.sizes = sizes
        kernel = sizes.position_kernel
        self.pos_conv = nn.Conv1d(sizes.width, sizes.width, kernel, padding=kernel // 2, groups=sizes.position_groups)
        self.layer_norm = nn.LayerNorm(sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.depth))
        self.relative_attention_bias = nn.Embedding(sizes.buckets, sizes.heads)

    def forward(self, x: Float[Tensor, "b t w"]) -> Float[Tensor, "b t w"]:
        # An even kernel with half padding gives one step too many; the last is dropped.
        positions = self.pos_conv(x.transpose(1, 2))[..., : x.shape[1]]
        x = self.layer_norm(x + functional.gelu(positions).transpose(1, 2))
        index = buckets(x.shape[1], self.sizes).to(x.device)
        bias = self.relative_attention_bias(index).permute(2, 0, 1).unsqueeze(0)
        for layer in self.layers:
            x = layer(x, bias)
        return x


class BEATs(nn.Module):
    """Patches of 16 x 16 projected to the encoder's width. Names follow the released file."""

    def __init__(self, sizes: AudioSizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(1, sizes.embed, sizes.patch, stride=sizes.patch, bias=False)
        self.layer_norm = nn.LayerNorm(sizes.embed)
        self.post_extract_proj = nn.Linear(sizes.embed, sizes.width)
        self.encoder = Encoder(sizes)

    def forward(self, spectrograms: Float[Tensor, "b frames mel"]) -> Float[Tensor, "b t w"]:
        """Tokens in time-major order, [frames / 16 * mel / 16] of them. No padding mask, as in VAST."""
        patches = self.patch_embedding(spectrograms.unsqueeze(1)).flatten(2).transpose(1, 2)
        # Under autocast a linear layer answers in half precision; what is added up over the layers must not be.
        return self.encoder(self.post_extract_proj(self.layer_norm(patches)).float())


def rename(weights: Mapping[str, Tensor], sizes: AudioSizes) -> dict[str, Tensor]:
    """Released names to this module's: the weight norm of the position convolution folded in, one position table kept.

    The norm runs over every axis but the last (`weight_norm(dim=2)`): each tap of the kernel has its own gain.
    """
    renamed = {k: v for k, v in weights.items() if not k.endswith("relative_attention_bias.weight") and "pos_conv" not in k}
    direction, gain = weights["encoder.pos_conv.0.weight_v"], weights["encoder.pos_conv.0.weight_g"]
    wide = direction.double()
    norm = wide.square().sum(dim=(0, 1), keepdim=True).sqrt()
    renamed["encoder.pos_conv.weight"] = (gain.double() * wide / norm).to(direction.dtype)
    renamed["encoder.pos_conv.bias"] = weights["encoder.pos_conv.0.bias"]
    renamed["encoder.relative_attention_bias.weight"] = weights["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    return renamed


def load(weights: Mapping[str, Tensor], sizes: AudioSizes) -> BEATs:
    """The module with the `audio` part of a checkpoint."""
    with torch.device("meta"):
        model = BEATs(sizes)
    model.load_state_dict(rename(weights, sizes), strict=True, assign=True)
    return model.eval().requires_grad_(False)
