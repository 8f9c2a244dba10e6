"""Fixtures that all rooms share."""

import sys
from pathlib import Path

import pytest

# Test helpers live beside the tests and are imported by spawned workers too.
sys.path.insert(0, str(Path(__file__).parent))

SMALL_STORE = Path(__file__).parent / "data" / "openmoji-small.zarr"


@pytest.fixture(scope="session")
def small_store() -> Path:
    """The committed store: real features of a few hundred emoji."""
    return SMALL_STORE


@pytest.fixture
def cli(monkeypatch, capfd):
    """Run the real command line in this process: cli("store", "info", path) -> (exit code, stdout, stderr)."""
    from calmrl_lab.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["calmrl-lab", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def trained(small_store, tmp_path_factory):
    """A finished run over the committed store: real features, two epochs."""
    from calmrl_lab.training.train import train_heads

    folder = tmp_path_factory.mktemp("runs") / "short"
    return train_heads(small_store, method="calmrl", scenario="pairs:0.5", run=folder, epochs=2, dim=32)


@pytest.fixture
def invented():
    """invented(n, noise) -> Embeddings: n items of three modalities around a common vector each, one row per modality, complete."""

    import numpy as np
    import torch

    from calmrl_lab.model.embeddings import Embeddings

    def make(n=60, noise=(0.2, 0.6, 1.2), dim=16, seed=0, classes=4):
        generator = torch.Generator().manual_seed(seed)
        kind = torch.arange(n) % classes
        centres = torch.randn(classes, dim, generator=generator)
        centre = centres[kind] + torch.randn(n, dim, generator=generator)
        rows = [
            torch.nn.functional.normalize(centre + scale * dim**0.5 * torch.randn(n, dim, generator=generator) / 2, dim=1)
            for scale in noise
        ]
        names = tuple("abcdef"[: len(noise)])
        owner = torch.arange(n)
        ids = np.array([f"i{j}" for j in range(n)])
        labels = {"kind": np.array([f"class {k}" for k in kind.tolist()])}
        mask = torch.ones(n, len(noise), dtype=torch.bool)
        return Embeddings(names, ids, ids, torch.stack(rows, dim=1), mask, tuple(rows), (owner,) * len(rows), labels)

    return make


@pytest.fixture
def stop_training():
    """stop_training(config, folder, epoch): trains and is interrupted before that epoch, so that what is left can be resumed."""

    def stop(asked, folder, epoch):
        from calmrl_lab.training.session import Session
        from calmrl_lab.training.train import train

        original = Session._one_epoch

        def dies(self, *arguments):
            if self.epoch == epoch:
                raise KeyboardInterrupt
            return original(self, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Session, "_one_epoch", dies)
            with pytest.raises(KeyboardInterrupt):
                train(asked, folder)

    return stop
