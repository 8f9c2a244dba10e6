"""The registered encoders of LanguageBind."""

from __future__ import annotations

from collections.abc import Mapping
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
from feature_extractors.encoders.languagebind import preprocessing
from feature_extractors.encoders.languagebind.architecture import sizes_of, tower, with_adapters
from feature_extractors.encoders.languagebind.weights_folder import LAYOUT, find_checkpoint, find_model, read_config
from feature_extractors.encoders.vast.preprocessing import sources
from feature_extractors.encoders.vast.preprocessing.fbank import RATE, frame_count, frame_samples
from feature_extractors.encoders.vast.preprocessing.resample import resample_span, resampled_length, source_span
from feature_extractors.media.decode import spans_of
from feature_extractors.protocols import Image, MediaError, Medium

if TYPE_CHECKING:
    from torch import nn


class LanguageBind(JointEncoder):
    """A tower of LanguageBind, from its own folder in the folder of --weights."""

    system: ClassVar[str] = "LanguageBind"

    @cached_property
    def folder(self) -> Path:
        """The folder of the model, looked for when it is needed, so that errors about the dataset come first."""
        if self.given is None:
            raise CalmrlError("LanguageBind's encoders need the released weights", hint=f"--weights DIR; {LAYOUT}")
        return find_model(self.given, self.part)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return read_config(self.folder)

    @cached_property
    def sizes(self) -> dict[str, Any]:
        return sizes_of(self.config, self.part)

    def tower(self) -> tuple[nn.Module, Names]:
        return tower(self.part, self.config)

    def read(self) -> ReleasedWeights:
        read = ReleasedWeights.read(find_checkpoint(self.folder))
        return ReleasedWeights(
            read.path, with_adapters(read.tensors, self.config["vision_config"].get("lora_alpha", 16)), read.files
        )

    def settings(self) -> dict[str, Any]:
        return {"sizes": {name: value for name, value in self.sizes.items() if isinstance(value, int | float | str | bool)}}


@encoders.register("languagebind/image")
class LanguageBindImage(LanguageBind):
    """LanguageBind on an image, or the middle frame of a video; 768 (needs --weights)"""

    part = "image"

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "1 3 side side"]:
        """The picture as the tower takes it."""
        frame = sources.chosen_frames(medium, lambda total: [(total + 1) // 2 - 1])[0]
        return preprocessing.picture(frame, self.sizes["image_size"])


@encoders.register("languagebind/video")
class LanguageBindVideo(LanguageBind):
    """LanguageBind on 8 frames of a video from the first to the last; 768 (needs --weights)"""

    part = "video"
    rows = 4

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "1 frames 3 side side"]:
        """The frames of the clip. An image is a clip of that one frame."""
        count = int(self.sizes["num_frames"])
        frames = sources.chosen_frames(medium, lambda total: preprocessing.even_frames(total, count))
        if isinstance(medium, Image):
            frames = np.repeat(frames, count, axis=0)
        return preprocessing.clip(frames, self.sizes["image_size"])


@encoders.register("languagebind/audio")
class LanguageBindAudio(LanguageBind):
    """LanguageBind on three pieces of 10 s of a sound; 768 (needs --weights)"""

    part = "audio"

    def prepare(self, medium: Medium) -> Float32[np.ndarray, "1 3 bins length"]:
        """The spectrogram as the tower takes it. Raises MediaError `too_short` for less than one frame of 25 ms."""
        bins, length = int(self.sizes["num_mel_bins"]), int(self.sizes["target_length"])
        chosen: list[tuple[int, int]] = []

        def choose(total: int, rate: int) -> list[tuple[int, int]]:
            count = frame_count(resampled_length(total, rate, RATE))
            if count == 0:
                raise MediaError("too_short", f"{total / rate * 1000:.1f} ms of sound, 25 ms are needed")
            chosen[:] = [frame_samples(*frames) for frames in preprocessing.pieces(count, length)]
            return [source_span(*span, rate, RATE) for span in chosen]

        heard, rate = spans_of(medium, choose)
        sounds = [resample_span(samples[0], *span, rate, RATE) for samples, span in zip(heard, chosen, strict=True)]
        return preprocessing.spectrogram(sounds, bins, length, self.sizes["audio_mean"], self.sizes["audio_std"])


@encoders.register("languagebind/text")
class LanguageBindText(LanguageBind, JointText):
    """LanguageBind on texts of at most 77 tokens; 768 (needs --weights)"""

    part = "text"

    @cached_property
    def tokens(self) -> ClipTokens:
        return read_clip_tokens(
            [self.folder, *([self.given] if self.given else [])],
            int(self.sizes["max_position_embeddings"]),
            unescape=False,
            needed_for="languagebind/text",
        )

    def settings(self) -> dict[str, Any]:
        if self.tokens.size > self.sizes["vocab_size"]:
            raise CalmrlError(
                f"the vocabulary in '{self.folder}' has {self.tokens.size} words, its model {self.sizes['vocab_size']}",
                hint="use the vocabulary that was released with the model",
            )
        return LanguageBind.settings(self) | JointText.settings(self)
