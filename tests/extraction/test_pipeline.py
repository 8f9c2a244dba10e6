"""The pipeline: the same bytes whatever happens on the way, and a reason for every gap."""

import json
import os

import numpy as np
import pytest
from extraction.stores import contents, failures

from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.store import FeatureStore, describe
from feature_extractors.extraction import extract


def test_the_store_has_what_the_manifest_says(fakes, tmp_path):
    fakes("one", "two|three", "", "absent", "  ", *["x"] * 10)
    summary = extract("fake", tmp_path / "s.zarr", workers=1)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.mask[:, 0].tolist() == [True, True, False, False, False] + [True] * 10
    assert store.reason[:5, 0].tolist() == [0, 0, 1, 1, 1]
    assert store.offsets("caption").tolist()[:4] == [0, 1, 3, 3]
    letters = (np.asarray(store.features("caption")[1], dtype=np.float32) - 13 / 1024) * 128
    assert bytes(letters.round().astype(np.uint8)).strip() == b"two"
    assert store.labels["parity"][:3].tolist() == ["0", "1", "0"]
    assert store.heads["fake_head"].shape == (2, 8)
    assert summary.missing["caption"]["absent by nature"] == 3
    assert (summary.items, summary.rows) == (15, {"caption": 13, "note": 15})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr", "site"]


def test_any_number_of_workers_gives_the_same_bytes(fakes, notes, tmp_path):
    media = notes(*(f"file {i}" for i in range(30)))
    stores = []
    for workers in (1, 2, 4):
        extract("fake", tmp_path / f"{workers}.zarr", media=media, workers=workers, block_size=7)
        stores.append(contents(tmp_path / f"{workers}.zarr"))
    assert stores[0] == stores[1] == stores[2]


def test_the_media_folder_may_lie_elsewhere(fakes, notes, tmp_path):
    media = notes(*(f"file {i}" for i in range(30)))
    extract("fake", tmp_path / "one.zarr", media=media, workers=1)
    media.rename(tmp_path / "moved")
    extract("fake", tmp_path / "two.zarr", media=tmp_path / "moved", workers=1)
    assert contents(tmp_path / "one.zarr") == contents(tmp_path / "two.zarr")


def test_modalities_may_give_one_encoder_different_options(fakes, tmp_path):
    extract("fake", tmp_path / "s.zarr", workers=1, encoder_options={"caption": {"precision": "bf16"}})
    prints = {spec.name: spec.fingerprint for spec in FeatureStore.open(tmp_path / "s.zarr").specs}
    assert prints == {"caption": "fake-1-bf16", "note": "fake-1"}


def test_ray_gives_the_same_bytes(fakes, notes, tmp_path):
    pytest.importorskip("ray", reason="the ray extra is not installed")
    media = notes(*(f"file {i}" for i in range(29)), "bad")
    extract("fake", tmp_path / "local.zarr", media=media, workers=1, block_size=7)
    extract("fake", tmp_path / "ray.zarr", media=media, workers=2, block_size=7, engine="ray")
    assert contents(tmp_path / "local.zarr") == contents(tmp_path / "ray.zarr")


def test_a_failed_medium_is_a_gap_with_a_record(fakes, tmp_path):
    fakes("one", "bad", "nan", "odd", "good|bad", "raise", *["x"] * 100)
    summary = extract("fake", tmp_path / "s.zarr", workers=1)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.reason[:6, 0].tolist() == [0, 2, 2, 2, 0, 2]
    assert failures(tmp_path / "s.zarr") == {
        "item001": "decode_error", "item002": "nan_output", "item003": "decode_error", "item004": "decode_error", "item005": "encode_error",
    }  # fmt: skip
    assert summary.failed == {"decode_error": 3, "nan_output": 1, "encode_error": 1}
    assert describe(store)["failures"] == summary.failed


def test_what_an_encoder_cannot_take_does_not_change_the_others(fakes, tmp_path):
    fakes("one", "raise", "two", *["x"] * 40)
    extract("fake", tmp_path / "with.zarr", workers=1)
    fakes("one", "two", *["x"] * 40)
    extract("fake", tmp_path / "without.zarr", workers=1)
    with_it, without = (FeatureStore.open(tmp_path / name) for name in ("with.zarr", "without.zarr"))
    assert np.array_equal(with_it.features("caption"), without.features("caption"))


def test_values_too_large_for_float16_are_kept_in_float32(fakes, tmp_path):
    fakes("one", "huge", *["x"] * 10)
    extract("fake", tmp_path / "s.zarr", workers=1)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert [spec.dtype for spec in store.specs] == ["float32", "float16"]
    assert store.features("caption")[1].max() > 65504


def test_too_many_failures_end_with_an_error_after_everything_is_written(fakes, tmp_path):
    fakes(*["x"] * 5, *["bad"] * 5)
    with pytest.raises(WorkFailedError, match="5 of 20 media failed, more than the limit of 5% \\(5 decode_error\\)"):
        extract("fake", tmp_path / "s.zarr", workers=1)
    assert len(FeatureStore.open(tmp_path / "s.zarr")) == 10
    assert not (tmp_path / "s.zarr.parts").exists()


def test_a_modality_of_which_everything_failed(fakes, tmp_path):
    fakes(*["bad"] * 5)
    with pytest.raises(WorkFailedError, match="5 of 10 media failed"):
        extract("fake", tmp_path / "s.zarr", workers=1, block_size=2)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.features("caption").shape == (0, 8)
    assert store.reason.tolist() == [[2, 0]] * 5
    with pytest.raises(WorkFailedError):
        extract("fake", tmp_path / "s.zarr", workers=1, block_size=2, retry_failed=True)
    assert FeatureStore.open(tmp_path / "s.zarr").digest == store.digest
    fakes(*["good"] * 5)
    extract("fake", tmp_path / "s.zarr", workers=1, block_size=2, retry_failed=True)
    assert FeatureStore.open(tmp_path / "s.zarr").mask.all()


def test_an_item_that_turns_out_to_have_nothing_is_left_out(fakes, tmp_path):
    fakes("one", "absent", "  ", "two")
    summary = extract("fake", tmp_path / "s.zarr", preset="caption=fake", workers=1)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.ids.tolist() == ["item000", "item003"]
    assert summary.left_out == ["item001", "item002"]


def test_files_are_read_inside_the_media_folder_only(fakes, notes, tmp_path):
    fakes("a", "b", "c", "d", "e", *["x"] * 95)
    media = notes(*["note"] * 100)
    (tmp_path / "secret.txt").write_text("secret")
    for number in (0, 2, 4):
        (media / f"{number}.txt").unlink()
    (media / "0.txt").symlink_to(tmp_path / "secret.txt")
    (media / "1.txt").write_text("")
    (media / "4.txt").symlink_to(media / "3.txt")
    (media / "5.txt").unlink()
    (media / "5.txt").mkdir()
    (media / "5.txt" / "frame.png").symlink_to(tmp_path / "secret.txt")

    os.mkfifo(media / "fifo")
    (media / "3.txt").unlink()
    (media / "fifo").rename(media / "3.txt")
    extract("fake", tmp_path / "s.zarr", workers=1, media=media)
    assert failures(tmp_path / "s.zarr") == {
        "item000": "outside_media", "item001": "empty_file", "item002": "not_found", "item003": "not_media", "item004": "not_media",
        "item005": "outside_media",
    }  # fmt: skip
    assert "secret" not in (tmp_path / "s.zarr" / "failures.jsonl").read_text()


def test_a_failure_says_which_bytes_it_was(fakes, notes, tmp_path):
    media = notes(*["x"] * 29, "bad")
    extract("fake", tmp_path / "s.zarr", workers=1, media=media)
    (record,) = FeatureStore.open(tmp_path / "s.zarr").failures()
    import hashlib

    assert record == {
        "id": "item029", "modality": "note", "code": "decode_error", "error": "the text is bad", "path": "29.txt", "size": 3,
        "sha256_first_mib": hashlib.sha256(b"bad").hexdigest(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "fakes"}, "did you mean 'fake'"),
        ({"preset": "fak"}, "no encoder preset 'fak'; did you mean 'fake'"),
        ({"preset": "caption=fak"}, "unknown encoder 'fak'"),
        ({"preset": "caption="}, "'caption=' is not MODALITY=ENCODER"),
        ({"preset": "caption=fake,caption=fake"}, "twice"),
        ({"preset": "smell=fake"}, "no modality 'smell'"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"block_size": 0}, "block size must be at least 1"),
        ({"timeout": 0}, "--timeout must be more than 0"),
        ({"engine": "rai"}, "unknown engine 'rai'"),
        ({"device": "cuda:77"}, "cuda:77"),
        (
            {"encoder_options": {"caption": {"precisoin": "x"}}},
            "encoder 'fake' has no option 'precisoin'; did you mean 'precision'",
        ),
        ({"encoder_options": {"smell": {"precision": "x"}}}, "no modality 'smell'"),
        ({"overwrite": True, "retry_failed": True}, "exclude each other"),
        ({"retry_failed": True}, "no such file or directory|does not exist"),
    ],
)
def test_a_request_that_makes_no_sense_leaves_nothing(fakes, tmp_path, changes, said):
    out = tmp_path / "out" / "s.zarr"
    with pytest.raises(CalmrlError, match=said) as caught:
        extract(**{"dataset": "fake", "out": out, **changes})
    assert caught.value.exit_code == 2
    assert not out.parent.exists()


@pytest.mark.parametrize("strange", ["", "a\0b", "a" * 2000, "\ud800"])
def test_ids_that_cannot_be_stored_are_refused_before_anything_runs(fakes, tmp_path, strange, monkeypatch):
    import dataclasses

    import extraction_fakes

    whole = extraction_fakes.FakeDataset.manifest

    def manifest(self):
        found = whole(self)
        return dataclasses.replace(found, items=(dataclasses.replace(found.items[0], id=strange), *found.items[1:]))

    monkeypatch.setattr(extraction_fakes.FakeDataset, "manifest", manifest)
    with pytest.raises(CalmrlError):
        extract("fake", tmp_path / "out" / "s.zarr", workers=1)
    assert not (tmp_path / "out").exists()


def test_odd_ids_are_only_names(fakes, tmp_path, monkeypatch):
    import dataclasses

    import extraction_fakes

    whole = extraction_fakes.FakeDataset.manifest
    names = ["../../up", "quo\"te's", "new\nline", "\U0001f600", "a/b", "%s{}$(touch x)", *(str(i) for i in range(24))]

    def manifest(self):
        found = whole(self)
        items = (dataclasses.replace(item, id=name) for item, name in zip(found.items, names, strict=True))
        return dataclasses.replace(found, items=tuple(items))

    monkeypatch.setattr(extraction_fakes.FakeDataset, "manifest", manifest)
    extract("fake", tmp_path / "s.zarr", workers=1)
    assert FeatureStore.open(tmp_path / "s.zarr").ids.tolist() == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr", "site"]


def test_an_item_without_any_modality_is_a_mistake_in_the_manifest(fakes, tmp_path, monkeypatch):
    import dataclasses

    import extraction_fakes

    whole = extraction_fakes.FakeDataset.manifest

    def manifest(self):
        found = whole(self)
        return dataclasses.replace(found, items=(*found.items, dataclasses.replace(found.items[0], id="bare", media={})))

    monkeypatch.setattr(extraction_fakes.FakeDataset, "manifest", manifest)
    with pytest.raises(CalmrlError, match="1 of 31 items have no modality at all, the first is 'bare'"):
        extract("fake", tmp_path / "s.zarr", workers=1)


def test_an_existing_store_is_replaced_only_when_asked(fakes, tmp_path):
    extract("fake", tmp_path / "s.zarr", workers=1)
    before = contents(tmp_path / "s.zarr")
    fakes("another")
    with pytest.raises(CalmrlError, match="exists already"):
        extract("fake", tmp_path / "s.zarr", workers=1)
    assert contents(tmp_path / "s.zarr") == before
    extract("fake", tmp_path / "s.zarr", workers=1, overwrite=True)
    assert len(FeatureStore.open(tmp_path / "s.zarr")) == 1


def test_the_command_prints_a_summary_and_writes_where_it_was_told(fakes, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said, progress = cli("extract", "--dataset", "fake", "--workers", 1)
    assert code == 0
    assert "written to stores/fake.zarr" in said
    assert progress == ""
    code, said, _ = cli("extract", "--dataset", "fake", "--workers", 1, "--overwrite", "--json")
    payload = json.loads(said)
    assert (payload["items"], payload["rows"], payload["failed_media"]) == (30, {"caption": 30, "note": 30}, 0)
    code, _, said = cli("extract", "--dataset", "fake")
    assert code == 2
    assert "--overwrite" in said


def test_the_command_exits_with_1_when_too_much_failed(fakes, cli, tmp_path):
    fakes("bad", "x")
    code, _, said = cli("extract", "--dataset", "fake", "--workers", 1, "--out", tmp_path / "s.zarr")
    assert code == 1
    assert "--retry-failed" in said.replace("\n", " ")
    assert (tmp_path / "s.zarr").exists()
