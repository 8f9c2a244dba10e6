"""Released checkpoints: every tensor accounted for, every wrong file refused in one sentence."""

from __future__ import annotations

import json
import math
import os
import zipfile

import pytest
import torch

from calmrl_lab.errors import CalmrlError
from feature_extractors.encoders.vast.checkpoint import load_checkpoint
from feature_extractors.encoders.vast.inspection import check_weights
from feature_extractors.encoders.vast.networks import beats, bert, eva
from feature_extractors.encoders.vast.networks.architecture import (
    PUBLISHED,
    audio_shapes,
    checkpoint_shapes,
    head_shapes,
    text_shapes,
    vision_shapes,
)
from feature_extractors.encoders.vast.weights_folder import find_checkpoint, find_vocabulary


def meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


class TestFullSize:
    """The published sizes, without their memory."""

    def test_the_number_of_tensors_of_each_part(self):
        assert len(vision_shapes(PUBLISHED.vision)) == 528
        assert len(audio_shapes(PUBLISHED.audio)) == 250
        assert len(text_shapes(PUBLISHED.text)) == 317
        assert len(head_shapes(PUBLISHED)) == 34

    def test_the_number_of_parameters(self):
        vision = {k: v for k, v in vision_shapes(PUBLISHED.vision).items() if not k.startswith("head.")}
        assert sum(map(math.prod, vision.values())) == pytest.approx(1011.2e6, rel=1e-4)
        audio = audio_shapes(PUBLISHED.audio)
        copies = 11 * math.prod(audio["encoder.layers.0.self_attn.relative_attention_bias.weight"])
        assert sum(map(math.prod, audio.values())) - copies == pytest.approx(90.3e6, rel=1e-3)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("vision_encoder.visual.pos_embed", (1, 257, 1408)),
            ("vision_encoder.visual.blocks.39.attn.qkv.weight", (4224, 1408)),
            ("vision_encoder.visual.blocks.0.mlp.fc1.weight", (6144, 1408)),
            ("vision_encoder.visual.head.weight", (1024, 1408)),
            ("audio_encoder.patch_embedding.weight", (512, 1, 16, 16)),
            ("audio_encoder.post_extract_proj.weight", (768, 512)),
            ("audio_encoder.encoder.pos_conv.0.weight_v", (768, 48, 128)),
            ("audio_encoder.encoder.pos_conv.0.weight_g", (1, 1, 128)),
            ("audio_encoder.encoder.layers.11.self_attn.grep_a", (1, 12, 1, 1)),
            ("audio_encoder.encoder.layers.0.self_attn.relative_attention_bias.weight", (320, 12)),
            ("multimodal_encoder.bert.embeddings.word_embeddings.weight", (30522, 768)),
            ("multimodal_encoder.bert.encoder.layer.11.crossattention.self.key.weight", (768, 768)),
            ("contra_head_t.linear.weight", (512, 768)),
            ("contra_head_s.linear.weight", (512, 768)),
            ("contra_head_v.linear.weight", (512, 1408)),
            ("contra_head_a.linear.weight", (512, 768)),
            ("contra_head_va.weight", (512, 2176)),
            ("contra_head_vs.weight", (512, 2176)),
            ("contra_head_vas.weight", (512, 2944)),
            ("contra_head_vas.bias", (512,)),
            ("contra_temp", ()),
            ("vision_type_embeddings", (1, 1, 768)),
            ("hidden_trans_vision_multimodal.0.weight", (768, 1408)),
            ("itm_head.linear2.weight", (2, 768)),
        ],
    )
    def test_shapes_of_the_released_tensors(self, name, shape):
        assert checkpoint_shapes()[name] == shape

    def test_every_tensor_finds_its_place_in_the_models(self):
        # Strict: a key or a shape that differs between our table and the models built here raises.
        vision = eva.build(PUBLISHED.vision)
        vision.load_state_dict(eva.rename(meta(vision_shapes(PUBLISHED.vision)), PUBLISHED.vision), strict=True, assign=True)
        with torch.device("meta"):
            audio = beats.BEATs(PUBLISHED.audio)
        audio.load_state_dict(beats.rename(meta(audio_shapes(PUBLISHED.audio)), PUBLISHED.audio), strict=True, assign=True)
        for cross_attention in (False, True):
            bert.load(meta(text_shapes(PUBLISHED.text)), PUBLISHED.text, cross_attention)


class TestReading:
    def test_what_released_files_hold_besides_is_left_out(self, weights, tensors):
        checkpoint = load_checkpoint(weights)
        assert set(checkpoint.tensors) == set(tensors)
        assert len(checkpoint.part("heads")) == 34
        assert checkpoint.part("vision").keys() == vision_shapes(checkpoint.architecture.vision).keys()

    @pytest.mark.parametrize(
        "wrap", [lambda t: {"model": t, "step": 3}, lambda t: {f"module.{k}": v for k, v in t.items()}], ids=["model", "module"]
    )
    def test_wrapped_and_prefixed_files_are_the_same_weights(self, make_weights, weights, tensors, wrap):
        other = load_checkpoint(make_weights(wrap(tensors)))
        assert other.digest(["vision", "audio", "text"]) == load_checkpoint(weights).digest(["vision", "audio", "text"])

    def test_names_of_older_releases(self, make_weights, tensors):
        old = {k.replace("vision_encoder.", "clip_model.").replace("vision_", "video_"): v for k, v in tensors.items()}
        assert "video_frame_embedding" in old
        assert set(load_checkpoint(make_weights(old)).tensors) == set(tensors)

    def test_the_depth_head_of_gram_may_be_there(self, make_weights, tensors):
        gram = {**tensors, "contra_head_d.linear.weight": torch.zeros(16, 32)}
        assert "contra_head_d.linear.weight" in load_checkpoint(make_weights(gram)).part("heads")

    def test_shards_and_safetensors(self, tmp_path, weights, tensors):
        from safetensors.torch import save_file

        digest = load_checkpoint(weights).digest(["text"])
        sharded = tmp_path / "sharded" / "checkpoint-12"
        sharded.mkdir(parents=True)
        names = sorted(tensors)
        torch.save({k: tensors[k] for k in names[:50]}, sharded / "pytorch_model-00001-of-00002.bin")
        torch.save({k: tensors[k] for k in names[50:]}, sharded / "pytorch_model-00002-of-00002.bin")
        flat = tmp_path / "flat"
        flat.mkdir()
        save_file({k: v.contiguous() for k, v in tensors.items()}, flat / "vast.safetensors")
        for folder in (sharded.parent, flat):
            (folder / "architecture.json").write_text((weights / "architecture.json").read_text())
            assert load_checkpoint(folder).digest(["text"]) == digest

    def test_what_belongs_to_a_checkpoint_is_found_from_every_path_to_it(self, make_weights, tensors):
        run = make_weights(tensors, "collection/vast")
        file = run / "ckpt" / "model_step_204994.pt"
        for given in (run, run.parent, file):
            assert load_checkpoint(given).path == file
            assert find_vocabulary(given) == run / "bert" / "bert-base-uncased" / "vocab.txt"
            assert [finding["state"] for finding in check_weights(given)] == ["ok", "ok", "note", "note"]
        # As the repositories lay it out: the run in one folder, what it was built from in another beside it.
        shared = run.parent / "pretrained_weights"
        shared.mkdir()
        (run / "bert").rename(shared / "bert")
        for given in (run, run.parent, file):
            assert find_vocabulary(given) == shared / "bert" / "bert-base-uncased" / "vocab.txt"

    def test_the_digest_sees_one_changed_value(self, make_weights, weights, tensors):
        changed = {k: v.clone() for k, v in tensors.items()}
        changed["vision_encoder.visual.pos_embed"][0, 200, 3] += 1e-6
        before, after = load_checkpoint(weights), load_checkpoint(make_weights(changed))
        assert before.digest(["vision"]) != after.digest(["vision"])
        assert before.digest(["audio"]) == after.digest(["audio"])

    def test_the_last_step_wins_in_numbers(self, tmp_path):
        (tmp_path / "ckpt").mkdir()
        for step in (900, 10000, 9999):
            (tmp_path / "ckpt" / f"model_step_{step}.pt").touch()
        (tmp_path / "ckpt" / "optimizer_step_20000.pt").touch()
        (tmp_path / "ckpt" / "best_ret--msrvtt.pt").touch()
        assert find_checkpoint(tmp_path).name == "model_step_10000.pt"


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("it-was-run",)


def write_bomb(path):
    torch.save({"model": Bomb()}, path)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])


class TestRefusing:
    """Each wrong file: one sentence that names it, and a hint."""

    @pytest.mark.parametrize(
        ("spoil", "sentence"),
        [
            (truncate, "is truncated"),
            (write_bomb, "could execute code"),
            (lambda p: p.write_bytes(b""), "is empty"),
            (lambda p: p.write_text("<!DOCTYPE html><html>Too many requests</html>"), "is a text file"),
            (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"), "is a text file"),
            (lambda p: p.write_bytes(bytes(range(256)) * 40), "cannot be read|holds more than tensors"),
            (lambda p: torch.save([1, 2], p), "holds list, not a state dict"),
            (lambda p: torch.save({"epoch": 3}, p), "its entry 'epoch' is no tensor"),
            (
                lambda p: torch.save({"conv1.weight": torch.zeros(3, 3)}, p),
                "not a VAST checkpoint of the expected architecture",
            ),
        ],
        ids=["truncated", "code", "empty", "html", "lfs", "garbage", "list", "not-tensors", "another-model"],
    )
    def test_a_wrong_file(self, make_weights, tensors, spoil, sentence, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = make_weights(tensors)
        path = folder / "ckpt" / "model_step_204994.pt"
        path.unlink() if spoil is write_bomb else None
        spoil(path)
        with pytest.raises(CalmrlError, match=sentence) as caught:
            load_checkpoint(folder)
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.hint
        assert caught.value.exit_code == 2
        assert not (tmp_path / "it-was-run").exists()

    def test_missing_and_unexpected_tensors_are_named(self, make_weights, tensors):
        wrong = {k: v for k, v in tensors.items() if k != "contra_head_a.linear.weight"} | {
            "vision_encoder.visual.blocks.2.norm1.weight": torch.ones(32)
        }
        with pytest.raises(
            CalmrlError, match=r"1 missing \(contra_head_a.linear.weight\); 1 unexpected \(vision_encoder.visual.blocks.2"
        ):
            load_checkpoint(make_weights(wrong))

    def test_another_size_is_named(self, make_weights, tensors):
        wrong = {**tensors, "contra_head_t.linear.weight": torch.zeros(16, 33)}
        with pytest.raises(CalmrlError, match=r"contra_head_t.linear.weight \(16, 33\) instead of \(16, 32\)"):
            load_checkpoint(make_weights(wrong))

    def test_unshared_position_tables_are_refused(self, make_weights, tensors):
        name = "audio_encoder.encoder.layers.1.self_attn.relative_attention_bias.weight"
        with pytest.raises(CalmrlError, match="BEATs shares one"):
            load_checkpoint(make_weights({**tensors, name: tensors[name] + 1}))

    def test_a_missing_folder_checkpoint_and_vocabulary(self, tmp_path, make_weights, tensors):
        with pytest.raises(CalmrlError, match="does not exist"):
            find_checkpoint(tmp_path / "nowhere")
        with pytest.raises(CalmrlError, match="no VAST checkpoint in") as caught:
            find_checkpoint(tmp_path)
        assert "model_step_N.pt" in caught.value.hint
        folder = make_weights(tensors)
        (folder / "bert" / "bert-base-uncased" / "vocab.txt").unlink()
        with pytest.raises(CalmrlError, match=r"no vocabulary of bert-base-uncased .*bert/bert-base-uncased/vocab.txt"):
            find_vocabulary(folder)

    def test_settings_of_the_run_that_leave_no_trace_in_the_tensors(self, make_weights, tensors):
        folder = make_weights(tensors)
        path = folder / "log" / "hps.json"
        path.write_text(json.dumps({"model_cfg": {"audio_melbins": 128, "audio_encoder_type": "beats"}}))
        with pytest.raises(CalmrlError, match="audio_melbins is 128, here 64"):
            load_checkpoint(folder)
        assert check_weights(folder)[0]["state"] == "bad"
        path.write_text("{}")
        with pytest.raises(CalmrlError, match="hps.json' cannot be read"):
            load_checkpoint(folder)
        path.unlink()
        load_checkpoint(folder)

    def test_several_checkpoints_of_equal_standing(self, tmp_path):
        for name in ("a.pt", "b.pt"):
            (tmp_path / name).touch()
        with pytest.raises(CalmrlError, match="several checkpoints"):
            find_checkpoint(tmp_path)

    def test_two_systems_in_one_folder(self, tmp_path):
        for system in ("gram", "vast"):
            (tmp_path / system / "ckpt").mkdir(parents=True)
            for step in (1, 2):
                (tmp_path / system / "ckpt" / f"model_step_{step}.pt").touch()
        with pytest.raises(CalmrlError, match=r"several checkpoints \(gram/ckpt/model_step_2.pt, vast/ckpt/model_step_2.pt\)"):
            find_checkpoint(tmp_path)
        assert find_checkpoint(tmp_path / "vast").parent.parent.name == "vast"

    def test_quantised_weights_are_named(self, make_weights, tensors):
        name = "vision_encoder.visual.norm.weight"
        with pytest.raises(CalmrlError, match=rf"1 not floating point \({name} torch.int8\)"):
            load_checkpoint(make_weights({**tensors, name: tensors[name].to(torch.int8)}))

    def test_a_broken_architecture_file(self, make_weights, tensors):
        folder = make_weights(tensors)
        for content in ("{", '{"vision": {"colour": 3}}', '{"depth": {}}', "[]"):
            (folder / "architecture.json").write_text(content)
            with pytest.raises(CalmrlError, match="architecture file"):
                load_checkpoint(folder)


class TestCheck:
    def states(self, folder):
        return [finding["state"] for finding in check_weights(folder)]

    def test_a_good_release(self, weights):
        findings = check_weights(weights)
        assert [f["state"] for f in findings] == ["ok", "ok", "note", "note"]
        assert "tensors" in findings[0]["what"]
        assert "without a head for depth" in findings[0]["what"]

    def test_an_empty_folder(self, tmp_path):
        findings = check_weights(tmp_path)
        assert [f["state"] for f in findings][:2] == ["bad", "bad"]
        assert "model_step_N.pt" in findings[0]["do"]

    def test_beats_settings_are_compared(self, make_weights, tensors):
        folder = make_weights(tensors)
        (folder / "beats").mkdir()
        path = folder / "beats" / "BEATs_iter3_plus_AS2M.pt"
        settings = {"encoder_layers": 2, "max_distance": 800, "deep_norm": True, "gru_rel_pos": True, "layer_norm_first": False}
        torch.save({"cfg": settings, "model": {"x": torch.zeros(1)}}, path)
        assert self.states(folder)[-1] == "ok"
        torch.save({"cfg": settings | {"max_distance": 1280}, "model": {}}, path)
        finding = check_weights(folder)[-1]
        assert finding["state"] == "bad"
        assert "max_distance is 1280, used here: 800" in finding["what"]
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x", "y")
        assert self.states(folder)[-1] == "bad"

    def test_the_command(self, weights, tmp_path):
        from typer.testing import CliRunner

        from calmrl_lab.cli import app

        good = CliRunner().invoke(app, ["weights", "check", str(weights), "--json"])
        assert good.exit_code == 0
        assert '"state": "ok"' in good.stdout
        assert CliRunner().invoke(app, ["weights", "check", str(tmp_path)]).exit_code == 1
