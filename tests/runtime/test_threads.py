"""One rule for threads: one, unless more are asked for, whatever the command."""

import os

import pytest
import torch

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runtime import threads


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    monkeypatch.setattr(threads, "_asked", None)
    for name in threads.ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, "1"))


@pytest.mark.parametrize(("said", "expected"), [("", 1), ("3", 3), ("0", 1), ("many", 1)])
def test_the_environment_decides_where_nobody_asked(said, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads.count() == expected


def test_work_takes_what_was_asked_for_and_leaves_torch_as_it_was():
    before = torch.get_num_threads()
    threads.ask(2)
    with threads.limited():
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    with pytest.raises(CalmrlError, match="at least one thread"):
        threads.ask(0)


@pytest.mark.parametrize("place", [0, 2])
def test_every_command_takes_the_option_anywhere(place, cli, small_store):
    words = ["store", "info", str(small_store)]
    words[place:place] = ["--threads", "2"]
    code, _, err = cli(*words)
    assert code == 0, err
    assert threads.count() == 2


@pytest.mark.parametrize("value", ["0", "two", "-1", ""])
def test_what_is_no_number_of_threads_is_refused(value, cli, small_store):
    code, _, err = cli("store", "info", small_store, f"--threads={value}")
    assert code == 2
    assert "at least" in err
