"""Run directories: what a training run was asked, what it learned, where it ran; written so that half a run is never taken for a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from calmrl_lab.errors import CalmrlError
from calmrl_lab.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from calmrl_lab.model.alignment_model import AlignmentModel
    from calmrl_lab.model.joined import AnyHeads
    from calmrl_lab.ppca.latent_maps import LatentMaps

HEADS = f"{RunFolder.MODEL}/heads.safetensors"
LATENT = f"{RunFolder.MODEL}/latent.safetensors"
OBJECTIVE = f"{RunFolder.MODEL}/objective.safetensors"
IMPUTER = f"{RunFolder.MODEL}/imputer.safetensors"


class Run(RunFolder):
    """One run: its folder, and what it learned."""

    def model(self) -> AlignmentModel:
        """What this run learned, on the CPU."""
        from dataclasses import replace

        from calmrl_lab.model.alignment_model import AlignmentModel, TrainedObjective
        from calmrl_lab.model.feature_map import identities
        from calmrl_lab.model.similarity import Cosine, LikelihoodRatio, Similarity, Sum

        config, heads = self.config, self.load_heads()
        similarity: Similarity = Cosine(heads.dim)
        alternatives: tuple[Similarity, ...] = ()
        if self.has_latent():
            latent = self.load_latent()
            ratio = LikelihoodRatio(replace(latent, kernels=None), latent.kernels or identities(list(heads.dims.values())))
            weight = float(self.summary.get("cosine_weight") or 0.0)
            if config.score == "cosine":
                alternatives = (ratio,)
            else:
                similarity = ratio if config.score == "overlap" else Sum(((ratio, 1.0), (similarity, weight)))
        imputer, objective = None, None
        if self.has(IMPUTER):
            imputer = self.load_imputer()
            imputer.modalities = heads.modalities
        if self.has(OBJECTIVE):
            tensors, _ = self.read_tensors(OBJECTIVE)
            objective = TrainedObjective(config.objective, config.objective_options, tensors)
        maps = identities(list(heads.dims.values()))
        return AlignmentModel(heads.dims, maps, heads, similarity, alternatives, imputer, objective)

    def save_heads(self, heads: AnyHeads) -> None:
        """heads.safetensors: the projection heads, with the shape of the module in the metadata."""
        from calmrl_lab.model.joined import JoinedHeads

        shape: dict[str, Any] = {"kind": heads.kind, "dim": heads.dim, "dims": heads.dims}
        if isinstance(heads, JoinedHeads):
            shape["parts"] = [[part.dim, part.kind] for part in heads.heads()]
        # One entry: safetensors writes several in an order of its own, and equal heads would have different bytes.
        metadata = {"heads": json.dumps(shape)}
        self.write_tensors(HEADS, {k: v.cpu().numpy() for k, v in heads.state_dict().items()}, metadata)

    def load_heads(self) -> AnyHeads:
        """The heads of this run, on the CPU."""
        import torch

        from calmrl_lab.linalg.kernel_pca import read_kernels
        from calmrl_lab.model.joined import JoinedHeads
        from calmrl_lab.model.projection import Heads

        tensors, metadata = self.read_tensors(HEADS)
        if "heads" not in metadata:
            raise CalmrlError(f"'{self.path / HEADS}' does not say which heads it holds: no run wrote it")
        shape = json.loads(metadata["heads"])
        state = {key: torch.from_numpy(value) for key, value in tensors.items()}

        def empty(dim: int, kind: str, place: str = "") -> Heads:
            kernels = read_kernels(state, [f"{place}kernel_{index}_" for index in range(len(shape["dims"]))])
            return Heads(shape["dims"], dim, kind, kernels=kernels)

        heads: AnyHeads
        if shape["kind"] == "joined":
            parts = [empty(dim, kind, f"parts.{number}.") for number, (dim, kind) in enumerate(shape["parts"])]
            heads = JoinedHeads(parts, [1.0] * len(parts))
        else:
            heads = empty(shape["dim"], shape["kind"])
        heads.load_state_dict(state)
        return heads.eval()

    def save_latent(self, maps: LatentMaps) -> None:
        """latent.safetensors: the PPCA of the features that the heads started from."""
        self.write_tensors(LATENT, maps.state(), {"modalities": json.dumps(maps.modalities)})

    def has_latent(self) -> bool:
        """Whether the heads of this run started from PPCA of the features."""
        return self.has(LATENT)

    def require_latent(self) -> None:
        """CalmrlError if the heads started from something else than PPCA of the features."""
        if not self.has_latent():
            raise CalmrlError(
                f"run '{self.path}' has no PPCA of its features, which score 'overlap' needs", hint="train with --init ppca"
            )

    def load_latent(self) -> LatentMaps:
        """The PPCA of the features that the heads started from; CalmrlError if they started from something else."""
        from calmrl_lab.ppca.latent_maps import LatentMaps

        self.require_latent()
        tensors, metadata = self.read_tensors(LATENT)
        return LatentMaps.from_state(tensors, json.loads(metadata["modalities"]))

    def save_objective(self, objective: nn.Module) -> None:
        """objective.safetensors: what the objective learned beside the heads (temperatures, fusion heads), if anything."""
        state = {key: value.detach().cpu() for key, value in objective.state_dict().items() if hasattr(value, "detach")}
        # NumPy has no bfloat16.
        state = {key: (value.float() if value.is_floating_point() else value).numpy() for key, value in state.items()}
        if state:
            self.write_tensors(OBJECTIVE, state, {"objective": self.config.objective})

    def load_objective(self) -> nn.Module:
        """The objective of this run as it was trained, on the CPU; CalmrlError if it learned nothing that was kept."""
        import torch

        from calmrl_lab.objectives import objectives

        if not self.has(OBJECTIVE):
            raise CalmrlError(
                f"run '{self.path}' kept no trained objective", hint="train it again, with an objective that learns"
            )
        tensors, _ = self.read_tensors(OBJECTIVE)
        heads, config = self.load_heads(), self.config
        objective: nn.Module = objectives.get(config.objective)(heads.modalities, heads.dim, **config.objective_options)
        shapes = {key: value.shape for key, value in objective.state_dict().items()}
        try:
            # A file of arrays knows no scalars.
            objective.load_state_dict({key: torch.from_numpy(value).reshape(shapes[key]) for key, value in tensors.items()})
        except (KeyError, RuntimeError):
            raise CalmrlError(
                f"'{self.path / OBJECTIVE}' is not of objective '{config.objective}' as it is here",
                hint="train the run again",
            ) from None
        return objective.eval()

    def save_imputer(self, name: str, state: Mapping[str, np.ndarray]) -> None:
        """imputer.safetensors: the parameters of a fitted imputer that has any."""
        self.write_tensors(IMPUTER, state, {"imputer": name})

    def load_imputer(self) -> Any:
        """The fitted imputer of this run; CalmrlError if it kept none."""
        from calmrl_lab.imputers import imputers

        tensors, metadata = self.read_tensors(IMPUTER)
        return imputers.get(metadata["imputer"]).from_state(tensors)
