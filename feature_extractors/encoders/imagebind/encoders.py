"""The registered encoders of ImageBind."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float32

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders import encoders
from feature_extractors.encoders._clip_tokens import ClipTokens, read_clip_tokens
from feature_extractors.encoders._joint_encoder import JointEncoder, JointText
from feature_extractors.encoders._released_weights import Names, ReleasedWeights
from feature_extractors.encoders.imagebind import preprocessing
from feature_extractors.encoders.imagebind.architecture import FILE, Architecture, read_architecture, tower
from feature_extractors.encoders.imagebind.weights_folder import LAYOUT, find_checkpoint, vocabulary_folders
from feature_extractors.encoders.vast.preprocessing import sources
from feature_extractors.encoders.vast.preprocessing.fbank import RATE, frame_count
from feature_extractors.encoders.vast.preprocessing.resample import resample_span, resampled_length, source_span
from feature_extractors.media.decode import spans_of
from feature_extractors.media.video import frame_rate
from feature_extractors.protocols import File, MediaError, Medium

if TYPE_CHECKING:
    from torch import nn


class ImageBind(JointEncoder):
    """A tower of ImageBind, from the checkpoint in the folder of --weights."""

    system: ClassVar[str] = "ImageBind"

    @cached_property
    def path(self) -> Path:
        """The checkpoint, looked for when it is needed, so that errors about the dataset come first."""
        if self.given is None:
            raise CalmrlError("ImageBind's encoders need the released weights", hint=f"--weights DIR; {LAYOUT}")
        return find_checkpoint(self.given)

    @cached_property
    def architecture(self) -> Architecture:
        return read_architecture(self.path.with_name(FILE))

    def tower(self) -> tuple[nn.Module, Names]:
        return tower(self.part, self.architecture)

    def read(self) -> ReleasedWeights:
        return ReleasedWeights.read(self.path)


@encoders.register("imagebind/vision")
class ImageBindVision(ImageBind):
    """ImageBind on 5 clips of 2 s of a video in 3 crops each, or an image; 1024 (needs --weights)"""

    part = "vision"
    rows = 16

    def __init__(
        self,
        device: str = "cpu",
        weights: Path | None = None,
        frame_rate: float | None = None,
        precision: str = "fp32",
        batch_rows: int | None = None,
    ) -> None:
        super().__init__(device, weights, precision, batch_rows)
        self.folder_rate = frame_rate

    def settings(self) -> dict[str, Any]:
        sizes = self.architecture.as_json()
        return {
            "sizes": sizes["vision"],
            "side": sizes["side"],
            "clips": preprocessing.VIDEO_CLIPS,
            "seconds": preprocessing.SECONDS,
            "rate of frame folders": self.folder_rate,
        }

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "views 3 2 side side"]:
        """The views of a video, or the one view of an image. Folders of frames need the option `frame_rate` (frames per second)."""
        side = self.architecture.side
        still = False

        def choose(total: int) -> list[int]:
            nonlocal still
            still = total == 1
            return [0] if still else preprocessing.frame_pairs(total, self._rate(medium))

        frames = sources.chosen_frames(medium, choose)
        return preprocessing.picture(frames[0], side) if still or len(frames) == 1 else preprocessing.video_views(frames, side)

    def _rate(self, medium: Medium) -> float:
        if isinstance(medium, File) and medium.path.is_dir():
            if self.folder_rate is None:
                raise MediaError(
                    "not_media", "a folder of frames says no frames per second (--encoder-option MODALITY.frame_rate=N says it)"
                )
            return self.folder_rate
        assert isinstance(medium, File)
        return frame_rate(medium.path)


@encoders.register("imagebind/audio")
class ImageBindAudio(ImageBind):
    """ImageBind on 3 clips of 2 s of a sound; 1024 (needs --weights)"""

    part = "audio"

    def settings(self) -> dict[str, Any]:
        sizes = self.architecture.as_json()
        return {
            "sizes": sizes["audio"],
            "mel": [sizes["mel_bins"], sizes["mel_frames"]],
            "clips": preprocessing.SOUND_CLIPS,
            "seconds": preprocessing.SECONDS,
            "filterbank": "kaldi hanning",
            "resampling": "sinc-hann-6",
        }

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "clips 1 bins frames"]:
        """Normalised mel spectrograms of the clips. Raises MediaError `too_short` for less than one frame of 25 ms."""
        clips: list[tuple[int, int]] = []
        spans: list[tuple[int, int]] = []

        def choose(length: int, rate: int) -> list[tuple[int, int]]:
            total = resampled_length(length, rate, RATE)
            clips[:] = preprocessing.sound_clips(total)
            if frame_count(clips[0][1] - clips[0][0]) == 0:
                raise MediaError("too_short", f"{length / rate * 1000:.1f} ms of sound, 25 ms are needed")
            overlap = clips[0][1] > clips[1][0]
            spans[:] = [(0, total)] if overlap else clips
            return [source_span(*span, rate, RATE) for span in spans]

        heard, rate = spans_of(medium, choose)
        sounds = [resample_span(samples, *span, rate, RATE).copy() for samples, span in zip(heard, spans, strict=True)]
        pieces = [sounds[0][:, start:stop] for start, stop in clips] if len(sounds) == 1 else sounds
        sizes = self.architecture
        return np.stack([preprocessing.spectrogram(piece, sizes.mel_bins, sizes.mel_frames) for piece in pieces])


@encoders.register("imagebind/text")
class ImageBindText(ImageBind, JointText):
    """ImageBind on texts of at most 77 tokens; 1024 (needs --weights)"""

    part = "text"

    @cached_property
    def tokens(self) -> ClipTokens:
        sizes = self.architecture
        read = read_clip_tokens(vocabulary_folders(self.path), sizes.length, unescape=True, needed_for="imagebind/text")
        if read.size != sizes.words:
            raise CalmrlError(
                f"the vocabulary beside '{self.path}' has {read.size} words, expected {sizes.words}",
                hint="use the vocabulary of CLIP, unchanged",
            )
        return read

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"sizes": self.architecture.as_json()["text"]}
