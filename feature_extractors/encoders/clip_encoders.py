"""CLIP: pictures and texts in one space."""

from __future__ import annotations

from feature_extractors.encoders import encoders
from feature_extractors.encoders._transformers import ImageEncoder, TextTower


@encoders.register("clip/image")
class ClipImage(ImageEncoder):
    """CLIP on 8 frames of a video or an image (default openai/clip-vit-base-patch32, or --weights DIR/clip)"""

    kind, default, model_types = "clip", "openai/clip-vit-base-patch32", ("clip",)

    @property
    def dimension(self) -> int:
        return int(self.config.projection_dim)


@encoders.register("clip/text")
class ClipText(TextTower):
    """CLIP on texts of at most 77 tokens (default openai/clip-vit-base-patch32, or --weights DIR/clip)"""

    kind, default, model_types = "clip", "openai/clip-vit-base-patch32", ("clip",)

    @property
    def max_length(self) -> int:
        return int(self.config.text_config.max_position_embeddings)

    @property
    def dimension(self) -> int:
        return int(self.config.projection_dim)
