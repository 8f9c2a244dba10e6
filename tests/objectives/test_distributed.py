"""Two processes train every objective as one process does with the same global batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from calmrl_lab.runtime.distributed import Batch, average_gradients, gather, gather_batch, processes, rank, total


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    script = Path(__file__).parent / "two_processes.py"

    def start(index, count, out):
        return subprocess.Popen(
            [sys.executable, str(script), str(index), str(count), str(tmp_path / "store"), str(tmp_path / out)]
        )

    running = [start(0, 1, "alone"), start(0, 2, "first"), start(1, 2, "second")]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    alone, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("alone", "first", "second"))
    assert first.pop("total") == second.pop("total") == 3
    alone.pop("total")
    assert alone.keys() == first.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-9, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


def test_a_process_alone_has_nothing_to_do():
    batch = Batch(torch.ones(2, 3, 4, requires_grad=True), torch.ones(2, 3, dtype=torch.bool))
    assert (processes(), rank()) == (1, 0)
    assert gather_batch(batch, 2) is batch
    assert gather(batch.embeddings) is batch.embeddings
    assert total(batch.mask) is batch.mask
    parameter = torch.nn.Parameter(torch.ones(2))
    average_gradients([parameter])
    assert parameter.grad is None
