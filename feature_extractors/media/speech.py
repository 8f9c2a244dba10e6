"""A text to speech, through the eSpeak NG library."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from calmrl_lab.errors import missing_extra
from feature_extractors.protocols import MediaError, Waveform

_SYNCHRONOUS = 2
_UTF8 = 1
_CHARACTERS = 1
_ONE_AT_A_TIME = threading.Lock()  # the library has one state a process, and ctypes lets other threads run
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(text: str, voice: str) -> tuple[np.ndarray, int]:
    """Samples int16 [time] and their rate in Hz. MediaError if the voice is unknown or nothing could be said.

    The synthesiser keeps state between utterances in static variables that starting it anew does not reset, and takes noise from the C
    library's `rand`. The library is therefore loaded and unloaded for every utterance (4 ms) and `rand` seeded, so that the sound
    is a function of the text and the voice alone.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise missing_extra("espeakng-loader", "demo", "speaking a text") from None
    with _ONE_AT_A_TIME:
        system = ctypes.CDLL(None)
        system.dlclose.argtypes = [ctypes.c_void_p]
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            system.srand(1)
            return _speak(library, espeakng_loader.get_data_path().encode(), text, voice)
        finally:
            library.espeak_Terminate()
            system.dlclose(library._handle)


def _speak(library: ctypes.CDLL, data: bytes, text: str, voice: str) -> tuple[np.ndarray, int]:
    chunks: list[np.ndarray] = []

    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    callback = _CALLBACK(collect)  # bound to a name: it must outlive the synthesis
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
    if rate <= 0:
        raise MediaError("decode_error", "eSpeak NG could not start")
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise MediaError("decode_error", f"eSpeak NG has no voice '{voice}'")
    encoded = text.encode()
    if library.espeak_Synth(encoded, len(encoded) + 1, 0, _CHARACTERS, 0, _UTF8, None, None) != 0:
        raise MediaError("decode_error", f"eSpeak NG could not speak '{text}'")
    library.espeak_Synchronize()
    if not chunks:
        raise MediaError("too_short", f"eSpeak NG said nothing for '{text}'")
    return np.concatenate(chunks), rate


@dataclass(frozen=True)
class SpokenText:
    """`text` spoken by the eSpeak NG voice `voice` (a language code)."""

    text: str
    voice: str

    def make(self) -> Waveform:
        """Mono samples float32 [1, time] in [-1, 1]. MediaError if nothing could be said."""
        samples, rate = speak(self.text, self.voice)
        return Waveform(samples.astype(np.float32)[None] / 32768.0, rate)
