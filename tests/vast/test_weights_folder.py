"""Weights folders as people have them: laid out as the systems' pages say, two systems in one, shared tensors dropped, damage."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file, save_model
from vast.conftest import TINY, WORDS, random_tensors, released_extras, save_weights

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders import encoders
from feature_extractors.encoders.vast.checkpoint import load_checkpoint
from feature_extractors.encoders.vast.inspection import check_weights
from feature_extractors.encoders.vast.rerank.matching import Matcher
from feature_extractors.encoders.vast.weights_folder import find_checkpoint
from feature_extractors.protocols import Text


def states(folder):
    return [finding["state"] for finding in check_weights(folder)]


@pytest.fixture
def repository(tmp_path, tensors):
    """A checkout of VAST, GRAM or PMRL: the parts under pretrained_weights/, sizes of the thin model at the top."""

    def lay_out(run, changed=None):
        release = save_weights(tmp_path / "release", released_extras(changed or tensors))
        root = tmp_path / "repository"
        parts = root / "pretrained_weights"
        for folder in ("beats", "bert/bert-base-uncased", "clip"):
            (parts / folder).mkdir(parents=True)
        torch.save({"cfg": {"encoder_layers": 2}, "model": {}}, parts / "beats" / "BEATs_iter3_plus_AS2M.pt")
        torch.save({"visual.cls_token": torch.zeros(1)}, parts / "clip" / "EVA01_CLIP_g_14_psz14_s11B.pt")
        save_file({"bert.x": torch.zeros(1)}, parts / "bert" / "bert-base-uncased" / "model.safetensors")
        shutil.move(release / "bert" / "bert-base-uncased" / "vocab.txt", parts / "bert" / "bert-base-uncased" / "vocab.txt")
        target = root / run
        target.mkdir(parents=True)
        for name in ("log", "ckpt"):
            shutil.move(release / name, target / name)
        shutil.move(release / "architecture.json", target / "architecture.json")
        return root, target

    return lay_out


@pytest.mark.parametrize(
    "run", ["output/vast/pretrain_vast", "pretrained_models/GRAM_pretrained_4modalities", "model_weights/PMRL", "outputs/pmrl/pretrain_pmrl"]
)  # fmt: skip
def test_a_release_as_its_page_lays_it_out(repository, tensors, run):
    changed = {**tensors, "contra_head_d.linear.weight": torch.zeros(16, 32)} if "GRAM" in run else tensors
    root, target = repository(run, changed)
    for given in (root, target, target / "ckpt" / "model_step_204994.pt"):
        assert states(given) == ["ok", "ok", "note", "ok"], given
        encoder = encoders.get("vast/bert-caption")(weights=given)
        assert encoder.encode([encoder.prepare(Text("a dog"))]).shape == (1, 32)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("vast/ckpt/model_step_1.pt", "gram/ckpt/best_ret--msrvtt.pt"),
        ("vast/ckpt/model_step_1.pt", "gram/checkpoint-12/pytorch_model.bin"),
        ("ckpt/model_step_1.pt", "gram/ckpt/model_step_2.pt"),
        ("vast.safetensors", "gram.pt"),
        ("vast.pt", "gram/ckpt/model_step_2.pt"),
        ("output/vast/ckpt/model_step_1.pt", "output/gram/model.safetensors"),
    ],
)
def test_two_systems_in_one_folder_are_refused_by_name(tmp_path, one, two):
    for name in (one, two):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CalmrlError) as caught:
        find_checkpoint(tmp_path)
    assert one in caught.value.message
    assert two in caught.value.message
    for name in (one, two):
        assert find_checkpoint(tmp_path / name) == tmp_path / name


def test_parts_of_a_system_are_no_system(tmp_path):
    for name in (
        "ckpt/model_step_1.pt",
        "ckpt/optimizer_step_1.pt",
        "BEATs_iter3_plus_AS2M.pt",
        "EVA01_CLIP_g_14_psz14_s11B.pt",
        "bert/model.safetensors",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_checkpoint(tmp_path) == tmp_path / "ckpt" / "model_step_1.pt"


def test_sharded_safetensors(tmp_path, weights, tensors):
    names = sorted(tensors)
    for number, part in enumerate((names[:40], names[40:90], names[90:]), 1):
        save_file({name: tensors[name].contiguous() for name in part}, tmp_path / f"model-0000{number}-of-00003.safetensors")
    shutil.copy(weights / "architecture.json", tmp_path)
    parts = ["vision", "audio", "text", "heads"]
    assert load_checkpoint(tmp_path).digest(parts) == load_checkpoint(weights).digest(parts)


class Sharing(torch.nn.Module):
    """Parameters by their released names, those of one value shared, as in the module that is saved."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = tensors

    def state_dict(self, *_, **__):
        return dict(self.tensors)


def test_shared_tensors_that_save_model_drops(tmp_path, weights, tensors):
    shared = dict(tensors)
    table = shared["audio_encoder.encoder.layers.0.self_attn.relative_attention_bias.weight"]
    for name in shared:
        if name.endswith("relative_attention_bias.weight"):
            shared[name] = table
    shared["multimodal_encoder.cls.predictions.decoder.weight"] = shared[
        "multimodal_encoder.bert.embeddings.word_embeddings.weight"
    ]
    save_model(Sharing(shared), str(tmp_path / "model.safetensors"))
    shutil.copy(weights / "architecture.json", tmp_path)
    parts = ["vision", "audio", "text", "heads"]
    whole = load_checkpoint(weights).digest(parts)
    assert load_checkpoint(tmp_path).digest(parts) == whole
    # The same without a word about what was dropped.
    for kept in (0, 1):
        fewer = {
            n: v.clone()
            for n, v in tensors.items()
            if not n.endswith("relative_attention_bias.weight") or f"layers.{kept}." in n
        }
        fewer["multimodal_encoder.cls.predictions.decoder.weight"] = fewer.pop(
            "multimodal_encoder.bert.embeddings.word_embeddings.weight"
        )
        save_file(fewer, tmp_path / "model.safetensors")
        assert load_checkpoint(tmp_path).digest(parts) == whole


def test_half_precision_is_widened(tmp_path, weights, tensors):
    folder = save_weights(tmp_path / "half", {name: value.half() for name, value in tensors.items()})
    for name, value in load_checkpoint(folder).part("vision").items():
        assert torch.equal(value, tensors[f"vision_encoder.visual.{name}"].half().float())
    assert load_checkpoint(folder).digest(["vision"]) == load_checkpoint(folder).digest(["vision"])


def tokenizer_json(words):
    return json.dumps({"model": {"type": "WordPiece", "vocab": {word: index for index, word in enumerate(words)}}})


def test_tokenizer_json_is_a_vocabulary_too(make_weights, weights, tensors):
    folder = make_weights(tensors)
    (folder / "bert" / "bert-base-uncased" / "vocab.txt").unlink()
    (folder / "bert" / "bert-base-uncased" / "tokenizer.json").write_text(tokenizer_json(WORDS))
    one, two = (encoders.get("vast/bert-caption")(weights=w) for w in (folder, weights))
    for text in ("A dog, singing.", "the man's cat"):
        assert one.prepare(Text(text)).tolist() == two.prepare(Text(text)).tolist()
    assert one.fingerprint == two.fingerprint
    assert states(folder)[1] == "ok"


@pytest.mark.parametrize("words", [WORDS[:-10], [*WORDS, *(f"more{i}" for i in range(100))]])
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_a_vocabulary_of_another_length_is_refused(make_weights, tensors, words, name):
    folder = make_weights(tensors)
    place = folder / "bert" / "bert-base-uncased"
    (place / "vocab.txt").unlink()
    (place / name).write_text("\n".join(words) + "\n" if name == "vocab.txt" else tokenizer_json(words))
    with pytest.raises(CalmrlError, match=f"has {len(words)} words, the weights are for {len(WORDS)}") as caught:
        _ = encoders.get("vast/bert-caption")(weights=folder).fingerprint
    assert str(place / name) in caught.value.message
    assert check_weights(folder)[1]["state"] == "bad"


def test_harmless_further_tensors_are_told_and_ignored(make_weights, weights, tensors, capsys):
    further = {
        **tensors,
        "audio_encoder.predictor.weight": torch.zeros(3, 48),
        "contra_head_vd.weight": torch.zeros(2, 2),
        "imputer.W": torch.zeros(4),
        "multimodal_encoder.bert.encoder.layer.0.attention.self.position_ids": torch.zeros(3),
    }
    folder = make_weights({**further, "epoch": 3})
    parts = ["vision", "audio", "text", "heads"]
    assert load_checkpoint(folder).digest(parts) == load_checkpoint(weights).digest(parts)
    load_checkpoint(folder)
    assert capsys.readouterr().err.count("4 tensors (audio_encoder.predictor.weight") == 1
    assert "imputer.W" in next(finding["what"] for finding in check_weights(folder) if "ignored" in finding["what"])
    assert states(folder) == ["ok", "note", "ok", "note", "note"]


@pytest.mark.parametrize(
    "name", ["vision_encoder.visual.blocks.2.norm1.weight", "audio_encoder.encoder.layers.0.self_attn.k_bias", "multimodal_encoder.bert.encoder.layer.7.x"]
)  # fmt: skip
def test_further_tensors_inside_an_encoder_are_another_architecture(make_weights, tensors, name):
    with pytest.raises(CalmrlError, match="1 unexpected"):
        load_checkpoint(make_weights({**tensors, name: torch.ones(32)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_found(make_weights, tensors, value):
    broken = {name: tensor.clone() for name, tensor in tensors.items()}
    broken["vision_encoder.visual.blocks.1.mlp.fc1.weight"][3, 4] = value
    finding = check_weights(make_weights(broken))[0]
    assert finding["state"] == "bad"
    assert "vision_encoder.visual.blocks.1.mlp.fc1.weight" in finding["what"]


def test_a_flipped_byte_is_found_by_the_checksum_inside(make_weights, tensors):
    folder = make_weights(tensors)
    path = folder / "ckpt" / "model_step_204994.pt"
    with zipfile.ZipFile(path) as content:
        entry = max(content.infolist(), key=lambda entry: entry.file_size)
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 600 + entry.file_size // 2] ^= 1
    path.write_bytes(data)
    finding = check_weights(folder)[0]
    assert finding["state"] == "bad"
    assert "checksum" in finding["what"]


@pytest.mark.parametrize(
    "name", ["model.safetensors.sha256", "SHA256SUMS", ".cache/huggingface/download/model.safetensors.metadata"]
)
def test_a_checksum_beside_the_file_is_compared(tmp_path, weights, tensors, name):
    path = tmp_path / "model.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    shutil.copy(weights / "architecture.json", tmp_path)
    shutil.copytree(weights / "bert", tmp_path / "bert")
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    wrong = "0" * 64
    place = tmp_path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    for digest, state in ((right, "ok"), (wrong, "bad")):
        place.write_text(
            {"S": f"{digest}  model.safetensors\n{wrong}  other.bin\n", ".": f"1a2b3c\n{digest}\n1700000000.5\n"}.get(
                name[0], digest
            )
        )
        assert states(tmp_path)[0] == state


def test_a_matcher_after_encode(tmp_path):
    folder = save_weights(tmp_path / "w", random_tensors(TINY))
    encoder = encoders.get("vast/bert-subtitle")(weights=folder)
    before = Matcher(encoder.checkpoint)
    prepared = encoder.prepare(Text("a cat"))
    encoder = encoders.get("vast/bert-subtitle")(weights=folder)
    encoder.encode([prepared])
    after = Matcher(encoder.checkpoint)
    condition = after.condition(subtitle=encoder.tokens([prepared])[0])
    scores = [matcher.scores([prepared], matcher.keys_values(condition)) for matcher in (before, after)]
    assert scores[0] == scores[1]
