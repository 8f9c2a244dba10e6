"""Datasets of the VAST family: real annotation files, id traps, several captions, missing media, broken files."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from calmrl_lab.errors import CalmrlError
from feature_extractors.annotations.annotation import Split
from feature_extractors.annotations.read import read_annotations
from feature_extractors.datasets import datasets
from feature_extractors.protocols import File, Text

_ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("CALMRL_TEST_DATA") or _ROOT.parent / "shared" / "data") / "annotations"
FAMILY = ("activitynet", "audiocaps", "clotho", "didemo", "msrvtt", "vast150k", "vast150k-captions", "vatex", "youcook2")


@pytest.fixture
def media(tmp_path):
    """An empty media folder with the sub-folders that are looked for."""
    for name in ("annotations", "videos", "audios"):
        (tmp_path / name).mkdir()
    return tmp_path


def write(media, name, rows):
    (media / "annotations" / name).write_text(json.dumps(rows))


def touch(media, *names):
    for name in names:
        (media / name).parent.mkdir(parents=True, exist_ok=True)
        (media / name).touch()


class TestRealFiles:
    """Counts of the files as GRAM and PMRL use them."""

    @pytest.mark.parametrize(
        ("dataset", "folder", "splits", "captions", "subtitles", "groups"),
        [
            ("msrvtt", "msrvtt", {"train": 9000, "test": 1000}, 10000, (9000 - 2109) + (1000 - 238), None),
            ("audiocaps", "audiocaps", {"test": 729}, 5 * 729, 0, 729),
            ("didemo", "didemo", {"test": 1003}, 1003, 0, None),
            ("activitynet", "activitynet", {"test": 4917}, 4917, 0, None),
            ("vatex", "vatex", {"test": 1500}, 15000, 1500 - 759, 1500),
            ("youcook2", "youcook", {"test": 3216}, 3216, 3216 - 216, 419),
        ],
    )
    def test_counts(self, media, dataset, folder, splits, captions, subtitles, groups):
        if not (REAL / folder).is_dir():
            pytest.skip(f"the released annotations of {dataset} are not here (set CALMRL_TEST_DATA)")
        items = datasets.get(dataset)(media, annotations=REAL).manifest().items
        found = Counter(item.split for item in items)
        held_out = found.pop("validation", 0)
        assert held_out == pytest.approx(0.05 * splits.get("train", 0), rel=0.1)
        assert found + Counter(train=held_out) == splits
        assert sum(len(item.media["caption"]) for item in items) == captions
        assert sum("subtitle" in item.media for item in items) == subtitles
        assert len({item.id for item in items}) == len(items)
        assert groups is None or len({item.group for item in items}) == groups

    def test_the_captions_of_the_sound_of_msrvtt(self):
        path = REAL / "msrvtt" / "descs_ret_test_audcap_with_audio_captions.json"
        if not path.is_file():
            pytest.skip("the released annotations are not here (set CALMRL_TEST_DATA)")
        rows = read_annotations(path, Split("test", (path.name,)), {"audio_caption": "audio_caption"})
        assert len(rows) == 1000
        assert sum("audio_caption" in row.extra for row in rows) == 884, "the clips that have sound"

    def test_ids_keep_their_dots_and_signs(self, media):
        if not (REAL / "audiocaps").is_dir():
            pytest.skip("the released annotations are not here (set CALMRL_TEST_DATA)")
        touch(media, "videos/GOD8Bt5LfDE_100.000_110.000.mp4", "videos/26292851@N04_4253489686_265c3c8051.avi")
        for name, item in (("audiocaps", "GOD8Bt5LfDE_100.000_110.000"), ("didemo", "26292851@N04_4253489686_265c3c8051")):
            first = datasets.get(name)(media, annotations=REAL).manifest().items[0]
            assert first.id == item
            assert first.media["vision"][0].path.stem == item


class TestItems:
    def test_media_texts_and_gaps(self, media):
        write(
            media,
            "descs_ret_test.json",
            [
                {"video_id": "video0", "desc": "a dog", "subtitle": " hello "},
                {"video_id": "video1", "desc": "a cat", "subtitle": "   "},
                {"video_id": "video2", "desc": "a car"},
                {"video_id": "video3", "desc": "gone"},
            ],
        )
        touch(media, "videos/video0.mp4", "videos/TestVideo/video1.webm", "videos/video2.mp4", "audios/video0.mp3")
        items = {item.id: item for item in datasets.get("msrvtt")(media).manifest().items}
        assert items["video0"].media["audio"] == (File(media / "audios/video0.mp3"),)
        assert items["video0"].media["subtitle"] == (Text(" hello "),)
        assert "subtitle" not in items["video1"].media, "white space is no subtitle"
        assert items["video1"].media["vision"] == (File(media / "videos/TestVideo/video1.webm"),)
        # No extracted sound: the video's own track decides.
        assert items["video2"].media["audio"] == (File(media / "videos/video2.mp4"),)
        # Nothing at all: the places where the files belong, so that both are recorded as not found.
        assert items["video3"].media["vision"] == (File(media / "videos/video3.mp4"),)
        assert items["video3"].media["audio"] == (File(media / "audios/video3.wav"),)

    def test_a_folder_called_wav_and_an_id_that_ends_in_wav(self, tmp_path):
        media = tmp_path / "my.wav.mp3"
        for name in ("annotations", "audios"):
            (media / name).mkdir(parents=True)
        write(media, "descs_cap_test.json", [{"video_id": "rain&amp;storm.wav", "caption": ["rain", "a storm"]}])
        for stored in ("rain&storm.wav", "rain&amp;storm.wav"):
            touch(media, f"audios/{stored}")
            (item,) = datasets.get("clotho")(media).manifest().items
            assert item.id == "rain&storm.wav"
            assert item.media["audio"] == (File(media / "audios" / stored),)
            assert [caption.text for caption in item.media["caption"]] == ["rain", "a storm"]
            (media / "audios" / stored).unlink()
            touch(media, "audios/other.wav")

    def test_one_row_a_caption_is_one_item(self, media):
        write(media, "descs_cap_trainval.json", [{"video_id": "a.wav", "caption": c} for c in ("one", "two", "one")])
        touch(media, "audios/a.wav")
        (item,) = datasets.get("clotho")(media).manifest().items
        assert [caption.text for caption in item.media["caption"]] == ["one", "two"]

    def test_endings_of_cameras(self, media):
        write(media, "descs_ret_test.json", [{"video_id": f"1@N2.0_{i}", "desc": "x"} for i in range(3)])
        touch(media, "videos/1@N2.0_0.MOV", "videos/1@N2.0_1.mp4", "videos/1@N2.0_1.MP4", "videos/1@N2.0_2.3gp")
        items = datasets.get("didemo")(media).manifest().items
        assert [item.media["vision"][0].path.name for item in items] == ["1@N2.0_0.MOV", "1@N2.0_1.mp4", "1@N2.0_2.3gp"]

    def test_ids_that_are_numbers_or_null(self, media):
        write(media, "descs_ret_test.json", [{"clip_id": None, "video_id": "a", "desc": "x"}, {"image_id": 7, "desc": "y"}])
        assert [item.id for item in datasets.get("msrvtt")(media).manifest().items] == ["a", "7"]

    def test_names_that_other_tools_give(self, media):
        write(
            media,
            "descs_ret_test.json",
            [{"video_id": "abc_30.000_40.000", "caption": "x"}, {"video_id": "a_b_5.000_15.000", "caption": "y"}],
        )
        touch(media, "videos/abc_30.mp4", "audios/a_b_5_15.wav")
        first, second = datasets.get("audiocaps")(media).manifest().items
        assert first.media["vision"][0].path.name == "abc_30.mp4"
        assert second.media["audio"][0].path.name == "a_b_5_15.wav"
        assert (first.group, second.group) == ("abc", "a_b")

    def test_the_sound_of_didemo_as_gram_names_it(self, media):
        write(media, "descs_ret_test.json", [{"video_id": "1@N2_3", "desc": "x"}])
        touch(media, "audios/audio_1@N2_3.mp3")
        (item,) = datasets.get("didemo")(media).manifest().items
        assert item.media["audio"][0].path.name == "audio_1@N2_3.mp3"

    def test_a_folder_of_frames_is_a_video_without_sound(self, media):
        write(media, "descs_ret_test.json", [{"video_id": "v", "desc": "x"}])
        touch(media, "frames/v/img_0001.jpg")
        (item,) = datasets.get("msrvtt")(media).manifest().items
        assert item.media["vision"] == (File(media / "frames" / "v"),)
        assert "audio" not in item.media

    def test_the_captions_of_vast150k(self, media):
        row = {"clip_id": "c1", "vast_cap": "all", "vision_cap": ["seen", "seen too"], "audio_cap": "heard", "subtitle": "said"}
        write(media, "annotations150k.json", [row])
        touch(media, "videos/c1.mp4")
        (plain,) = datasets.get("vast150k")(media).manifest().items
        assert set(plain.media) == {"vision", "audio", "caption", "subtitle"}
        manifest = datasets.get("vast150k-captions")(media).manifest()
        assert manifest.modalities[-2:] == ("vision_caption", "audio_caption")
        assert [t.text for t in manifest.items[0].media["vision_caption"]] == ["seen", "seen too"]


class TestChoices:
    @pytest.fixture
    def media(self, media):
        write(media, "descs_ret_test.json", [{"video_id": f"v{i}", "caption": [f"{i}a", f"{i}b"]} for i in range(3)])
        write(media, "descs_ret_train.json", [{"video_id": "t0", "caption": ["x"]}])
        touch(media, "videos/v0.mp4", "audios/v0.wav", "videos/v1.mp4", "videos/t0.mp4")
        return media

    def make(self, media, **options):
        return datasets.get("audiocaps")(media, **options).manifest()

    def test_all_splits_by_default(self, media):
        manifest = self.make(media)
        assert manifest.dataset == "audiocaps"
        assert [item.id for item in manifest.items] == ["t0", "v0", "v1", "v2"]

    def test_one_split(self, media):
        assert [item.id for item in self.make(media, splits="test").items] == ["v0", "v1", "v2"]
        assert len(self.make(media, splits="train,test").items) == 4
        with pytest.raises(CalmrlError, match="no split 'dev'"):
            self.make(media, splits="dev")

    def test_gram_and_pmrl_keep_the_first_caption_of_items_with_sound(self, media):
        for preset in ("gram-compat", "pmrl-compat"):
            manifest = self.make(media, **datasets.get("audiocaps").preset_options[preset])
            assert [item.id for item in manifest.items] == ["v0"]
            assert [c.text for c in manifest.items[0].media["caption"]] == ["0a"]
            files = "an audio file and a video file" if preset == "gram-compat" else "an audio file"
            assert manifest.dataset == f"audiocaps (captions first; items with {files})", "the subset is part of the name"
        assert "vast-paper" not in datasets.get("audiocaps").preset_options

    def test_the_first_caption_is_that_of_a_row(self, media):
        """MSR-VTT's training list has a row per caption, 20 a clip: released code trains on all rows, and takes the first caption of a row's list."""
        write(
            media,
            "descs_ret_train.json",
            [{"video_id": "a", "desc": f"{n}"} for n in (1, 2, 1)] + [{"video_id": "b", "desc": ["x", "y"]}],
        )
        write(media, "descs_ret_test.json", [{"video_id": "c", "desc": "z"}])
        touch(media, *(f"videos/{name}.mp4" for name in "abc"), *(f"audios/{name}.mp3" for name in "abc"))
        options = datasets.get("msrvtt").preset_options["calmrl-released"]
        items = {item.id: item for item in datasets.get("msrvtt")(media, validation=0.0, **options).manifest().items}
        assert {name: [c.text for c in item.media["caption"]] for name, item in items.items()} == {
            "a": ["1", "2"],
            "b": ["x"],
            "c": ["z"],
        }

    def test_where_gram_and_pmrl_also_need_the_video(self, media):
        # Of AudioCaps only GRAM leaves out what has no video, of VAST-150K both do, of MSR-VTT none.
        needing = {
            (name, preset)
            for name in FAMILY
            for preset, options in datasets.get(name).preset_options.items()
            if options.get("require_video")
        }
        assert needing == {("audiocaps", "gram-compat")} | {
            (name, preset) for name in ("vast150k", "vast150k-captions") for preset in ("gram-compat", "pmrl-compat")
        }
        write(media, "annotations150k.json", [{"clip_id": name, "vast_cap": "x"} for name in ("both", "heard", "seen")])
        touch(media, "videos/both.mp4", "audios/both.mp3", "audios/heard.mp3", "videos/seen.mp4")
        manifest = datasets.get("vast150k")(media, **datasets.get("vast150k").preset_options["gram-compat"]).manifest()
        assert [item.id for item in manifest.items] == ["both"]
        assert manifest.dataset == "vast150k (captions first; items with an audio file and a video file)"

    def test_validation_items_come_out_of_the_training_items_by_group(self, media):
        rows = [{"video_id": f"video{i}_{c}.000_9.000", "caption": "x"} for i in range(200) for c in (1, 2)]
        write(media, "descs_ret_train.json", rows)
        items = self.make(media, validation=0.25).items
        splits = {}
        for item in items:
            splits.setdefault(item.group, set()).add(item.split)
        assert all(len(found) == 1 for found in splits.values()), "clips of one video stay together"
        held_out = [item.id for item in items if item.split == "validation"]
        assert 60 < len(held_out) < 140
        assert [item.id for item in self.make(media, validation=0.25, splits="validation").items] == held_out
        assert not any(item.split == "validation" for item in self.make(media, validation=0).items)
        # The same items are held out of half the list.
        write(media, "descs_ret_train.json", rows[:200])
        half = [item.id for item in self.make(media, validation=0.25, splits="validation").items]
        assert half == [name for name in held_out if name in {row["video_id"] for row in rows[:200]}]
        with pytest.raises(CalmrlError, match="validation=2 is no share"):
            self.make(media, validation=2)

    def test_items_without_any_file_can_be_dropped(self, media):
        manifest = self.make(media, missing="drop")
        assert [item.id for item in manifest.items] == ["t0", "v0", "v1"]

    def test_unknown_choices(self, media):
        with pytest.raises(CalmrlError, match="captions=some is unknown"):
            self.make(media, captions="some")
        with pytest.raises(CalmrlError, match="require_audio=yes is unknown"):
            self.make(media, require_audio="yes")
        with pytest.raises(CalmrlError, match="has no option 'split'; did you mean 'splits'"):
            self.make(media, split="test")


class TestPresets:
    @pytest.mark.parametrize("name", [*FAMILY, "vggsound", "class-folder"])
    def test_every_preset_names_registered_encoders_for_every_modality(self, name):
        from feature_extractors.encoders import encoders

        dataset = datasets.get(name)
        zero_shot = name in ("msrvtt", "activitynet", "didemo", "vatex", "audiocaps", "clotho")
        assert list(dataset.presets) == [
            "vast-paper",
            "gram-compat",
            "pmrl-compat",
            *["pmrl-zero-shot"] * zero_shot,
            "calmrl-released",
            "open",
        ]
        for preset in dataset.presets.values():
            assert all(encoder in encoders for encoder in preset.values())
            if name in FAMILY:
                assert set(preset) == {*dataset.modalities, *dataset.extra_texts}

    def test_the_first_word_of_a_name_is_enough(self, media):
        from feature_extractors.request import resolve_request

        write(media, "descs_ret_test.json", [{"video_id": v, "desc": ["x", "y"]} for v in ("a", "b")])
        touch(media, "videos/a.mp4", "videos/b.mp4", "audios/a.wav")
        for given, meant, items in (("vast", "vast-paper", 2), ("gram", "gram-compat", 1), ("pmrl", "pmrl-compat", 1)):
            request = resolve_request("msrvtt", given, media)
            assert request.preset == meant
            assert request.equipment.choice == datasets.get("msrvtt").presets[meant]
            assert len(request.manifest.items) == items, "the options of the preset apply as well"
        with pytest.raises(CalmrlError, match="no encoder preset 'vas'"):
            resolve_request("msrvtt", "vas", media)

    def test_zero_shot_as_released(self):
        """8 frames (VATEX 16), 40 tokens everywhere, the slices of each set; VAST-150K at 40 tokens too."""
        from feature_extractors.encoders import encoders

        expected = {
            "msrvtt": (8, 1),
            "activitynet": (8, 2),
            "didemo": (8, 2),
            "vatex": (16, 1),
            "audiocaps": (8, 1),
            "clotho": (None, 3),
        }
        for name, (frames, slices) in expected.items():
            preset = {m: encoders.get(encoder) for m, encoder in datasets.get(name).presets["pmrl-zero-shot"].items()}
            assert preset["caption"].length == 40
            assert preset["audio"].slices == slices
            assert (preset["vision"].frames if "vision" in preset else None) == frames
            assert datasets.get(name).preset_options["pmrl-zero-shot"] == {"captions": "first", "require_audio": True}
        assert encoders.get(datasets.get("msrvtt").presets["pmrl-zero-shot"]["vision"]).resize == "crop"
        for preset in ("vast-paper", "gram-compat", "pmrl-compat"):
            assert encoders.get(datasets.get("vast150k").presets[preset]["caption"]).length == 40

    def test_sound_that_a_preset_requires_and_nobody_extracted(self, media):
        write(media, "descs_ret_test.json", [{"video_id": "a", "desc": "x"}])
        touch(media, "videos/a.mp4")
        (media / "audios").rmdir() if (media / "audios").is_dir() else None
        with pytest.raises(
            CalmrlError, match="only items with a sound file are asked for, and there is no folder 'audios'"
        ) as caught:
            datasets.get("msrvtt")(media, **datasets.get("msrvtt").preset_options["gram-compat"]).manifest()
        assert "require_audio=false" in caught.value.hint

    def test_empty_captions_are_left_out_and_counted(self, media, capsys):
        rows = [{"video_id": "a", "desc": ["x", " ", "y"]}, {"video_id": "b", "desc": ""}, {"video_id": "c", "desc": "z"}]
        write(media, "descs_ret_test.json", rows)
        touch(media, "videos/a.mp4", "videos/b.mp4", "videos/c.mp4")
        items = datasets.get("msrvtt")(media).manifest().items
        assert [[text.text for text in item.media["caption"]] for item in items] == [["x", "y"], [], ["z"]]
        assert "2 empty captions are left out" in " ".join(capsys.readouterr().err.split())

    def test_where_the_three_differ(self):
        presets = datasets.get("msrvtt").presets
        assert presets["vast-paper"]["vision"] == presets["pmrl-compat"]["vision"] == "vast/eva-g-16-crop"
        assert presets["gram-compat"]["vision"] == "vast/eva-g-crop-gram"
        assert presets["gram-compat"]["audio"] == "vast/beats64-mono"

    def test_calmrl_tests_with_eight_frames_and_forty_tokens(self):
        for name, frames in (("msrvtt", "-crop"), ("activitynet", ""), ("didemo", ""), ("vatex", "-16"), ("audiocaps", "")):
            preset = datasets.get(name).presets["calmrl-released"]
            assert (preset["vision"], preset["caption"]) == (f"vast/eva-g{frames}", "vast/bert-caption")
        assert datasets.get("didemo").presets["pmrl-compat"]["caption"] == "vast/bert-caption-70"


class TestRefusing:
    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ('[{"video_id": "a", "desc": "x"},', "no valid JSON: .* in line 1, column"),
            ("<html>", "no valid JSON"),
            ("{}", "holds dict, expected a list"),
            ("[]", "holds an empty list"),
            ('["a"]', "row 0 of .* is str, expected an object"),
            ('[{"desc": "x"}]', "row 0 of .* has no id"),
            ('[{"video_id": {"a": 1}, "desc": "x"}]', 'row 0 of .* has no id .*; got {"a": 1}'),
            ('[{"video_id": true, "desc": "x"}]', "row 0 of .* has no id .*; got true"),
            ('[{"video_id": " ", "desc": "x"}]', "row 0 of .* has no id"),
            ('[{"video_id": "a", "desc": "x", "subtitle": ["y", "z"]}]', "the subtitle of 'a' is no text"),
            ("[" * 100_000, "brackets are nested too deep"),
            ('[{"video_id": "a"}]', "the caption of 'a' is no text"),
            ('[{"video_id": "a", "desc": 3}]', "the caption of 'a' is no text"),
            ('[{"video_id": "a", "desc": []}]', "the caption of 'a' is no text"),
        ],
    )
    def test_a_broken_annotation_file(self, media, content, sentence):
        (media / "annotations" / "descs_ret_test.json").write_text(content)
        with pytest.raises(CalmrlError, match=sentence) as caught:
            datasets.get("msrvtt")(media).manifest()
        assert "descs_ret_test.json" in caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.exit_code == 2

    def test_a_byte_order_mark_is_no_error(self, media):
        (media / "annotations" / "descs_ret_test.json").write_text('[{"video_id": "a", "desc": "x"}]', encoding="utf-8-sig")
        assert [item.id for item in datasets.get("msrvtt")(media).manifest().items] == ["a"]

    def test_bytes_that_are_no_text(self, media):
        (media / "annotations" / "descs_ret_test.json").write_bytes(b"\xff\xfa[\x00")
        with pytest.raises(CalmrlError, match="is not UTF-8"):
            datasets.get("msrvtt")(media).manifest()

    @pytest.mark.parametrize("name", [*FAMILY, "vggsound"])
    def test_without_data_every_file_that_was_looked_for_is_named(self, name, tmp_path):
        dataset = datasets.get(name)
        with pytest.raises(CalmrlError, match="needs a media folder") as caught:
            dataset().manifest()
        for split in dataset.splits:
            assert f"DIR/annotations/{split.files[0]}" in caught.value.hint
        with pytest.raises(CalmrlError, match="no annotation file") as caught:
            dataset(tmp_path).manifest()
        for split in dataset.splits:
            for file in split.files:
                assert str(tmp_path / "annotations" / file) in caught.value.message
                assert str(tmp_path / "annotations" / dataset.annotation_folders[0] / file) in caught.value.message
        assert "DIR/audios/<id>" in caught.value.hint
        with pytest.raises(CalmrlError, match="does not exist"):
            dataset(tmp_path / "nowhere").manifest()

    def test_annotations_without_media(self, tmp_path):
        (tmp_path / "annotations").mkdir()
        write(tmp_path, "descs_ret_test.json", [{"video_id": "v", "desc": "x"}])
        with pytest.raises(CalmrlError, match="no media in") as caught:
            datasets.get("msrvtt")(tmp_path).manifest()
        assert str(tmp_path / "videos") in caught.value.message

    def test_nothing_left(self, media):
        write(media, "descs_ret_test.json", [{"video_id": "v", "desc": "x"}])
        with pytest.raises(CalmrlError, match="none of the 1 annotated items"):
            datasets.get("msrvtt")(media, require_audio=True).manifest()
