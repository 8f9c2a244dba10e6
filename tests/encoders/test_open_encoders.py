"""Open encoders from local folders of tiny random models, no network: against transformers used plainly, one item at a time."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders import encoders
from feature_extractors.protocols import AbsentError, Image, MediaError, Text, Waveform

transformers = pytest.importorskip("transformers", reason="the open encoders need transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "dog", "cat", "barking", "the", "loud", "two"]


@pytest.fixture(scope="module", autouse=True)
def offline():
    # The environment variable is read when the hub's package is imported, which may have happened already.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


def save_tokenizer(folder, **special):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | special
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A weights folder with clip/, siglip/, clap/ and sentence/."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    text = {
        **small,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 12,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    transformers.CLIPModel(clip).save_pretrained(root / "clip")
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        root / "clip"
    )
    save_tokenizer(root / "clip")

    siglip = transformers.SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision)
    transformers.SiglipModel(siglip).save_pretrained(root / "siglip")
    transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(root / "siglip")
    save_tokenizer(root / "siglip")

    audio = {
        "spec_size": 64,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "num_mel_bins": 16,
        "window_size": 4,
        "patch_embeds_hidden_size": 8,
    }
    audio |= {"depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 16, "num_hidden_layers": 2}
    spoken = {**text, "max_position_embeddings": 100, "type_vocab_size": 1}
    clap = transformers.ClapConfig(text_config=spoken, audio_config=audio, projection_dim=12)
    transformers.ClapModel(clap).save_pretrained(root / "clap")
    extractor = {
        "feature_size": 16,
        "sampling_rate": 48000,
        "max_length_s": 1,
        "truncation": "rand_trunc",
        "padding": "repeatpad",
    }
    transformers.ClapFeatureExtractor(**extractor).save_pretrained(root / "clap")
    save_tokenizer(root / "clap")

    bert = transformers.BertConfig(**small, vocab_size=len(WORDS), max_position_embeddings=64, pad_token_id=0)
    transformers.BertModel(bert).save_pretrained(root / "sentence")
    save_tokenizer(root / "sentence")
    return root


@pytest.fixture
def pictures():
    return [np.random.default_rng(i).integers(0, 256, (40 + 3 * i, 64, 3), dtype=np.uint8) for i in range(3)]


TEXTS = ["a photo of a dog", "two", "the loud cat barking the loud cat"]


@pytest.mark.parametrize("name", ["clip/image", "siglip/image"])
def test_pictures(models, pictures, name):
    encoder = encoders.get(name)(weights=models)
    got = encoder.encode([encoder.prepare(Image(p)) for p in pictures])
    assert got.shape == (3, encoder.dimension)
    folder = models / name.split("/")[0]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.no_grad():
        expected = [model.get_image_features(**processor(images=p, return_tensors="pt")).pooler_output[0] for p in pictures]
    expected = torch.nn.functional.normalize(torch.stack(expected), dim=-1)
    assert_allclose(got, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["clip/text", "siglip/text", "clap/text", "sentence/text"])
def test_texts(models, name):
    encoder = encoders.get(name)(weights=models)
    prepared = [encoder.prepare(Text(t)) for t in TEXTS]
    got = encoder.encode(prepared)
    assert got.shape == (3, encoder.dimension)
    assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    folder = models / name.split("/")[0]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        if name == "sentence/text":
            expected = [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in TEXTS]
        elif name == "siglip/text":
            ids = [tokenizer(t, padding="max_length", max_length=12, return_tensors="pt").input_ids for t in TEXTS]
            expected = [model.get_text_features(input_ids=i).pooler_output[0] for i in ids]
        else:
            expected = [
                model.get_text_features(**tokenizer(t, return_tensors="pt", return_token_type_ids=False)).pooler_output[0]
                for t in TEXTS
            ]
    assert_allclose(got, torch.nn.functional.normalize(torch.stack(expected), dim=-1).numpy(), atol=1e-5)
    assert_allclose(encoder.encode(prepared[::-1]), got[::-1], atol=1e-6)
    with pytest.raises(AbsentError):
        encoder.prepare(Text(" \n"))


def test_siglip_reads_lower_case(models):
    encoder = encoders.get("siglip/text")(weights=models)
    assert encoder.prepare(Text("A Photo of a DOG")).tolist() == encoder.prepare(Text("a photo of a dog")).tolist()
    assert 1 not in encoder.prepare(Text("A Photo of a DOG")), "no unknown word"


def test_sounds(models):
    encoder = encoders.get("clap/audio")(weights=models)
    generator = np.random.default_rng(0)
    sounds = [
        Waveform(generator.standard_normal((c, n)).astype(np.float32) * 0.1, rate)
        for c, n, rate in ((1, 48000, 48000), (2, 6000, 16000))
    ]
    prepared = [encoder.prepare(s) for s in sounds]
    got = encoder.encode(prepared)
    assert got.shape == (2, 12)
    assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    model = transformers.ClapModel.from_pretrained(models / "clap").eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(models / "clap")
    with torch.no_grad():
        made = extractor(sounds[0].samples[0], sampling_rate=48000, return_tensors="pt")
        expected = model.get_audio_features(
            input_features=made["input_features"], is_longer=torch.zeros(1, 1, dtype=torch.bool)
        ).pooler_output
    assert_allclose(got[:1], expected.numpy(), atol=1e-5)


def test_a_long_sound_gives_its_middle_every_time(models):
    encoder = encoders.get("clap/audio")(weights=models)
    samples = np.random.default_rng(0).standard_normal((1, 3 * 48000)).astype(np.float32) * 0.1
    middle = Waveform(samples[:, 48000:96000], 48000)
    assert_allclose(encoder.prepare(Waveform(samples, 48000)), encoder.prepare(middle), atol=1e-6)
    with pytest.raises(MediaError, match="no samples"):
        encoder.prepare(Waveform(np.zeros((1, 0), np.float32), 48000))


def test_the_fingerprint_is_of_weights_and_settings(models, tmp_path):
    one = encoders.get("clip/image")(weights=models)
    again = encoders.get("clip/image")(model=str(models / "clip"))
    other = encoders.get("clip/image")(weights=models, frames=4)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    torch.manual_seed(1)
    changed = transformers.CLIPModel(one.config)
    changed.save_pretrained(tmp_path)
    for file in ("preprocessor_config.json",):
        (tmp_path / file).write_bytes((models / "clip" / file).read_bytes())
    assert encoders.get("clip/image")(model=str(tmp_path)).fingerprint != one.fingerprint


def test_an_encoder_travels_without_its_model(models, pictures):
    encoder = encoders.get("clip/image")(weights=models)
    prepared = encoder.prepare(Image(pictures[0]))
    encoder.encode([prepared])
    sent = pickle.dumps(encoder)
    assert len(sent) < 100_000
    assert_allclose(pickle.loads(sent).prepare(Image(pictures[0])), prepared)


def test_pooling_by_the_class_token(models, tmp_path):
    import shutil

    folder = tmp_path / "sentence"
    shutil.copytree(models / "sentence", folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    encoder = encoders.get("sentence/text")(weights=tmp_path)
    mean = encoders.get("sentence/text")(weights=models)
    batch = [encoder.prepare(Text(t)) for t in TEXTS]
    assert np.abs(encoder.encode(batch) - mean.encode(batch)).max() > 1e-3
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(CalmrlError, match="pools in a way"):
        _ = encoders.get("sentence/text")(weights=tmp_path).fingerprint


@pytest.mark.parametrize("name", ["clip/image", "siglip/text", "clap/audio", "sentence/text"])
def test_wrong_folders(models, tmp_path, name):
    make = encoders.get(name)
    with pytest.raises(CalmrlError, match="no .* model in") as caught:
        _ = make(weights=tmp_path).dimension
    assert "hf download" in caught.value.hint
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(CalmrlError, match="is a t5 model, expected"):
        _ = make(weights=tmp_path).fingerprint
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CalmrlError, match="cannot be loaded"):
        _ = make(weights=tmp_path).dimension
    with pytest.raises(CalmrlError, match="cannot be loaded"):
        _ = make(model="nobody/has-this").fingerprint
