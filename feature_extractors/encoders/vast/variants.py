"""VAST's encoders as released configurations set them: which frames, slices, channels and lengths each name stands for."""

from __future__ import annotations

from typing import Any

from feature_extractors.encoders import encoders
from feature_extractors.encoders.vast.audio import AudioEncoder
from feature_extractors.encoders.vast.encoder import VastEncoder
from feature_extractors.encoders.vast.text import TextEncoder
from feature_extractors.encoders.vast.vision import VisionEncoder

_AS_GRAM = {"channel": "mean", "lead_in": False}

# Name below "vast/" -> (class, its settings, one line for `calmrl-lab list encoders`).
VARIANTS: dict[str, tuple[type[VastEncoder], dict[str, Any], str]] = {
    "eva-g": (VisionEncoder, {}, "VAST's EVA01-CLIP-g/14: 8 frames squashed to 224 x 224; 1408 (needs --weights)"),
    "eva-g-16": (VisionEncoder, {"frames": 16}, "vast/eva-g with 16 frames (VATEX)"),
    "eva-g-32": (VisionEncoder, {"frames": 32}, "vast/eva-g with 32 frames (DiDeMo, ActivityNet)"),
    "eva-g-crop": (
        VisionEncoder,
        {"resize": "crop"},
        "vast/eva-g with the short side resized and the centre cropped (VAST-150K)",
    ),
    "eva-g-16-crop": (
        VisionEncoder,
        {"frames": 16, "resize": "crop"},
        "vast/eva-g with 16 frames and the centre cropped (MSR-VTT)",
    ),
    "eva-g-gram": (
        VisionEncoder,
        {"short_clips": "reject"},
        "vast/eva-g as GRAM runs it: clips of fewer than 8 frames are failures",
    ),
    "eva-g-crop-gram": (
        VisionEncoder,
        {"resize": "crop", "short_clips": "reject"},
        "vast/eva-g-crop as GRAM runs it (MSR-VTT, VAST-150K)",
    ),
    "beats64": (
        AudioEncoder,
        {},
        "VAST's BEATs on 64 mel bins: the middle slice of 10.24 s, first channel; 768 (needs --weights)",
    ),
    "beats64-2": (AudioEncoder, {"slices": 2}, "vast/beats64 with 2 slices (DiDeMo, ActivityNet)"),
    "beats64-3": (AudioEncoder, {"slices": 3}, "vast/beats64 with 3 slices (Clotho)"),
    "beats64-mono": (
        AudioEncoder,
        _AS_GRAM,
        "vast/beats64 as GRAM runs it: the mean of the channels, MP3 files without LAME's lead-in",
    ),
    "beats64-2-mono": (AudioEncoder, {"slices": 2, **_AS_GRAM}, "vast/beats64-mono with 2 slices (DiDeMo, ActivityNet)"),
    "beats64-3-mono": (AudioEncoder, {"slices": 3, **_AS_GRAM}, "vast/beats64-mono with 3 slices (Clotho)"),
    "bert-caption": (
        TextEncoder,
        {},
        "VAST's bert-base-uncased on captions of at most 40 tokens; 768 (needs --weights)",
    ),
    "bert-caption-70": (
        TextEncoder,
        {"length": 70},
        "vast/bert-caption for paragraphs of at most 70 tokens (DiDeMo, ActivityNet)",
    ),
    "bert-subtitle": (
        TextEncoder,
        {"modality": "subtitle", "length": 70},
        "VAST's bert-base-uncased on subtitles of at most 70 tokens; 768 (needs --weights)",
    ),
}


def _variant(name: str) -> type[VastEncoder]:
    """The encoder of a row of the table: a class of this module, so that worker processes find it by name."""
    base, settings, summary = VARIANTS[name]
    own = "".join(part.capitalize() for part in name.split("-"))
    return type(own, (base,), {**settings, "__doc__": summary, "__module__": __name__})


for _name in VARIANTS:
    _made = _variant(_name)
    globals()[_made.__name__] = encoders.register(f"vast/{_name}")(_made)
