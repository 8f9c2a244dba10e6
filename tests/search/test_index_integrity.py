"""An index folder is read whole: changed files are noticed, and a search never mixes two indexes."""

import shutil
import threading

import pytest

from calmrl_lab.errors import CalmrlError
from calmrl_lab.search.index_folder import Gallery, build_gallery

pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")


def test_every_file_that_is_changed_by_a_bit_is_noticed(trained, tmp_path):
    build_gallery(trained, tmp_path / "index", split="test")
    changes = 0
    for file in sorted(path for path in (tmp_path / "index").rglob("*") if path.is_file()):
        kept = file.read_bytes()
        for place in range(5, len(kept), max(1, len(kept) // 12)):
            damaged = bytearray(kept)
            damaged[place] ^= 2
            file.write_bytes(damaged)
            with pytest.raises(CalmrlError):
                Gallery.open(tmp_path / "index")
            changes += 1
        for damaged in (b"", kept[:-1], kept + b"x"):
            file.write_bytes(damaged)
            if file.name == "gallery.json" and damaged == kept[:-1]:
                continue  # without its last line break it says the same
            with pytest.raises(CalmrlError):
                Gallery.open(tmp_path / "index")
            changes += 1
        file.write_bytes(kept)
    assert changes > 40
    assert len(Gallery.open(tmp_path / "index").items) == 75


def test_an_index_that_is_rebuilt_while_it_is_searched_is_the_old_or_the_new_one(trained, tmp_path):
    place, kinds = tmp_path / "index", {}
    for split in ("test", "validation"):
        build_gallery(trained, tmp_path / split, split=split)
        kinds[split] = set(Gallery.open(tmp_path / split).items["id"])
    shutil.copytree(tmp_path / "test", place)
    stop, seen = threading.Event(), []

    def search():
        while not stop.is_set():
            gallery = Gallery.open(place)
            seen.append(set(gallery.items["id"]) == kinds[gallery.facts["split"]])

    reader = threading.Thread(target=search)
    reader.start()
    for split in ("validation", "test") * 3:
        build_gallery(trained, place, split=split)
    stop.set()
    reader.join()
    assert len(seen) > 3
    assert all(seen)


def test_a_reader_begins_again_when_an_equal_index_takes_the_place_of_its_own(trained, tmp_path, monkeypatch):
    place, read = tmp_path / "index", Gallery._read.__func__
    build_gallery(trained, place, split="test")
    shutil.copytree(place, tmp_path / "next")

    def interrupted(cls, folder, gpus):
        if (tmp_path / "next").exists():
            shutil.move(place, tmp_path / "before")
            (tmp_path / "next").rename(place)
            raise CalmrlError("a file of the former folder is gone")
        return read(cls, folder, gpus)

    monkeypatch.setattr(Gallery, "_read", classmethod(interrupted))
    assert len(Gallery.open(place).items) == 75
