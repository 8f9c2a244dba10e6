"""Transformer towers of CLIP's kind, inference only: patches of pictures, clips and spectrograms, and texts, to joint embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class TrunkSizes:
    """Sizes of the blocks of a tower.

    `activation` is `gelu` or `quick_gelu`; `key_bias`: one learned key and value are appended to every sequence; `frames`: each block first
    attends over so many frames at the same place of the picture (0: it does not).
    """

    width: int
    depth: int
    heads: int
    mlp: int
    epsilon: float = 1e-6
    activation: str = "gelu"
    key_bias: bool = False
    frames: int = 0


@dataclass(frozen=True)
class PatchSizes:
    """Sizes of what stands before the blocks of a `PatchTower`.

    `shape`: of an input, without its channels; `patch` and `stride`: of the convolution, as long as `shape`; `norm`: patches are normalised;
    `pre_norm`: the whole sequence is; `classes`: class tokens, one per frame.
    """

    channels: int
    shape: tuple[int, ...]
    patch: tuple[int, ...]
    stride: tuple[int, ...]
    norm: bool = False
    pre_norm: bool = True
    classes: int = 1

    @property
    def patches(self) -> int:
        """How many patches an input has."""
        count = 1
        for size, patch, stride in zip(self.shape, self.patch, self.stride, strict=True):
            count *= (size - patch) // stride + 1
        return count


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, sizes: TrunkSizes, key_bias: bool) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.out = nn.Linear(sizes.width, sizes.width)
        if key_bias:
            self.bias_k = nn.Parameter(torch.zeros(1, 1, sizes.width))
            self.bias_v = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.key_bias = key_bias

    def forward(self, x: Float[Tensor, "b n width"], causal: bool = False) -> Float[Tensor, "b n width"]:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        if self.key_bias:
            key = torch.cat([key, self.bias_k.to(key.dtype).expand(len(x), 1, -1)], dim=1)
            value = torch.cat([value, self.bias_v.to(value.dtype).expand(len(x), 1, -1)], dim=1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm block: attention over time where the tower has it, attention over the sequence, and a perceptron."""

    def __init__(self, sizes: TrunkSizes) -> None:
        super().__init__()
        self.frames, self.activation = sizes.frames, sizes.activation
        if sizes.frames:
            self.time_position = nn.Parameter(torch.zeros(1, sizes.frames, sizes.width))
            self.time_norm = nn.LayerNorm(sizes.width, eps=sizes.epsilon)
            self.time_attention = Attention(sizes, key_bias=False)
        self.norm1 = nn.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.attention = Attention(sizes, sizes.key_bias)
        self.norm2 = nn.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.fc1 = nn.Linear(sizes.width, sizes.mlp)
        self.fc2 = nn.Linear(sizes.mlp, sizes.width)

    def forward(self, x: Float[Tensor, "b n width"], causal: bool = False) -> Float[Tensor, "b n width"]:
        if self.frames:
            x = self._over_time(x)
        x = x + self.attention(self.norm1(x), causal)
        hidden = self.fc1(self.norm2(x))
        active = functional.gelu(hidden) if self.activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
        return x + self.fc2(active)

    def _over_time(self, x: Float[Tensor, "bt n width"]) -> Float[Tensor, "bt n width"]:
        """Attention among the tokens at one place of all frames of a clip."""
        places = x.shape[1]
        along = x.unflatten(0, (-1, self.frames)).transpose(1, 2).flatten(0, 1)
        if self.frames > 1:
            along = along + self.time_position
        along = along + self.time_attention(self.time_norm(along))
        return along.unflatten(0, (-1, places)).transpose(1, 2).flatten(0, 1)


class PatchTower(nn.Module):
    """A vision transformer: patches, class token, learned positions, blocks, and a projection of the class token without bias."""

    def __init__(self, patches: PatchSizes, sizes: TrunkSizes, dimension: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if len(patches.shape) == 2 else nn.Conv3d
        width = sizes.width
        self.frames = sizes.frames or 1
        self.patch = convolution(patches.channels, width, patches.patch, patches.stride, bias=False)  # type: ignore[arg-type]
        self.patch_norm = nn.LayerNorm(width, eps=1e-5) if patches.norm else nn.Identity()
        self.class_token = nn.Parameter(torch.zeros(patches.classes, width))
        self.position = nn.Parameter(torch.zeros(patches.patches + 1, width))
        self.pre_norm = nn.LayerNorm(width, eps=sizes.epsilon) if patches.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.post_norm = nn.LayerNorm(width, eps=sizes.epsilon)
        self.projection = nn.Linear(width, dimension, bias=False)

    def forward(self, pixels: Float[Tensor, "b ..."]) -> Float[Tensor, "b dimension"]:
        """Unit-norm embeddings. Towers with frames take [b, frames, channels, height, width]; their class tokens are averaged."""
        if self.frames > 1:
            pixels = pixels.flatten(0, 1)
        x = self.patch_norm(self.patch(pixels).flatten(2).transpose(1, 2))
        classes = self.class_token.repeat(len(x) // len(self.class_token), 1)[:, None]
        x = self.pre_norm(torch.cat([classes, x], dim=1) + self.position)
        for block in self.blocks:
            x = block(x)
        pooled = self.post_norm(x[:, 0]).unflatten(0, (-1, self.frames)).mean(dim=1)
        return functional.normalize(self.projection(pooled), dim=-1)


class TextTower(nn.Module):
    """A causal text transformer whose output at the end-of-text token is projected without bias."""

    def __init__(self, words: int, length: int, sizes: TrunkSizes, dimension: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, sizes.width)
        self.position = nn.Parameter(torch.zeros(length, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.post_norm = nn.LayerNorm(sizes.width, eps=sizes.epsilon)
        self.projection = nn.Linear(sizes.width, dimension, bias=False)

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b dimension"]:
        """Unit-norm embeddings. The end-of-text token has the highest number; what stands behind its first one has no influence."""
        x = self.words(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, causal=True)
        ends = self.post_norm(x[torch.arange(len(x), device=x.device), ids.argmax(dim=1)])
        return functional.normalize(self.projection(ends), dim=-1)


def on_meta(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    """A tower without weights, for what it expects and to be filled."""
    with torch.device("meta"):
        return kind(*arguments).eval().requires_grad_(False)
