"""A worker process that dies takes no other run with it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from calmrl_lab.experiments.job import Job
from calmrl_lab.experiments.process_pool import outcomes_here

WORK = """
    import os, signal, time
    from calmrl_lab.errors import CalmrlError

    def work(job):
        with open(job.path.with_suffix(".log"), "a") as file:
            file.write("started\\n")
        if job.label == "kill":
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        if job.label == "kill once" and not job.path.exists():
            job.path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if job.label == "wait":
            time.sleep(600)
        return {} if job.label != "fail" else {"run": job.path.name, "label": job.label, "error": "as asked"}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    (site / "dying_work.py").write_text(textwrap.dedent(WORK))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    import dying_work

    return dying_work.work


def run(folder, labels, workers, work):
    jobs = [Job(folder / f"{number}", None, label, None) for number, label in enumerate(labels)]
    return {int(job.path.name): outcome for job, outcome in outcomes_here(jobs, workers, threading.Event(), work)}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_only_the_run_that_kills_its_worker_fails(tmp_path, work, workers):
    found = run(tmp_path, ["fine", "kill", "fine", "fail", "fine", "kill", "fine"], workers, work)
    assert sorted(found) == list(range(7))
    assert {number for number, outcome in found.items() if outcome} == {1, 3, 5}
    assert found[1]["error"] == "the worker died: it was killed, or ran out of memory"
    assert found[3]["error"] == "as asked"


@pytest.mark.slow
def test_a_run_whose_worker_died_by_chance_is_made_again(tmp_path, work):
    found = run(tmp_path, ["kill once", "fine"], 1, work)
    assert found == {0: {}, 1: {}}
    assert Path(tmp_path / "0.log").read_text().count("started") == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells the session of a process")
@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0])
def test_workers_end_with_a_parent_that_is_killed_while_they_start(tmp_path, work, delay):
    """`delay`: seconds between the first sign of a worker and the end of its parent."""
    code = (
        "import sys, threading; from pathlib import Path\n"
        "from calmrl_lab.experiments.job import Job; from calmrl_lab.experiments.process_pool import outcomes_here\n"
        "from dying_work import work\n"
        "jobs = [Job(Path(sys.argv[1]) / str(n), None, 'wait', None) for n in range(4)]\n"
        "list(outcomes_here(jobs, 2, threading.Event(), work))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True)

    def others():
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == parent.pid and int(path.parent.name) != parent.pid and fields[0] != "Z":
                    found.append(int(path.parent.name))
        return found

    def until(what):
        for _ in range(1200):
            if what():
                return True
            time.sleep(0.05)
        return False

    try:
        assert until(others)
        time.sleep(delay)
    finally:
        parent.kill()
        parent.wait()
    ended = until(lambda: not others())
    for left in others():
        os.kill(left, signal.SIGKILL)
    assert ended
