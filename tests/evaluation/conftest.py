"""Items that can be reasoned about, and a run trained for a moment on the small store."""

import numpy as np
import pytest
import torch

from calmrl_lab.embedded import Embedded


@pytest.fixture(scope="session")
def trained(small_store, tmp_path_factory):
    """A finished run over the committed store: real features, two epochs."""
    from calmrl_lab.training import train_heads

    folder = tmp_path_factory.mktemp("runs") / "short"
    return train_heads(small_store, objective="calmrl", imputer="ppca", scenario="pairs:0.5", run=folder, epochs=2, dim=32)


@pytest.fixture
def invented():
    """invented(n, noise) -> Embedded: n items of three modalities around a common vector each, one row a modality, complete."""

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
        return Embedded(names, ids, ids, torch.stack(rows, dim=1), mask, tuple(rows), (owner,) * len(rows), labels)

    return make
