"""The registered encoders: which frames, slices, channels and lengths the released configurations use."""

from __future__ import annotations

from feature_extractors.encoders import encoders
from feature_extractors.encoders.vast.audio import AudioEncoder
from feature_extractors.encoders.vast.text import TextEncoder
from feature_extractors.encoders.vast.vision import VisionEncoder


@encoders.register("vast/eva-g")
class EvaG(VisionEncoder):
    """VAST's EVA01-CLIP-g/14: 8 frames squashed to 224 x 224; 1408 (needs --weights)"""


@encoders.register("vast/eva-g-16")
class EvaG16(VisionEncoder):
    """vast/eva-g with 16 frames (VATEX)"""

    frames = 16


@encoders.register("vast/eva-g-32")
class EvaG32(VisionEncoder):
    """vast/eva-g with 32 frames (DiDeMo, ActivityNet)"""

    frames = 32


@encoders.register("vast/eva-g-crop")
class EvaGCrop(VisionEncoder):
    """vast/eva-g with the short side resized and the centre cropped (VAST-150K)"""

    resize = "crop"


@encoders.register("vast/eva-g-16-crop")
class EvaG16Crop(VisionEncoder):
    """vast/eva-g with 16 frames and the centre cropped (MSR-VTT)"""

    frames = 16
    resize = "crop"


@encoders.register("vast/eva-g-gram")
class EvaGGram(VisionEncoder):
    """vast/eva-g as GRAM runs it: clips of fewer than 8 frames are failures"""

    short_clips = "reject"


@encoders.register("vast/eva-g-crop-gram")
class EvaGCropGram(VisionEncoder):
    """vast/eva-g-crop as GRAM runs it (MSR-VTT, VAST-150K)"""

    resize = "crop"
    short_clips = "reject"


@encoders.register("vast/beats64")
class Beats64(AudioEncoder):
    """VAST's BEATs on 64 mel bins: the middle slice of 10.24 s, first channel; 768 (needs --weights)"""


@encoders.register("vast/beats64-2")
class Beats64Two(AudioEncoder):
    """vast/beats64 with 2 slices (DiDeMo, ActivityNet)"""

    slices = 2


@encoders.register("vast/beats64-3")
class Beats64Three(AudioEncoder):
    """vast/beats64 with 3 slices (Clotho)"""

    slices = 3


@encoders.register("vast/beats64-mono")
class Beats64Mono(AudioEncoder):
    """vast/beats64 as GRAM runs it: the mean of the channels, MP3 files without LAME's lead-in"""

    channel = "mean"
    lead_in = False


@encoders.register("vast/beats64-2-mono")
class Beats64TwoMono(AudioEncoder):
    """vast/beats64-mono with 2 slices (DiDeMo, ActivityNet)"""

    slices = 2
    channel = "mean"
    lead_in = False


@encoders.register("vast/beats64-3-mono")
class Beats64ThreeMono(AudioEncoder):
    """vast/beats64-mono with 3 slices (Clotho)"""

    slices = 3
    channel = "mean"
    lead_in = False


@encoders.register("vast/bert-caption")
class BertCaption(TextEncoder):
    """VAST's bert-base-uncased on captions of at most 40 tokens; 768 (needs --weights)"""


@encoders.register("vast/bert-caption-70")
class BertCaption70(TextEncoder):
    """vast/bert-caption for paragraphs of at most 70 tokens (DiDeMo, ActivityNet)"""

    length = 70


@encoders.register("vast/bert-subtitle")
class BertSubtitle(TextEncoder):
    """VAST's bert-base-uncased on subtitles of at most 70 tokens; 768 (needs --weights)"""

    modality = "subtitle"
    length = 70
