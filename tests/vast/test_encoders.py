"""VAST's encoders behind the protocol: pooling, batches, fingerprints, heads, what travels to workers, what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from vast.slices import cut

from calmrl_lab.errors import CalmrlError, WorkFailedError
from feature_extractors.encoders import encoders
from feature_extractors.encoders.vast.batching import Pieces, Runs
from feature_extractors.encoders.vast.preprocessing.fbank import mel_filterbank, normalise
from feature_extractors.encoders.vast.preprocessing.resample import resample
from feature_extractors.protocols import AbsentError, File, Image, MediaError, Text, Vector, Waveform

NAMES = ("vast/eva-g", "vast/beats64", "vast/bert-caption", "vast/bert-subtitle")


@pytest.fixture(scope="module")
def generator():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def sounds(generator):
    return [
        Waveform((generator.standard_normal((c, n)) * 0.1).astype(np.float32), rate)
        for c, n, rate in ((2, 44100, 44100), (1, 8000, 16000))
    ]


def media(name, generator, sounds):
    if "eva" in name:
        return [Image(generator.integers(0, 256, (60, 80 + i, 3), dtype=np.uint8)) for i in range(3)]
    return (
        sounds
        if "beats" in name
        else [Text(t) for t in ("a dog is playing.", "cat", "the man is running in the rain and sings, " * 9)]
    )


@pytest.mark.parametrize("name", NAMES)
class TestEveryEncoder:
    def test_features_do_not_depend_on_the_batch(self, name, weights, generator, sounds):
        encoder = encoders.get(name)(weights=weights)
        prepared = [encoder.prepare(m) for m in media(name, generator, sounds)]
        together = encoder.encode(prepared)
        assert together.shape == (len(prepared), encoder.dimension)
        assert together.dtype == np.float32
        assert_allclose(together, np.concatenate([encoder.encode([p]) for p in prepared]), atol=2e-6)
        assert_allclose(together[::-1], encoder.encode(prepared[::-1]), atol=2e-6)
        small = encoders.get(name)(weights=weights, batch_rows=1)
        assert_allclose(small.encode(prepared), together, atol=2e-6)

    def test_the_order_of_tokens_pools_to_the_feature(self, name, weights, generator, sounds):
        encoder = encoders.get(name)(weights=weights)
        prepared = [encoder.prepare(m) for m in media(name, generator, sounds)]
        pools = {"vision": lambda t: t[:, 0].mean(0), "audio": lambda t: t.mean((0, 1)), "text": lambda t: t[0]}
        pooled = [pools[encoder.part](tokens) for tokens in encoder.tokens(prepared)]
        assert_allclose(encoder.encode(prepared), pooled, atol=5e-6)

    def test_half_precision_points_the_same_way(self, name, weights, generator, sounds):
        prepared = [encoders.get(name)(weights=weights).prepare(m) for m in media(name, generator, sounds)]
        full, half = (encoders.get(name)(weights=weights, precision=p).encode(prepared) for p in ("fp32", "bf16"))
        cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
        assert (cosine > 0.999).all()
        assert not np.array_equal(full, half)

    def test_half_precision_adds_up_in_full(self, name, weights, generator, sounds):
        encoder = encoders.get(name)(weights=weights, precision="bf16")
        inner = encoder.model.encoder
        kept = []
        for layer in getattr(inner, "layers", None) or inner.layer:
            layer.register_forward_hook(lambda _, given, made: kept.extend(t.dtype for t in (given[0], made)))
        encoder.encode([encoder.prepare(media(name, generator, sounds)[0])])
        assert kept == [torch.float32] * 4, "what goes from layer to layer"
        products = [module for module in encoder.model.modules() if isinstance(module, torch.nn.Linear)]
        assert {module.weight.dtype for module in products} == {torch.bfloat16}

    def test_weights_saved_in_half_are_widened(self, name, tensors, make_weights, generator, sounds):
        half = {k: v.half() for k, v in tensors.items()}
        encoder = encoders.get(name)(weights=make_weights(half, "half"))
        same = encoders.get(name)(weights=make_weights({k: v.float() for k, v in half.items()}, "widened"))
        prepared = [encoder.prepare(m) for m in media(name, generator, sounds)]
        assert_array_equal(encoder.encode(prepared), same.encode(prepared))

    def test_the_fingerprint_sees_weights_and_settings(self, name, weights, tensors, make_weights):
        make = encoders.get(name)
        first = make(weights=weights).fingerprint
        assert first == make(weights=weights / "ckpt" / "..").fingerprint
        assert first != make(weights=weights, precision="bf16").fingerprint
        assert len(first) == 64
        # Only this encoder's part counts: another temperature is no other feature, another layer is.
        changed = {k: v + 0.5 if k == "contra_temp" else v for k, v in tensors.items()}
        assert make(weights=make_weights(changed, "warm")).fingerprint == first
        changed = {
            k: v * 1.5 if k.endswith(("pos_embed", "post_extract_proj.bias", "LayerNorm.bias")) else v
            for k, v in tensors.items()
        }
        assert make(weights=make_weights(changed, "other")).fingerprint != first

    def test_it_travels_without_its_model(self, name, weights, generator, sounds):
        encoder = encoders.get(name)(weights=weights)
        medium = media(name, generator, sounds)[0]
        prepared = encoder.prepare(medium)
        encoder.encode([prepared])
        sent = pickle.dumps(encoder)
        assert len(sent) < 20_000
        assert_array_equal(pickle.loads(sent).prepare(medium), prepared)

    def test_it_refuses_what_it_cannot_use(self, name, weights, tmp_path):
        make = encoders.get(name)
        with pytest.raises(CalmrlError, match="need the released weights") as caught:
            _ = make().fingerprint
        assert "model_step_N.pt" in caught.value.hint
        with pytest.raises(CalmrlError, match="does not exist"):
            _ = make(weights=tmp_path / "no").dimension
        assert make().part, "making one needs nothing, so that errors about the dataset come first"
        with pytest.raises(CalmrlError, match="unknown precision"):
            make(weights=weights, precision="int8")
        with pytest.raises(MediaError, match="needed, got vector"):
            make(weights=weights).prepare(Vector(np.zeros(3, np.float32)))


def test_all_presets_have_their_variants():
    expected = {
        "vast/eva-g": (8, "squash", "repeat"),
        "vast/eva-g-16": (16, "squash", "repeat"),
        "vast/eva-g-32": (32, "squash", "repeat"),
        "vast/eva-g-crop": (8, "crop", "repeat"),
        "vast/eva-g-16-crop": (16, "crop", "repeat"),
        "vast/eva-g-gram": (8, "squash", "reject"),
        "vast/eva-g-crop-gram": (8, "crop", "reject"),
    }
    assert {
        n: (e.frames, e.resize, e.short_clips) for n in encoders if n.startswith("vast/eva") for e in [encoders.get(n)]
    } == expected
    expected = {
        f"vast/beats64{n}{m}": (s, c) for n, s in (("", 1), ("-2", 2), ("-3", 3)) for m, c in (("", "first"), ("-mono", "mean"))
    }
    assert {n: (e.slices, e.channel) for n in encoders if n.startswith("vast/beats") for e in [encoders.get(n)]} == expected
    expected = {
        "vast/bert-caption": ("caption", 40),
        "vast/bert-caption-70": ("caption", 70),
        "vast/bert-subtitle": ("subtitle", 70),
    }
    assert {n: (e.modality, e.length) for n in encoders if n.startswith("vast/bert") for e in [encoders.get(n)]} == expected


def test_variants_are_told_apart_by_their_fingerprints(weights):
    for family in ("vast/eva", "vast/beats", "vast/bert-caption"):
        prints = [encoders.get(name)(weights=weights).fingerprint for name in encoders if name.startswith(family)]
        assert len(set(prints)) == len(prints)


def test_every_modality_brings_the_released_head(weights, tensors):
    for name, head in (("vast/eva-g", "v"), ("vast/beats64", "a"), ("vast/bert-caption", "t"), ("vast/bert-subtitle", "s")):
        encoder = encoders.get(name)(weights=weights)
        assert_array_equal(encoder.heads()[f"contra_head_{head}"], tensors[f"contra_head_{head}.linear.weight"].numpy())
        assert encoder.heads()[f"contra_head_{head}"].shape[1] == encoder.dimension


def test_the_channel_rule(weights, sounds):
    stereo = sounds[0]
    first = encoders.get("vast/beats64")(weights=weights).prepare(stereo)
    mono = encoders.get("vast/beats64-mono")(weights=weights).prepare(stereo)
    assert_allclose(first, cut(normalise(mel_filterbank(resample(stereo.samples, 44100)[0]))), atol=1e-5)
    assert_allclose(mono, cut(normalise(mel_filterbank(resample(stereo.samples.mean(0), 44100)))), atol=1e-5)
    assert np.abs(first - mono).max() > 0.05
    with pytest.raises(CalmrlError, match="unknown channel rule"):
        encoders.get("vast/beats64")(weights=weights, channel="left")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vast/beats64", "vast/beats64-2", "vast/beats64-3-mono"])
@pytest.mark.parametrize(("seconds", "rate"), [(3, 44_100), (10.265, 16_000), (20.505, 16_000), (61, 22_050), (200, 16_000)])
def test_slices_of_a_long_sound_are_those_of_the_whole(weights, tmp_path, monkeypatch, name, seconds, rate):
    pytest.importorskip("av", reason="decoding needs the extra 'media'")
    import av

    from feature_extractors.media import sound as sound_module

    monkeypatch.setattr(sound_module, "_KEPT_VALUES", 100_000)
    samples = np.random.default_rng(3).integers(-20_000, 20_000, (2, round(seconds * rate)), dtype=np.int16)
    with av.open(str(tmp_path / "a.flac"), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout="stereo")
        for start in range(0, samples.shape[1], 1 << 14):
            piece = np.ascontiguousarray(samples[:, start : start + (1 << 14)].T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="stereo")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    encoder = encoders.get(name)(weights=weights)
    heard = samples.astype(np.float32) / 32768
    mono = heard.mean(axis=0) if "mono" in name else heard[0]
    expected = cut(normalise(mel_filterbank(resample(mono, rate))), encoder.slice_count)
    assert_array_equal(encoder.prepare(File(tmp_path / "a.flac")), expected)
    assert_array_equal(encoder.prepare(Waveform(heard, rate)), expected)


def test_less_than_a_frame_of_sound_is_a_failure_not_a_vector(weights):
    with pytest.raises(MediaError, match="25 ms are needed") as caught:
        encoders.get("vast/beats64")(weights=weights).prepare(Waveform(np.zeros((1, 399), np.float32), 16000))
    assert caught.value.code == "too_short"


def test_text_is_lower_cased_cut_and_framed(weights):
    encoder = encoders.get("vast/bert-caption")(weights=weights)
    words = encoder.tokenizer.get_vocab()
    assert encoder.prepare(Text("A Dog sings.")).tolist() == [
        words[w] for w in ("[CLS]", "a", "dog", "sing", "##s", ".", "[SEP]")
    ]
    long = encoder.prepare(Text("dog " * 200))
    assert len(long) == 40
    assert long[-1] == words["[SEP]"]
    assert len(encoders.get("vast/bert-subtitle")(weights=weights).prepare(Text("dog " * 200))) == 70
    with pytest.raises(AbsentError):
        encoder.prepare(Text(" \t\n"))
    assert len(encoder.tokens([encoder.prepare(Text("dog"))])[0]) == 40, "matching sees the padding"


def test_vocabularies_that_do_not_fit(make_weights, tensors):
    make = encoders.get("vast/bert-caption")
    folder = make_weights(tensors)
    path = folder / "bert" / "bert-base-uncased" / "vocab.txt"
    path.write_text(path.read_text() + "extra\n")
    with pytest.raises(CalmrlError, match="words, the weights are for"):
        make(weights=folder).prepare(Text("a"))
    path.write_text("a\nb\n")
    with pytest.raises(CalmrlError, match=r"\(2 words\) has no \[PAD\]"):
        make(weights=folder).prepare(Text("a"))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CalmrlError, match="cannot be read"):
        make(weights=folder).prepare(Text("a"))
    path.unlink()
    with pytest.raises(CalmrlError, match="no vocabulary"):
        _ = make(weights=folder).fingerprint
    with pytest.raises(CalmrlError, match="text length 500 is out of range"):
        _ = make(weights=folder, length=500).fingerprint


def test_settings_that_do_not_exist(weights):
    with pytest.raises(CalmrlError, match="unknown setting 'stretch'"):
        encoders.get("vast/eva-g")(weights=weights, resize="stretch")


def test_full_precision_is_not_shortened_by_what_is_set_outside(weights, generator):
    encoder = encoders.get("vast/eva-g")(weights=weights)
    seen = []
    encoder.model.register_forward_hook(
        lambda *_: seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
    )
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        encoder.encode([encoder.prepare(Image(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)))])
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert seen == [("highest", False)]


def test_runs_are_sliced_as_if_they_were_joined(generator):
    arrays = [generator.standard_normal((n, 2)) for n in (3, 1, 0, 4, 2)]
    whole, runs = np.concatenate(arrays), Runs(arrays)
    assert len(runs) == 10
    for start in range(10):
        for stop in range(start + 1, 11):
            assert_array_equal(runs[start:stop], whole[start:stop])
    assert runs[4:6].base is not None, "what lies in one array is not copied"


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            RuntimeError("FIND was unable to find an engine to execute this computation"),
        ],
        ids=["torch", "cublas", "cudnn"],
    )
    def test_running_out_halves_the_piece_for_good(self, error):
        sizes = []

        def run(rows):
            sizes.append(len(rows))
            if len(rows) > 3:
                raise error
            return rows * 2

        pieces = Pieces(16, "cpu")
        rows = np.arange(10, dtype=np.float32)[:, None]
        assert_array_equal(pieces.run(run, rows), rows * 2)
        assert sizes == [10, 5, 2, 2, 2, 2, 2]
        assert_array_equal(pieces.run(run, rows[:2]), rows[:2] * 2)

    def test_any_other_error_is_none_of_memory(self):
        def run(rows):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            Pieces(4, "cpu").run(run, np.zeros((4, 1), np.float32))

    def test_what_did_not_fit_is_let_go_before_the_next_try(self):
        held = []

        def run(rows):
            if len(rows) > 1:
                activations = rows * 1
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("CUDA out of memory")
            assert [kept() for kept in held] == [None, None], "the exception still holds what it interrupted"
            return rows

        Pieces(4, "cpu").run(run, np.zeros((4, 1), np.float32))

    def test_one_row_that_does_not_fit_is_an_error(self):
        def run(rows):
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(WorkFailedError, match="one row does not fit"):
            Pieces(4, "cpu").run(run, np.zeros((4, 1), np.float32))


def test_preparing_and_listing_need_no_torch(weights):
    # Decoding workers prepare; each would pay 2 s and 300 MB for torch.
    program = f"""
import sys, numpy as np
from pathlib import Path
from feature_extractors.encoders import encoders
from feature_extractors.protocols import Image, Text, Waveform
encoders.describe()
weights = Path({str(weights)!r})
encoders.get("vast/eva-g")(weights=weights).prepare(Image(np.zeros((9, 9, 3), np.uint8)))
encoders.get("vast/beats64")(weights=weights).prepare(Waveform(np.zeros((1, 8000), np.float32), 16000))
encoders.get("vast/bert-caption")(weights=weights).prepare(Text("a dog"))
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
