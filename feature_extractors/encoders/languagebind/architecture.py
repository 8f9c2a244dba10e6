"""LanguageBind's towers: sizes from config.json, released names of their parameters, and low-rank adapters added to the weights they adapt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders._released_weights import Names, attention_names, layer_names

if TYPE_CHECKING:
    from torch import Tensor, nn

# What config.json leaves out where it is transformers' default for CLIP.
_DEFAULTS: Mapping[str, Any] = {
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "add_time_attn": False,
    "num_frames": 1,
    "num_mel_bins": 0,
    "target_length": 0,
    "lora_r": 0,
    "lora_alpha": 16,
    "vocab_size": 49_408,
    "max_position_embeddings": 77,
    "audio_sample_rate": 16_000,
    "audio_mean": -4.2677393,
    "audio_std": 4.5689974,
    "clip_type": "vl",
    "tube_size": 1,
}


def sizes_of(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """All sizes of the text or the other tower, defaults filled in. Raises CalmrlError for what the towers here cannot be."""
    sizes = {**_DEFAULTS, **config["text_config" if part == "text" else "vision_config"]}
    if part == "text":
        sizes |= {"add_time_attn": False, "num_attention_heads": config["text_config"].get("num_attention_heads", 12)}
        sizes["num_hidden_layers"] = config["text_config"].get("num_hidden_layers", 12)
    for name, known in (("hidden_act", ("gelu", "quick_gelu")), ("tube_size", (1,)), ("audio_sample_rate", (16_000,))):
        if sizes[name] not in known:
            raise CalmrlError(
                f"config.json of LanguageBind: {name} is {sizes[name]!r}, known here: {', '.join(map(repr, known))}",
                hint="use one of the released models of image, video or audio",
            )
    if "hidden_size" not in sizes or "intermediate_size" not in sizes:
        raise CalmrlError(
            "config.json of LanguageBind does not say hidden_size and intermediate_size", hint="download it again"
        )
    return sizes


def tower(part: str, config: Mapping[str, Any]) -> tuple[nn.Module, Names]:
    """The tower of `image`, `video`, `audio` or `text` on the meta device, and the released names of its parameters."""
    from feature_extractors.encoders._towers import PatchSizes, PatchTower, TextTower, TrunkSizes, on_meta

    sizes = sizes_of(config, part)
    frames = int(sizes["num_frames"]) if sizes["add_time_attn"] else 0
    trunk = TrunkSizes(
        sizes["hidden_size"],
        sizes["num_hidden_layers"],
        sizes["num_attention_heads"],
        sizes["intermediate_size"],
        sizes["layer_norm_eps"],
        sizes["hidden_act"],
        frames=frames,
    )
    root = "text_model" if part == "text" else "vision_model"
    names: dict[str, list[str]] = {}
    for number in range(trunk.depth):
        names |= _block_names(f"blocks.{number}", f"{root}.encoder.layers.{number}", frames > 0)
    names["position"] = [f"{root}.embeddings.position_embedding.weight"]
    if part == "text":
        names |= {
            "words.weight": [f"{root}.embeddings.token_embedding.weight"],
            "projection.weight": ["text_projection.weight"],
        }
        names |= layer_names({"post_norm": f"{root}.final_layer_norm"})
        words, length = sizes["vocab_size"], sizes["max_position_embeddings"]
        return on_meta(TextTower, words, length, trunk, config["projection_dim"]), names
    side = sizes["image_size"]
    shape = tuple(side) if isinstance(side, list) else (side, side)
    if part == "audio" and sizes["num_mel_bins"]:
        shape = (sizes["num_mel_bins"], sizes["target_length"])
    patch = (sizes["patch_size"],) * 2
    # The later models of video hold a class token for each frame.
    classes = frames if sizes["clip_type"] == "vl_new" and frames else 1
    names |= {
        "class_token": [f"{root}.embeddings.class_embedding"],
        "patch.weight": [f"{root}.embeddings.patch_embedding.weight"],
    }
    names |= layer_names({"pre_norm": f"{root}.pre_layrnorm", "post_norm": f"{root}.post_layernorm"})
    names |= {"projection.weight": ["visual_projection.weight"]}
    patches = PatchSizes(sizes["num_channels"], shape, patch, patch, classes=classes)
    return on_meta(PatchTower, patches, trunk, config["projection_dim"]), names


def with_adapters(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Tensors by the names of a model without adapters: to every adapted weight W the update (alpha / rank) B A is added, in float32.

    Names of both releases of the adapter library are understood.
    """
    plain = {
        re.sub(r"\.base_layer\.", ".", name.replace(".base_model.model.", ".")): tensor for name, tensor in tensors.items()
    }
    merged = {name: tensor for name, tensor in plain.items() if ".lora_" not in name}
    for name, down in plain.items():
        if found := re.match(r"(.+)\.lora_A(\.\w+)?\.weight$", name):
            up = plain.get(f"{found[1]}.lora_B{found[2] or ''}.weight")
            weight = merged.get(f"{found[1]}.weight")
            if up is None or weight is None:
                raise CalmrlError(
                    f"the checkpoint of LanguageBind holds half an adapter: {name} without its other half",
                    hint="download the checkpoint again",
                )
            merged[f"{found[1]}.weight"] = weight.float() + alpha / len(down) * (up.float() @ down.float())
    return merged


def _block_names(ours: str, released: str, over_time: bool) -> dict[str, list[str]]:
    names = attention_names(f"{ours}.attention", f"{released}.self_attn") | layer_names(
        {
            f"{ours}.norm1": f"{released}.layer_norm1",
            f"{ours}.norm2": f"{released}.layer_norm2",
            f"{ours}.fc1": f"{released}.mlp.fc1",
            f"{ours}.fc2": f"{released}.mlp.fc2",
        }
    )
    if over_time:
        names |= attention_names(f"{ours}.time_attention", f"{released}.temporal_attn")
        names |= layer_names({f"{ours}.time_norm": f"{released}.temporal_layer_norm1"})
        names |= {f"{ours}.time_position": [f"{released}.temporal_embedding"]}
    return names
