"""ImageBind's and LanguageBind's towers on tiny random weights: against a plain float64 twin, against transformers' CLIP, and by the command line."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn import functional

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders import encoders
from feature_extractors.encoders._clip_tokens import END, START, ClipTokens, byte_letters
from feature_extractors.encoders._weights_check import check
from feature_extractors.encoders.imagebind import preprocessing as imagebind
from feature_extractors.encoders.imagebind.architecture import PUBLISHED, read_architecture
from feature_extractors.encoders.imagebind.architecture import tower as imagebind_tower
from feature_extractors.encoders.languagebind import preprocessing as languagebind
from feature_extractors.encoders.languagebind.architecture import tower as languagebind_tower
from feature_extractors.encoders.languagebind.architecture import with_adapters
from feature_extractors.encoders.vast.preprocessing.fbank import kaldi_filterbank
from feature_extractors.protocols import AbsentError, Image, MediaError, Text, Waveform

transformers = pytest.importorskip("transformers", reason="the tokenizer comes with transformers")
MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
WORDS = [*byte_letters(), *(f"{letter}</w>" for letter in byte_letters()), *("".join(pair) for pair in MERGES), START, END]
SIZES = {
    "vision": {"width": 16, "depth": 2, "heads": 2, "mlp": 24},
    "audio": {"width": 12, "depth": 2, "heads": 3, "mlp": 20},
    "text": {"width": 8, "depth": 2, "heads": 2, "mlp": 16},
    "dimension": 10,
    "side": 28,
    "mel_bins": 36,
    "mel_frames": 46,
    "words": len(WORDS),
}


def random_state(tower, names, seed=0):
    """Random tensors by released names, as the tower needs them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for parameter, expected in tower.state_dict().items():
        for name in names[parameter]:
            shape = (expected.shape[0] // len(names[parameter]), *expected.shape[1:])
            spread = expected[0].numel() ** -0.5 if expected.ndim > 1 else 0.3
            state[name] = torch.randn(shape, generator=generator) * spread + ("norm" in parameter and name.endswith("weight"))
    return state


def save_vocabulary(folder):
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in MERGES))


@pytest.fixture(scope="module")
def imagebind_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagebind-weights")
    (folder / "architecture.json").write_text(json.dumps(SIZES))
    state = {"modality_trunks.depth.blocks.0.norm_1.weight": torch.ones(3)}
    for part in ("vision", "audio", "text"):
        state |= random_state(*imagebind_tower(part, read_architecture(folder / "architecture.json")))
    torch.save(state, folder / "imagebind_huge.pth")
    save_vocabulary(folder)
    return folder


LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
TEXT = {**LAYERS, "hidden_size": 8, "intermediate_size": 16, "vocab_size": len(WORDS), "max_position_embeddings": 20}
LOOK = {**LAYERS, "hidden_size": 12, "intermediate_size": 20, "patch_size": 14, "image_size": 28}
KINDS = {
    "image": {},
    "video": {"num_frames": 4, "add_time_attn": True, "clip_type": "vl_new"},
    "audio": {"num_mel_bins": 28, "target_length": 42},
}


@pytest.fixture(scope="module")
def languagebind_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("languagebind-weights")
    for part, more in KINDS.items():
        folder = root / f"LanguageBind_{part.capitalize()}"
        folder.mkdir()
        config = {"model_type": f"LanguageBind{part.capitalize()}", "projection_dim": 10, "text_config": TEXT}
        config["vision_config"] = {**LOOK, **more}
        (folder / "config.json").write_text(json.dumps(config))
        state = random_state(*languagebind_tower("text", config)) | random_state(*languagebind_tower(part, config))
        torch.save(state, folder / "pytorch_model.bin")
        save_vocabulary(folder)
    return root


def norm(x, state, name, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + epsilon) * state[f"{name}.weight"] + state[f"{name}.bias"]


def attend(x, state, name, heads, causal=False):
    """One head, one query at a time."""
    made = x @ state[f"{name}.qkv.weight"].T + state[f"{name}.qkv.bias"]
    query, key, value = np.split(made, 3, axis=-1)
    if f"{name}.bias_k" in state:
        key, value = np.vstack([key, state[f"{name}.bias_k"][0]]), np.vstack([value, state[f"{name}.bias_v"][0]])
    out = np.zeros_like(query)
    for part in np.split(np.arange(x.shape[-1]), heads):
        for place in range(len(x)):
            seen = place + 1 if causal else len(key)
            scores = key[:seen][:, part] @ query[place, part] / np.sqrt(len(part))
            weight = np.exp(scores - scores.max())
            out[place, part] = weight / weight.sum() @ value[:seen][:, part]
    return out @ state[f"{name}.out.weight"].T + state[f"{name}.out.bias"]


def blocks(x, state, depth, heads, epsilon, causal=False):
    """The blocks of a tower over frames [frames, n, width] in float64."""
    for number in range(depth):
        at = f"blocks.{number}"
        if f"{at}.time_norm.weight" in state:
            x = x + state[f"{at}.time_position"][0][:, None]
            for place in range(x.shape[1]):
                x[:, place] += attend(
                    norm(x[:, place], state, f"{at}.time_norm", epsilon), state, f"{at}.time_attention", heads
                )
        x = np.stack(
            [frame + attend(norm(frame, state, f"{at}.norm1", epsilon), state, f"{at}.attention", heads, causal) for frame in x]
        )
        hidden = norm(x, state, f"{at}.norm2", epsilon) @ state[f"{at}.fc1.weight"].T + state[f"{at}.fc1.bias"]
        active = hidden * 0.5 * (1 + torch.special.erf(torch.from_numpy(hidden / np.sqrt(2))).numpy())
        x = x + active @ state[f"{at}.fc2.weight"].T + state[f"{at}.fc2.bias"]
    return x


def patches_of(pixels, weight, stride):
    """Patches of an input [channels, ...] times the weights of the convolution, one after the other."""
    size = weight.shape[2:]
    counts = [(n - k) // s + 1 for n, k, s in zip(pixels.shape[1:], size, stride, strict=True)]
    rows = []
    for place in np.ndindex(*counts):
        window = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, stride, size, strict=True))
        rows.append((weight * pixels[(slice(None), *window)]).sum(axis=tuple(range(1, weight.ndim))))
    return np.stack(rows)


def slow(encoder, views, heads, epsilon, stride):
    """What an encoder of pictures or sound should give for one item: float64, one view at a time."""
    state = {name: value.double().numpy() for name, value in encoder.model.state_dict().items()}
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    made = []
    for view in views.astype(np.float64):
        frames = view if view.ndim == 4 and encoder.model.frames > 1 else view[None]
        tokens = np.stack([patches_of(frame, state["patch.weight"], stride) for frame in frames])
        if "patch_norm.weight" in state:
            tokens = norm(tokens, state, "patch_norm", 1e-5)
        classes = np.broadcast_to(state["class_token"], (len(frames), tokens.shape[-1]))[:, None]
        x = np.concatenate([classes, tokens], axis=1) + state["position"]
        if "pre_norm.weight" in state:
            x = norm(x, state, "pre_norm", epsilon)
        x = blocks(x, state, depth, heads, epsilon)
        pooled = norm(x[:, 0], state, "post_norm", epsilon).mean(axis=0) @ state["projection.weight"].T
        made.append(pooled / np.linalg.norm(pooled))
    mean = np.mean(made, axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize(
    ("name", "shape", "heads", "stride"),
    [("imagebind/vision", (3, 3, 2, 28, 28), 2, (2, 14, 14)), ("imagebind/audio", (3, 1, 36, 46), 3, (10, 10))],
)
def test_imagebinds_towers_are_the_plain_ones(imagebind_folder, name, shape, heads, stride):
    encoder = encoders.get(name)(weights=imagebind_folder)
    items = [np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in range(2)]
    rows = encoder.encode(items)
    assert rows.shape == (2, encoder.dimension) == (2, 10)
    for row, item in zip(rows, items, strict=True):
        assert_allclose(row, slow(encoder, item, heads, 1e-6, stride), atol=2e-6)


@pytest.mark.parametrize(
    ("part", "shape"), [("image", (1, 3, 28, 28)), ("video", (1, 4, 3, 28, 28)), ("audio", (1, 3, 28, 42))]
)
def test_languagebinds_towers_are_the_plain_ones(languagebind_folder, part, shape):
    encoder = encoders.get(f"languagebind/{part}")(weights=languagebind_folder)
    item = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert_allclose(encoder.encode([item])[0], slow(encoder, item, 2, 1e-5, (14, 14)), atol=2e-6)


def test_languagebind_without_time_is_transformers_clip(tmp_path):
    config = transformers.CLIPConfig(
        text_config={**TEXT, "bos_token_id": WORDS.index(START), "eos_token_id": WORDS.index(END)},
        vision_config=LOOK,
        projection_dim=10,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    folder = tmp_path / "LanguageBind_Image"
    model.save_pretrained(folder)
    save_vocabulary(folder)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | {"model_type": "LanguageBindImage"}))
    image, text = (encoders.get(f"languagebind/{part}")(weights=tmp_path) for part in ("image", "text"))
    pixels = np.random.default_rng(0).standard_normal((3, 1, 3, 28, 28)).astype(np.float32)
    ids = [text.prepare(Text(words)) for words in ("a cat", "two dogs and a cat, isn't it?", "x " * 40)]
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=torch.from_numpy(pixels[:, 0])).pooler_output
        read = torch.cat([model.get_text_features(input_ids=torch.from_numpy(i)[None]).pooler_output for i in ids])
    assert_allclose(image.encode(list(pixels)), functional.normalize(seen, dim=-1).numpy(), atol=1e-6)
    assert_allclose(text.encode(ids), functional.normalize(read, dim=-1).numpy(), atol=1e-6)


def test_texts_are_the_plain_ones_whatever_else_is_in_the_batch(imagebind_folder):
    encoder = encoders.get("imagebind/text")(weights=imagebind_folder)
    texts = ["Cat", "a dog and a cat", "the &amp; sign", "cat " * 100]
    prepared = [encoder.prepare(Text(text)) for text in texts]
    assert [len(ids) for ids in prepared] == [3, 9, 10, 77]
    state = {name: value.double().numpy() for name, value in encoder.model.state_dict().items()}
    for row, ids in zip(encoder.encode(prepared), prepared, strict=True):
        x = blocks((state["words.weight"][ids] + state["position"][: len(ids)])[None], state, 2, 2, 1e-6, causal=True)[0]
        expected = norm(x[-1], state, "post_norm", 1e-6) @ state["projection.weight"].T
        assert_allclose(row, expected / np.linalg.norm(expected), atol=2e-6)
        assert_allclose(encoder.encode([ids])[0], row, atol=1e-6)
    with pytest.raises(AbsentError):
        encoder.prepare(Text("  \n"))


def test_tokens_are_transformers_clip_tokens(tmp_path):
    save_vocabulary(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = ClipTokens({word: number for number, word in enumerate(WORDS)}, MERGES, 20, unescape=False)
    for text in ("cat dog", "A Cat's  dogs, 42!", "naïve café", "don't\tWE'LL", "x" * 90):
        assert_array_equal(ours(text), theirs(text, truncation=True, max_length=20)["input_ids"])


def test_adapters_are_added_to_what_they_adapt(languagebind_folder):
    generator = torch.Generator().manual_seed(0)
    weight, down, up = (torch.randn(*shape, generator=generator) for shape in ((6, 6), (2, 6), (6, 2)))
    expected = weight + 16 / 2 * up @ down
    for name in ("q_proj.weight", "q_proj.base_layer.weight"):
        root = "vision_model.encoder.base_model.model.layers.0.self_attn."
        released = {root + name: weight, f"{root}q_proj.lora_A.default.weight": down, f"{root}q_proj.lora_B.default.weight": up}
        assert_allclose(with_adapters(released, 16)["vision_model.encoder.layers.0.self_attn.q_proj.weight"], expected)
    with pytest.raises(CalmrlError, match="half an adapter"):
        with_adapters({"a.weight": weight, "a.lora_A.default.weight": down}, 16)


def test_frames_and_clips():
    assert languagebind.even_frames(100, 8) == [0, 14, 28, 42, 56, 70, 84, 99]
    assert languagebind.even_frames(3, 8) == [0, 0, 0, 0, 1, 1, 1, 2]
    # 10 s at 25 frames per second: clips of two seconds begin at 0, 2, 4, 6 and 8 s.
    assert imagebind.frame_pairs(250, 25.0) == [0, 49, 50, 99, 100, 149, 150, 199, 200, 249]
    # A video of less than two seconds is all five clips; a last frame is never passed.
    assert imagebind.frame_pairs(20, 25.0) == [0, 19] * 5
    assert imagebind.sound_clips(160_000) == [(0, 32_000), (64_000, 96_000), (128_000, 160_000)]
    assert imagebind.sound_clips(8_000) == [(0, 8_000)] * 3
    assert languagebind.pieces(1036, 1036) == [(0, 1036)]
    assert languagebind.pieces(1038, 1036) == [(0, 1036), (1, 1037), (2, 1038)]
    assert languagebind.pieces(1036 + 299, 1036) == [(49, 1085), (149, 1185), (249, 1285)]


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (28, 28), (101, 67)])
def test_pictures_are_scaled_as_by_pytorch(size):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frame.transpose(2, 0, 1)[None] / 255.0)

    def normalised(scaled, crop):
        height, width = scaled.shape[-2:]
        top, left = crop(height), crop(width)
        window = scaled[0, :, top : top + 28, left : left + 28].numpy()
        mean, deviation = (np.array(v)[:, None, None] for v in (languagebind.MEAN, languagebind.STD))
        return (window - mean) / deviation

    short = min(size)
    scaled = [int(28 * n / short) if n != short else 28 for n in size]
    cubic = functional.interpolate(pixels, scaled, mode="bicubic", align_corners=False)
    assert_allclose(languagebind.picture(frame, 28)[0], normalised(cubic, lambda n: round((n - 28) / 2)), atol=1e-6)
    linear = functional.interpolate(pixels, scaled, mode="bilinear", align_corners=False)
    views = imagebind.video_views(np.stack([frame, frame]), 28)
    assert views.shape == (3, 3, 2, 28, 28)
    assert_allclose(views[1, :, 0], normalised(linear, lambda n: -(-(n - 28) // 2)), atol=1e-6)
    assert_allclose(views[0, :, 1], normalised(linear, lambda n: 0), atol=1e-6)
    assert_allclose(languagebind.clip(frame[None], 28)[0, 0], normalised(linear, lambda n: round((n - 28) / 2)), atol=1e-6)


def test_sounds(imagebind_folder, languagebind_folder):
    samples = (np.random.default_rng(0).standard_normal((2, 48_000)) * 0.1 + 0.05).astype(np.float32)
    before = samples.copy()
    ours = encoders.get("imagebind/audio")(weights=imagebind_folder).prepare(Waveform(samples, 16_000))
    assert ours.shape == (3, 1, 36, 46)
    # 3 s: the clips overlap, and each subtracts its mean of what the one before has left.
    for clip, (start, stop) in zip(ours, imagebind.sound_clips(48_000), strict=True):
        part = samples[:, start:stop]
        part -= part.mean()
        mel = kaldi_filterbank(part[0], 36, "hanning")[:46].T
        assert_allclose(clip[0], (mel + 4.268) / 9.138, atol=1e-5)
    theirs = encoders.get("languagebind/audio")(weights=languagebind_folder).prepare(Waveform(before, 16_000))
    mel = kaldi_filterbank(before[0] - before.mean(), 28, "hanning")
    for channel, (start, stop) in zip(theirs[0], languagebind.pieces(len(mel), 42), strict=True):
        assert_allclose(channel, (mel[start:stop].T + 4.2677393) / (2 * 4.5689974), atol=1e-4)
    short = encoders.get("languagebind/audio")(weights=languagebind_folder).prepare(Waveform(before[:, :4000], 16_000))
    assert_array_equal(short[0, 0], short[0, 2])
    for name, folder in (("imagebind/audio", imagebind_folder), ("languagebind/audio", languagebind_folder)):
        with pytest.raises(MediaError, match="25 ms"):
            encoders.get(name)(weights=folder).prepare(Waveform(before[:, :300], 16_000))


def test_an_encoder_travels_without_its_weights(imagebind_folder):
    encoder = encoders.get("imagebind/vision")(weights=imagebind_folder)
    picture = encoder.prepare(Image(np.zeros((40, 30, 3), np.uint8)))
    row = encoder.encode([picture])
    assert len(pickle.dumps(encoder)) < 20_000
    copy = pickle.loads(pickle.dumps(encoder))
    assert_array_equal(copy.encode([picture]), row)
    assert (
        copy.fingerprint
        == encoder.fingerprint
        != encoders.get("imagebind/vision")(weights=imagebind_folder, precision="bf16").fingerprint
    )


def test_weights_check_names_what_is_wrong(imagebind_folder, languagebind_folder, tmp_path):
    assert [finding["state"] for finding in check(imagebind_folder)] == ["ok"] * 3
    assert [finding["state"] for finding in check(languagebind_folder)] == ["ok"] * 6
    state = torch.load(imagebind_folder / "imagebind_huge.pth")
    state["modality_heads.vision.2.weight"] = state["modality_heads.vision.2.weight"][:, :-1].clone()
    del state["modality_preprocessors.audio.cls_token"]
    state["modality_preprocessors.text.pos_embed"][0, 0] = np.nan
    torch.save(state, tmp_path / "imagebind_huge.pth")
    (tmp_path / "architecture.json").write_text(json.dumps(SIZES))
    save_vocabulary(tmp_path)
    vision, audio, text = check(tmp_path)
    assert "modality_heads.vision.2.weight is [10, 15], expected [10, 16]" in vision["what"]
    assert "missing: modality_preprocessors.audio.cls_token" in audio["what"]
    assert "NaN or infinity in modality_preprocessors.text.pos_embed" in text["what"]
    with pytest.raises(CalmrlError, match="missing: modality_preprocessors.audio.cls_token"):
        _ = encoders.get("imagebind/audio")(weights=tmp_path).fingerprint


def test_refusals_name_the_folder_and_what_to_do(imagebind_folder, languagebind_folder, tmp_path):
    for name in ("imagebind/vision", "languagebind/video"):
        for folder, said in ((None, "need the released weights"), (tmp_path, "no "), (tmp_path / "missing", "does not exist")):
            with pytest.raises(CalmrlError, match=said) as refused:
                _ = encoders.get(name)(weights=folder).fingerprint
            assert "weights folder" in refused.value.hint
    for twin in ("LanguageBind_Video", "LanguageBind_Video_FT"):
        (tmp_path / twin).mkdir()
        (tmp_path / twin / "config.json").write_text('{"model_type": "LanguageBindVideo"}')
    with pytest.raises(
        CalmrlError, match="several LanguageBind models of video \\(LanguageBind_Video, LanguageBind_Video_FT\\)"
    ):
        _ = encoders.get("languagebind/video")(weights=tmp_path).fingerprint


def test_published_sizes_of_imagebind():
    """The sizes of imagebind_huge give as many values as the modules of its released code hold."""
    counts = {
        part: sum(tensor.numel() for tensor in imagebind_tower(part, PUBLISHED)[0].state_dict().values())
        for part in ("vision", "audio", "text")
    }
    assert counts == {"vision": 632_829_440, "audio": 86_235_648, "text": 354_032_640}
