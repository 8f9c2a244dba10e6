"""Workers that hang, crash or lie: one medium is lost, never a block."""

from pathlib import Path

import numpy as np
import pytest
import torch
from extraction.echoing import break_off, echo
from extraction.fakes import FakeEncoder
from extraction.stores import contents, failures, parts

from calmrl_lab.errors import WorkFailedError
from calmrl_lab.store import FeatureStore
from feature_extractors import extraction
from feature_extractors.extraction import extract
from feature_extractors.workers.encode_block import encode_batch
from feature_extractors.workers.local_pool import WorkerConfig
from feature_extractors.workers.process import NoAnswer, Process, ProcessDied


def test_a_file_that_kills_its_reader_loses_only_itself(fakes, notes, tmp_path):
    media = notes(*["x"] * 12, "crash", *["y"] * 16, "crash")
    extract("fake", tmp_path / "s.zarr", media=media, workers=2, block_size=6, max_failures=1.0)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert failures(tmp_path / "s.zarr") == {"item012": "worker_crash", "item029": "worker_crash"}
    assert store.mask[:, 0].all()
    assert store.reason[:, 1].tolist() == [2 if i in (12, 29) else 0 for i in range(30)]
    assert store.failures()[0]["error"] == "the process that read it ended with exit code 9"


def test_a_file_that_hangs_is_given_up_after_its_time(fakes, notes, tmp_path):
    media = notes(*["x"] * 20, "hang", *["y"] * 9)
    extract("fake", tmp_path / "s.zarr", media=media, workers=1, block_size=6, timeout=0.5)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert failures(tmp_path / "s.zarr") == {"item020": "timeout"}
    assert store.failures()[0]["error"] == "not read within 0.5 s"
    assert store.mask.sum() == 59


def test_a_reader_killed_once_from_outside_loses_nothing(fakes, notes, tmp_path):
    media = notes(*["x"] * 20, "once", *["y"] * 9)
    extract("fake", tmp_path / "s.zarr", media=media, workers=1, block_size=6)
    assert FeatureStore.open(tmp_path / "s.zarr").mask.all()


@pytest.mark.slow
def test_a_text_that_kills_its_worker_loses_only_itself(fakes, tmp_path):
    fakes(*["x"] * 24, "crash", *["y"] * 5)
    extract("fake", tmp_path / "s.zarr", workers=2, block_size=6)
    assert failures(tmp_path / "s.zarr") == {"item024": "worker_crash"}
    assert FeatureStore.open(tmp_path / "s.zarr").mask.sum() == 59


def test_what_crashes_the_encoder_loses_only_itself(fakes, notes, tmp_path):
    fakes("a", "segfault", *["x"] * 28)
    media = notes(*["n"] * 8, "segfault", *["m"] * 21)
    extract("fake", tmp_path / "s.zarr", media=media, workers=1, block_size=10, max_failures=1.0)
    assert failures(tmp_path / "s.zarr") == {"item001": "worker_crash", "item008": "worker_crash"}
    assert FeatureStore.open(tmp_path / "s.zarr").failures()[0]["error"] == "the process that encoded it was killed by SIGSEGV"
    # As if the culprits had never been there.
    fakes("a", "", *["x"] * 28)
    (media / "8.txt").write_text("absent")
    extract("fake", tmp_path / "without.zarr", media=media, workers=1, block_size=10)
    kept = {name: data for name, data in contents(tmp_path / "s.zarr").items() if name.startswith(("features/", "offsets/"))}
    without = contents(tmp_path / "without.zarr")
    assert all(without[name] == data for name, data in kept.items())


@pytest.mark.slow
def test_several_readers_ahead_of_one_encoder_give_the_same_bytes(fakes, notes, tmp_path, monkeypatch):
    """What happens on a GPU, with another device: one lane, many readers, the next block read while this one is encoded."""
    media = notes(*["n"] * 7, "crash", "bad", "absent", *(f"file {i}" for i in range(20)))
    extract("fake", tmp_path / "lanes.zarr", media=media, workers=2, block_size=6, max_failures=1.0)
    monkeypatch.setattr(extraction, "_worker_config", lambda *_: WorkerConfig(("cpu",), 3, 60.0, ahead=True))
    extract("fake", tmp_path / "ahead.zarr", media=media, block_size=6, max_failures=1.0)
    assert contents(tmp_path / "lanes.zarr") == contents(tmp_path / "ahead.zarr")


class OutOfMemory(FakeEncoder):
    """Fits three media at once."""

    largest = 0

    def encode(self, batch):
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.largest = max(self.largest, len(batch))
        return np.stack(batch)


def test_a_batch_that_does_not_fit_is_halved():
    encoder = OutOfMemory()
    batch = [np.full(8, i, np.float32) for i in range(10)]
    rows = encode_batch(encoder, batch)
    assert [row[0] for row in rows] == list(range(10))
    assert encoder.largest == 3


def test_an_encoder_that_returns_another_shape_ends_the_run(fakes, tmp_path, monkeypatch):
    import extraction_fakes

    path = Path(extraction_fakes.__file__)
    path.write_text(path.read_text().replace("return (rows +", "return (rows[:, :4] +"))
    with pytest.raises(WorkFailedError, match=r"FakeEncoder returned \[30, 4\] for a batch of 30; expected \[30, 8\]"):
        extract("fake", tmp_path / "s.zarr", workers=1)
    assert not (tmp_path / "s.zarr").exists()


def test_a_worker_that_cannot_start_ends_the_run_with_a_sentence(fakes, tmp_path):
    import extraction_fakes

    path = Path(extraction_fakes.__file__)
    path.write_text(path.read_text() + "\nif os.sys.argv == ['-c']:\n    os._exit(7)\n")
    with pytest.raises(WorkFailedError, match="the worker ended with exit code 7 4 times over block 0"):
        extract("fake", tmp_path / "s.zarr", workers=1)


def test_a_machine_that_can_start_no_more_processes(fakes, notes, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("feature_extractors.workers.process.subprocess.Popen", refuse)
    with pytest.raises(WorkFailedError, match="a worker process could not be started: .*temporarily unavailable"):
        extract("fake", tmp_path / "s.zarr", workers=2)


def test_a_process_answers_hangs_and_dies(monkeypatch):
    process = Process(echo, 3)
    process.send(2)
    assert process.receive(20) == 6
    process.send(0)
    with pytest.raises(NoAnswer):
        process.receive(0.05)
    process.kill()
    with pytest.raises(ProcessDied, match="was killed by SIGKILL"):
        process.receive(1)
    with pytest.raises(ProcessDied):
        process.send(1)
    process = Process(echo, 3)
    process.send(-1)
    with pytest.raises(ProcessDied, match="ended with exit code 5"):
        process.receive(20)
    with pytest.raises(ProcessDied, match="ended with exit code 5"):
        Process(break_off).receive(20)


@pytest.mark.slow
def test_ray_says_which_block_it_gave_up_and_why(fakes, tmp_path):
    pytest.importorskip("ray", reason="the ray extra is not installed")
    import extraction_fakes
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        fakes(*["x"] * 8, "crash")
        with pytest.raises(WorkFailedError, match=r"block 2 \(items 'item008' to 'item008'\) failed on Ray"):
            extract("fake", tmp_path / "s.zarr", workers=1, block_size=4, engine="ray")
        # What was finished is kept for an engine that can name the culprit.
        assert len(parts(tmp_path / "s.zarr")) == 2
        extract("fake", tmp_path / "s.zarr", workers=1, block_size=4, max_failures=1.0)
        assert failures(tmp_path / "s.zarr") == {"item008": "worker_crash"}
        path = Path(extraction_fakes.__file__)
        path.write_text(path.read_text().replace('"fake-1") +', '"fake-2") +'))
        fakes("x", "y")
        with pytest.raises(WorkFailedError, match="encoder 'fake' is another one on a machine of the cluster"):
            extract("fake", tmp_path / "t.zarr", workers=1, engine="ray")
    finally:
        ray.shutdown()
