"""Sound as torchaudio processes it, kept in tests/data/golden_sound.npz: `PYTHONPATH=. python tests/vast/golden.py` writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np

PATH = Path(__file__).parents[1] / "data" / "golden_sound.npz"
RATES = (8000, 22050, 44100, 48000)


def signal(rate: int, seconds: float) -> np.ndarray:
    """A rising tone, a beating one and a repeating hiss, float32 in [-1, 1]; by formula, so that no random generator can drift."""
    index = np.arange(round(rate * seconds))
    time = index / rate
    hiss = (index * index * 31 % 97) / 48.0 - 1
    tones = 0.5 * np.sin(2 * np.pi * (200 + 1500 * time) * time) + 0.2 * np.sin(2 * np.pi * 3300 * time) * np.cos(
        14 * np.pi * time
    )
    return (tones + 0.05 * hiss).astype(np.float32)


def torchaudio_without_its_library() -> ModuleType:
    """torchaudio's Python code, which is all that is needed here: its compiled library may be built for another torch."""
    extension = ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
    extension.fail_if_no_align = lambda function: function
    sys.modules.setdefault("torchaudio._extension", extension)
    import torchaudio
    import torchaudio.compliance.kaldi

    return torchaudio


def torchaudio_arrays() -> dict[str, np.ndarray]:
    """`fbank` [18, 64]: the filterbank of 0.2 s as the released code calls it; `from_<rate>`: 0.02 s of sound resampled to 16 kHz."""
    import torch

    torchaudio = torchaudio_without_its_library()
    samples = torch.from_numpy(signal(16000, 0.2))[None] * 2**15
    kaldi = torchaudio.compliance.kaldi.fbank(samples, num_mel_bins=64, sample_frequency=16000, frame_length=25, frame_shift=10)
    arrays = {"fbank": kaldi.numpy()}
    for rate in RATES:
        change = torchaudio.transforms.Resample(rate, 16000)
        arrays[f"from_{rate}"] = change(torch.from_numpy(signal(rate, 0.02))[None])[0].numpy()
    return arrays


if __name__ == "__main__":
    np.savez_compressed(PATH, **torchaudio_arrays())
    print(PATH, PATH.stat().st_size, "bytes")
