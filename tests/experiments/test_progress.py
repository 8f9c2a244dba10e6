"""Progress of an experiment: a task for all runs, and a part of it for each run under way, moved by its log."""

import json
import os
from types import SimpleNamespace

from calmrl_lab.experiments.progress import last_epoch, watched


def job(folder, name, epochs=4, warm=0):
    path = folder / name
    path.mkdir()
    config = SimpleNamespace(epochs=epochs, warm_up_epochs=warm, warm_up="store" if warm else None)
    return SimpleNamespace(path=path, config=config)


def log(job, epoch, score, end="\n"):
    with open(job.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"epoch": epoch, "validation_mrr": score}) + end)


def test_a_run_under_way_is_a_part_of_the_task_until_it_has_ended(tmp_path):
    first, second, stale = job(tmp_path, "a-s0", warm=2), job(tmp_path, "b-s0"), job(tmp_path, "c-s0")
    log(stale, 3, 0.9)
    os.utime(stale.path / "metrics.jsonl", ns=(1, 1))
    with watched("all", [first, second, stale]) as runs:
        log(first, 2, 0.25)
        runs.look()
        (part,) = runs.task.parts
        assert (part.label, part.done, part.total, part.detail) == ("a-s0", 2, 6, "validation MRR 0.250")
        log(second, 1, 0.1)
        runs.advance(1, "a-s0")
        runs.look()
        assert [part.label for part in runs.task.parts] == ["b-s0"]
        runs.advance(1, "b-s0")
        runs.advance(1, "c-s0")
        assert (runs.task.done, runs.task.total, runs.task.parts) == (3, 3, [])


def test_a_line_that_is_being_written_is_not_read(tmp_path):
    one = job(tmp_path, "a")
    assert last_epoch(one.path) == (0, 0.0)
    log(one, 1, 0.5)
    with open(one.path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "val')
    assert last_epoch(one.path) == (1, 0.5)
