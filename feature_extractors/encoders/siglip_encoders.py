"""SigLIP and SigLIP 2 of fixed resolution: pictures and texts in one space."""

from __future__ import annotations

from typing import Any

import numpy as np

from feature_extractors.encoders import encoders
from feature_extractors.encoders._transformers import ImageEncoder, TextTower
from feature_extractors.encoders.vast.preprocessing import sources
from feature_extractors.protocols import Medium, Text


@encoders.register("siglip/image")
class SiglipImage(ImageEncoder):
    """SigLIP 2 on 8 frames of a video or an image (default google/siglip2-base-patch16-224, or --weights DIR/siglip)"""

    kind, default, model_types = "siglip", "google/siglip2-base-patch16-224", ("siglip",)

    @property
    def dimension(self) -> int:
        return int(self.config.vision_config.hidden_size)


@encoders.register("siglip/text")
class SiglipText(TextTower):
    """SigLIP 2 on texts padded to 64 tokens (default google/siglip2-base-patch16-224, or --weights DIR/siglip)"""

    kind, default, model_types = "siglip", "google/siglip2-base-patch16-224", ("siglip",)
    # SigLIP was trained on texts padded to full length, without a mask.
    fixed_length = True

    @property
    def max_length(self) -> int:
        return int(self.config.text_config.max_position_embeddings)

    @property
    def dimension(self) -> int:
        return int(self.config.text_config.projection_size)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "case": "lower"}

    def prepare(self, medium: Medium) -> np.ndarray:
        """Token ids of the text in lower case, as both models were trained (arXiv 2502.14786); not every tokenizer file says so."""
        return super().prepare(Text(sources.text(medium).lower()))

    def _features(self, ids: Any, observed: Any) -> Any:
        with self.autocast():
            return self.model.get_text_features(input_ids=ids).pooler_output
