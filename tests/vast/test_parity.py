"""Each encoder against the published formulas, written again in float64 NumPy; nothing here is shared with the product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import erf

from feature_extractors.encoders.vast.checkpoint import load_checkpoint
from feature_extractors.encoders.vast.networks import beats, bert, eva
from feature_extractors.encoders.vast.rerank.matching import Matcher

TOLERANCE = 1e-5


def part(tensors, prefix):
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def doubles(tensors, prefix):
    return {k: v.double().numpy() for k, v in part(tensors, prefix).items()}


def gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def norm(x, w, name, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def split_heads(x, heads):
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def merge_heads(x):
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def reference_eva(w, pixels, sizes):
    """arXiv 2303.15389: x += attention(norm1 x); x += mlp(norm2 x); queries and values have biases, keys have none."""
    p, side = sizes.patch, sizes.resolution // sizes.patch
    patches = pixels.reshape(len(pixels), 3, side, p, side, p).transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), side * side, -1)
    x = patches @ w["patch_embed.proj.weight"].reshape(sizes.width, -1).T + w["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(w["cls_token"], (len(x), 1, sizes.width)), x], axis=1) + w["pos_embed"]
    for i in range(sizes.depth):
        b = f"blocks.{i}"
        h = norm(x, w, f"{b}.norm1", 1e-6)
        q, k, v = np.split(h @ w[f"{b}.attn.qkv.weight"].T, 3, axis=-1)
        q, v = q + w[f"{b}.attn.q_bias"], v + w[f"{b}.attn.v_bias"]
        q, k, v = (split_heads(y, sizes.heads) for y in (q, k, v))
        weights = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]))
        x = x + linear(merge_heads(weights @ v), w, f"{b}.attn.proj")
        x = x + linear(gelu(linear(norm(x, w, f"{b}.norm2", 1e-6), w, f"{b}.mlp.fc1")), w, f"{b}.mlp.fc2")
    return norm(x, w, "norm", 1e-6)


def reference_bucket(relative, sizes):
    """Bidirectional T5 bucket of one relative position (key minus query)."""
    half = sizes.buckets // 2
    offset = half if relative > 0 else 0
    distance, exact = abs(relative), half // 2
    if distance < exact:
        return offset + distance
    far = (
        np.log(np.float32(distance) / np.float32(exact))
        / np.float32(np.log(sizes.max_distance / exact))
        * np.float32(half - exact)
    )
    return offset + min(exact + int(far), half - 1)


def reference_beats(w, spectrograms, sizes):
    """arXiv 2212.09058 with the gated relative position bias of WavLM (arXiv 2110.13900) and deep-norm residuals."""
    n, frames, mel = spectrograms.shape
    p = sizes.patch
    patches = spectrograms.reshape(n, frames // p, p, mel // p, p).transpose(0, 1, 3, 2, 4).reshape(n, -1, p * p)
    x = norm(patches @ w["patch_embedding.weight"].reshape(sizes.embed, -1).T, w, "layer_norm", 1e-5)
    x = linear(x, w, "post_extract_proj")
    # Weight norm with one gain a tap, then a grouped convolution over positions, the last of its outputs dropped.
    v, g, kernel = w["encoder.pos_conv.0.weight_v"], w["encoder.pos_conv.0.weight_g"], sizes.position_kernel
    filters = g * v / np.sqrt((v**2).sum(axis=(0, 1), keepdims=True))
    length, per = x.shape[1], sizes.width // sizes.position_groups
    padded = np.pad(x, ((0, 0), (kernel // 2, kernel // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=1)[:, :length]
    positions = np.empty_like(x)
    for group in range(sizes.position_groups):
        own = slice(group * per, (group + 1) * per)
        positions[..., own] = np.einsum("ntck,ock->nto", windows[:, :, own], filters[own]) + w["encoder.pos_conv.0.bias"][own]
    x = norm(x + gelu(positions), w, "encoder.layer_norm", 1e-5)

    table = w["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    index = np.array([[reference_bucket(j - i, sizes) for j in range(length)] for i in range(length)])
    bias = table[index].transpose(2, 0, 1)
    alpha = (2 * sizes.depth) ** 0.25
    for i in range(sizes.depth):
        a = f"encoder.layers.{i}.self_attn"
        q, k, v = (split_heads(linear(x, w, f"{a}.{m}_proj"), sizes.heads) for m in "qkv")
        gates = linear(q, w, f"{a}.grep_linear").reshape(*q.shape[:-1], 2, 4).sum(-1)
        gates = 1 / (1 + np.exp(-gates))
        scale = gates[..., :1] * (gates[..., 1:] * w[f"{a}.grep_a"] - 1) + 2
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + scale * bias
        y = linear(merge_heads(softmax(scores) @ v), w, f"{a}.out_proj")
        x = norm(x * alpha + y, w, f"encoder.layers.{i}.self_attn_layer_norm", 1e-5)
        y = linear(gelu(linear(x, w, f"encoder.layers.{i}.fc1")), w, f"encoder.layers.{i}.fc2")
        x = norm(x * alpha + y, w, f"encoder.layers.{i}.final_layer_norm", 1e-5)
    return x


def reference_attention(x, source, w, name, heads, allowed):
    q = split_heads(linear(x, w, f"{name}.self.query"), heads)
    k, v = (split_heads(linear(source, w, f"{name}.self.{m}"), heads) for m in ("key", "value"))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if allowed is not None:
        scores = np.where(allowed[:, None, None, :], scores, -np.inf)
    y = linear(merge_heads(softmax(scores) @ v), w, f"{name}.output.dense")
    return norm(x + y, w, f"{name}.output.LayerNorm", 1e-12)


def reference_bert(w, ids, allowed, sizes, condition=None):
    """arXiv 1810.04805, post-norm; with `condition`, cross-attention to it after every self-attention."""
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], w, "embeddings.LayerNorm", 1e-12)
    for i in range(sizes.depth):
        layer = f"encoder.layer.{i}"
        x = reference_attention(x, x, w, f"{layer}.attention", sizes.heads, allowed)
        if condition is not None:
            x = reference_attention(x, condition, w, f"{layer}.crossattention", sizes.heads, None)
        y = linear(gelu(linear(x, w, f"{layer}.intermediate.dense")), w, f"{layer}.output.dense")
        x = norm(x + y, w, f"{layer}.output.LayerNorm", 1e-12)
    return x


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_eva_follows_its_formulas(tensors, architecture, generator):
    pixels = generator.standard_normal((2, 3, 224, 224)).astype(np.float32)
    expected = reference_eva(doubles(tensors, "vision_encoder.visual."), pixels.astype(np.float64), architecture.vision)
    model = eva.load(part(tensors, "vision_encoder.visual."), architecture.vision)
    assert_allclose(eva.tokens(model, torch.from_numpy(pixels)).numpy(), expected, atol=TOLERANCE)


def test_beats_follows_its_formulas(tensors, architecture, generator):
    spectrograms = generator.standard_normal((2, 1024, 64)).astype(np.float32)
    expected = reference_beats(doubles(tensors, "audio_encoder."), spectrograms.astype(np.float64), architecture.audio)
    model = beats.load(part(tensors, "audio_encoder."), architecture.audio)
    assert_allclose(model(torch.from_numpy(spectrograms)).numpy(), expected, atol=TOLERANCE)


def test_bert_follows_its_formulas(tensors, architecture, generator):
    ids = generator.integers(5, 40, (3, 12))
    allowed = np.arange(12)[None] < np.array([[12], [7], [3]])
    expected = reference_bert(doubles(tensors, "multimodal_encoder.bert."), ids, allowed, architecture.text)
    model = bert.load(part(tensors, "multimodal_encoder.bert."), architecture.text)
    got = bert.tokens(model, torch.from_numpy(ids), torch.from_numpy(allowed)).numpy()
    assert_allclose(got[allowed], expected[allowed], atol=TOLERANCE)


def test_the_buckets_of_all_distances_follow_t5(architecture):
    got = beats.buckets(1200, architecture.audio).numpy()
    expected = [reference_bucket(relative, architecture.audio) for relative in range(1200)]
    assert got[0].tolist() == expected
    assert got[:, 0].tolist() == [reference_bucket(-relative, architecture.audio) for relative in range(1200)]


def test_a_later_token_changes_the_class_token_and_padding_does_not(tensors, architecture):
    # The same BERT as a transformers decoder with a two-dimensional mask is causal, and its class token would not move.
    model = bert.load(part(tensors, "multimodal_encoder.bert."), architecture.text)
    ids = torch.tensor([[3, 10, 11, 12, 4], [3, 10, 11, 20, 4]])
    first, second = bert.tokens(model, ids, torch.ones_like(ids, dtype=torch.bool))[:, 0]
    assert (first - second).abs().max() > 1e-3

    padded = torch.cat([ids, torch.zeros(2, 35, dtype=torch.long)], dim=1)
    observed = torch.arange(40)[None].expand(2, -1) < 5
    assert_allclose(bert.tokens(model, padded, observed)[:, 0].numpy(), torch.stack([first, second]).numpy(), atol=5e-6)


def test_transformers_decoder_with_a_flat_mask_is_the_trap_we_avoid(tensors, architecture):
    decoder = bert.load(part(tensors, "multimodal_encoder.bert."), architecture.text, cross_attention=True)
    ids = torch.tensor([[3, 10, 11, 12, 4], [3, 10, 11, 20, 4]])
    first, second = decoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    assert (first - second).abs().max() == 0, "transformers changed: the bidirectional path may be simplified"


def reference_condition(w, vision, audio, subtitle):
    """Projected, normalised, marked with frame (nearest row) and kind, joined as vision, audio, subtitle."""
    rows = []
    for name, tokens in (("vision", vision), ("audio", audio), ("subtitle", subtitle)):
        prefix = f"hidden_trans_{name}_multimodal"
        x = norm(linear(tokens, w, f"{prefix}.0"), w, f"{prefix}.1", 1e-12)
        if name != "subtitle":
            frames = w[f"{name}_frame_embedding"][0]
            x = x + np.stack([frames[int(np.floor(i * len(frames) / len(x)))] for i in range(len(x))])[:, None]
        rows.append((x + w[f"{name}_type_embeddings"][0]).reshape(-1, x.shape[-1]))
    return np.concatenate(rows)


def test_matching_follows_its_formulas(weights, tensors, architecture, generator):
    matcher = Matcher(load_checkpoint(weights))
    w, own = doubles(tensors, ""), doubles(tensors, "multimodal_encoder.bert.")
    vision, audio = generator.standard_normal((3, 9, 32)), generator.standard_normal((2, 5, 48))
    subtitle = generator.standard_normal((7, 32))
    condition = matcher.condition(vision, audio, subtitle)
    expected = reference_condition(w, vision, audio, subtitle)
    assert_allclose(condition, expected, atol=TOLERANCE)

    captions = [np.array([3, 10, 11, 12, 4]), np.array([3, 8, 4]), np.array([3, *range(6, 25), 4])]
    ids = np.zeros((3, 21), np.int64)
    for row, caption in zip(ids, captions, strict=True):
        row[: len(caption)] = caption
    allowed = np.arange(21)[None] < np.array([[5], [3], [21]])
    classes = reference_bert(own, ids, allowed, architecture.text, np.broadcast_to(expected, (3, *expected.shape)))[:, 0]
    hidden = norm(gelu(linear(classes, w, "itm_head.linear1")), w, "itm_head.layernorm", 1e-12)
    probability = softmax(linear(hidden, w, "itm_head.linear2"))[:, 1]
    cached = matcher.keys_values(condition)
    assert_allclose(matcher.scores(captions, cached), probability, atol=TOLERANCE)
    assert_allclose(matcher.scores(captions[1:2], cached), probability[1:2], atol=TOLERANCE)
