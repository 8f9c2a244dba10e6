"""The parts of a stacked similarity that features alone decide, fitted to training items and chosen on validation items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calmrl_lab.data.table import FeatureTable
from calmrl_lab.errors import CalmrlError
from calmrl_lab.linalg.kernel_pca import KernelPCA
from calmrl_lab.model.closed_form import require_two
from calmrl_lab.model.feature_map import UnitNorm
from calmrl_lab.model.similarity import LikelihoodRatio, Similarity
from calmrl_lab.model.stacked.canonical_cosine import CanonicalCosine, fit_canonical_cosine, fit_kernel_canonical_cosine
from calmrl_lab.model.stacked.shared_space import feature_cosine, fit_shared_space, shared_groups

SHARED_SPACE = "shared-space"
KERNEL_CANONICAL = "kernel-canonical-cosine"
FROM_FEATURES = (CanonicalCosine.name, SHARED_SPACE)


@dataclass(frozen=True)
class FeatureSimilarities:
    """Similarities by name that no training changes, the groups of modalities that share a feature space, and what was chosen for each part."""

    parts: Mapping[str, Similarity]
    groups: tuple[tuple[int, ...], ...] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)


def fit_all(table: FeatureTable, validation: FeatureTable, kernels: Sequence[KernelPCA] = ()) -> FeatureSimilarities:
    """The canonical cosine, that of the kernel principal components that `kernels`, if there are any, make of the features, and, if modalities
    share a feature space, the cosine of their features, the same about the mean of each modality, and the likelihood ratio of the two-covariance
    model.

    `table` are training items as their scenario shows them. Raises CalmrlError for a modality with fewer than two training items.
    """
    table, validation = table.on("cpu"), validation.on("cpu")
    require_two(table, "similarities of features need", "--similarity cosine")
    groups = tuple(shared_groups(table, validation))
    canonical, chosen = fit_canonical_cosine(table, validation)
    parts: dict[str, Similarity] = {CanonicalCosine.name: canonical}
    record: dict[str, Any] = {CanonicalCosine.name: chosen}
    if kernels:
        kernels = [one.to("cpu") for one in kernels]
        parts[KERNEL_CANONICAL], record[KERNEL_CANONICAL] = fit_kernel_canonical_cosine(table, validation, kernels)
    if groups:
        parts |= {
            "feature-cosine": feature_cosine(table, groups, centred=False),
            "centred-feature-cosine": feature_cosine(table, groups, centred=True),
        }
        parts[SHARED_SPACE], record[SHARED_SPACE] = _shared_space(table, validation, groups)
    return FeatureSimilarities(parts, groups, record)


def fit_one(name: str, table: FeatureTable, validation: FeatureTable) -> tuple[Similarity, Any]:
    """One of `FROM_FEATURES`, and what was chosen for it.

    Raises CalmrlError for a modality with fewer than two training items, and for a shared space where no modalities share one.
    """
    table, validation = table.on("cpu"), validation.on("cpu")
    require_two(table, f"similarity '{name}' needs", "--similarity cosine")
    if name == CanonicalCosine.name:
        return fit_canonical_cosine(table, validation)
    groups = tuple(shared_groups(table, validation))
    if not groups:
        raise CalmrlError(
            f"no two of the modalities {', '.join(table.modalities)} share a feature space: none have features of one dimension whose cosine "
            "finds the match of validation items better than chance",
            hint="use --method recommended, which needs no shared space",
        )
    return _shared_space(table, validation, groups)


def _shared_space(
    table: FeatureTable, validation: FeatureTable, groups: tuple[tuple[int, ...], ...]
) -> tuple[LikelihoodRatio, list[dict[str, Any]]]:
    space = fit_shared_space(table, validation, groups)
    return LikelihoodRatio(space.latent, tuple(UnitNorm(rows.shape[1]) for rows in table.rows)), list(space.chosen)
