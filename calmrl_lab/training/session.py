"""The training loop: heads, imputer and objective over cached features; checkpoints, resume, selection on validation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from calmrl_lab.anchors.gate import Gate
from calmrl_lab.config import TrainConfig
from calmrl_lab.data.table import FeatureBatch, FeatureTable, Table, group_numbers, sampled
from calmrl_lab.data.training_data import open_data
from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.methods.resolve import label
from calmrl_lab.model.alignment_model import AlignmentModel, TrainedObjective
from calmrl_lab.model.encode import encode
from calmrl_lab.model.initialisation import start_model
from calmrl_lab.model.selection import choose_weights, pairs_of_modalities, validation_score
from calmrl_lab.model.signs import best_signs, pair_cosines
from calmrl_lab.model.similarity import Cosine, LikelihoodRatio, Similarity, Sum
from calmrl_lab.model.stacked.fit import FROM_FEATURES, FeatureSimilarities, fit_all, fit_one
from calmrl_lab.model.stacked.stack import said, stack
from calmrl_lab.runs.checkpoint import read_checkpoint, remove_checkpoint, rewind_metrics, write_checkpoint
from calmrl_lab.runs.run import Run
from calmrl_lab.runtime import console
from calmrl_lab.runtime.distributed import Batch, first_says, gather_batch, processes, rank
from calmrl_lab.runtime.progress import progress, tracked
from calmrl_lab.training.gradient_health import saturated, term_gradients
from calmrl_lab.training.online_imputer import OnlineImputer
from calmrl_lab.training.optimiser import NonFiniteStep, StepMetrics, make_optimiser, update
from calmrl_lab.training.requirements import (
    NO_OBJECTIVE,
    check_settings,
    item_ranking,
    make_objective,
    refuse_unaligned,
    refuse_unfilled,
    selected_by,
)
from calmrl_lab.training.watch import Validation, Watch

if TYPE_CHECKING:
    pass

_STATE = (
    "epoch", "step", "best", "best_objective", "skipped_batches", "silent", "heads", "objective", "optimiser", "generator", "objective_generator", "imputer",
)  # fmt: skip
# Items that decide scales and sides of random heads, where not all are in memory.
STARTING_ITEMS = 20_000
# Validation items that choose among starts: every candidate ranks n x n, dozens of times what validation after an epoch takes.
START_VALIDATION_ITEMS = 2_000
# Items by which the signs of modalities are checked every epoch.
SIGN_ITEMS = 2_048
# Validation items that scorers of whole items and weighted sums rank every epoch: they cost more than cosines of pairs.
RANKED_ITEMS = 1_000


class Session:
    """A training run under way: heads, optimiser, imputer, random numbers and the best state so far."""

    def __init__(self, config: TrainConfig, device: torch.device, watch: Watch | None = None) -> None:
        self.config = config
        self.watch = watch or Watch()
        self.started = time.monotonic()
        check_settings(config)
        self.device = device
        with progress("reading features"):
            self.data = open_data(config, str(self.device))
        modalities, self.dims = self.data.train.modalities, dict(self.data.train.dims)
        # Refused before the start is computed; the start decides the dimension.
        tables = [self.data.train, *([] if self.data.warm_up is None else [self.data.warm_up])]
        refuse_unaligned(config, [table.mask for table in tables], modalities)
        item_ranking(config, modalities, make_objective(config, modalities, config.dim))
        shown, self.plain_validation = self.data.shown(STARTING_ITEMS), self.data.validation
        chosen_by = self.plain_validation.sample(START_VALIDATION_ITEMS)
        with progress("start of the heads"):
            self.start = start_model(config, self.data.released, shown, chosen_by)
        with progress("similarities of features"):
            self.of_features = self._of_features(shown, chosen_by)
        self.heads = self.start.heads.to(self.device)
        self.ratio_vectors = self._ratio_vectors()
        # Feature maps do not learn: tables in memory go through them once, streamed ones as they are read.
        with progress("feature maps"):
            self.data = self.data.mapped([one.to(self.device) for one in self.start.feature_maps])
        self.train_table, self.validation_table = self.data.train, self.data.validation
        self.sign_items = self.data.shown(SIGN_ITEMS)
        replay = self._replay()
        self.objective = make_objective(config, modalities, self.heads.dim).to(self.device)
        self.selected_by = selected_by(config)
        self.ranking = item_ranking(config, modalities, self.objective)
        self.ranked_items = self.validation_table.sample(RANKED_ITEMS)
        gate = Gate(config.risk_level) if config.risk_control else None
        self.filler = OnlineImputer(
            config.impute,
            config.impute_options,
            modalities,
            self.validation_table,
            replay,
            gate,
            config.imputer_data != "warm-up",
            config.scale_noise,
        )
        if gate is not None:
            gate.refuse_unless_possible(self.validation_table.mask, config.risk_level, config.store)
        if not bool(self.train_table.mask.all()):
            refuse_unfilled(config)
        self._say_what_nothing_shows(replay)
        self._say_what_is_not_aligned()
        self._say_if_nothing_selects()
        self.parameters = [*self.heads.parameters(), *self.objective.parameters()]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.step = 0
        self.best: dict[str, Any] = {"epoch": -1, "score": -1.0}
        self.best_objective: dict[str, Tensor] = {}
        self.skipped_batches = 0
        self.silent: list[str] = []
        self.compared: Mapping[str, Any] = {}

    @torch.no_grad()
    def _ratio_vectors(self) -> list[Tensor]:
        """What the likelihood ratio of a start by PPCA, which no training changes, compares of the validation items."""
        ratio, table = self.start.likelihood_ratio, self.data.validation
        if ratio is None or self.config.similarity == Cosine.name:
            return []
        ratio = ratio.to(self.device)
        return [ratio.vectors(name, rows, rows) for name, rows in zip(table.modalities, table.first_rows(), strict=True)]

    def _of_features(self, shown: FeatureTable, chosen_by: FeatureTable) -> FeatureSimilarities:
        """What is compared beside, or in place of, trained heads."""
        name = self.config.similarity
        if name == "stacked":
            return fit_all(shown, self.plain_validation, self.start.kernels)
        if name in FROM_FEATURES:
            part, chosen = fit_one(name, shown, chosen_by)
            return FeatureSimilarities({name: part}, chosen={name: chosen})
        return FeatureSimilarities({})

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        # Made when it is needed: the first optimiser of a process takes PyTorch more than a second of imports, and a closed form none.
        return make_optimiser(self.parameters, self.config.learning_rate, self.config.weight_decay)

    def _replay(self) -> list[FeatureTable]:
        """Complete items that stay in the imputer's statistics."""
        if self.data.warm_up is None or self.config.imputer_data == "train":
            return []
        return [self.data.warm_up]

    def _say_what_nothing_shows(self, replay: Sequence[Table]) -> None:
        """A note for every modality that no item of training shows; CalmrlError where an imputer would have to invent it."""
        tables = [self.train_table, *([self.data.warm_up] if self.data.warm_up is not None else [])]
        scenario = f"0 of {len(self.train_table)} items under scenario '{self.config.scenario}'"
        if self.filler.fills:
            tables = [*replay, *([self.train_table] if self.filler.sees_training else [])]
            for name in _unseen(tables)[:1]:
                raise CalmrlError(
                    f"modality '{name}' is never observed in training ({scenario}), so imputer '{self.config.impute}' cannot know it",
                    hint="leave it out with --modalities, add a --warm-up store that has it, or use --impute none --objective pmrl",
                )
        for name in _unseen(tables) if rank() == 0 else []:
            console.note(
                f"modality '{name}' is never observed in training ({scenario}): nothing aligns it, and directions from or to it mean nothing; "
                "leave it out with --modalities, or add a --warm-up store that has it"
            )

    def _say_if_nothing_selects(self) -> None:
        """A note where validation has no query to rank, so that every epoch has score 0."""
        if rank() == 0 and self.ranking is None and next(pairs_of_modalities(self.validation_table), None) is None:
            console.note(
                f"no two validation items (of {len(self.validation_table)}) show the same two modalities, so nothing can be ranked and every epoch "
                "has score 0: the heads stay as they start; a store needs more validation items (--set split_seed=0 draws another split)"
            )

    def _say_what_is_not_aligned(self) -> None:
        """A note on the modalities that an option of the objective leaves out of its alignment."""
        names = self.train_table.modalities
        aligned = getattr(self.objective, "aligned", names)
        left_out = [name for name in names if name not in aligned]
        if left_out and rank() == 0:
            console.note(
                f"objective '{self.config.objective}' aligns {console.listed(aligned)} only (objective_options."
                f"{self.objective.aligned_option}); no term of alignment takes {console.listed(left_out)}"
            )

    def phases(self) -> list[tuple[str, Table]]:
        """One (phase, table) an epoch: the warm-up store first, then the training store; none without an objective."""
        if self.config.objective == NO_OBJECTIVE:
            return []
        warm = [("warm-up", self.data.warm_up)] * self.config.warm_up_epochs if self.data.warm_up is not None else []
        return [*warm, *[("train", self.train_table)] * self.config.epochs]

    @property
    def first_filled(self) -> int:
        """Epochs before gaps are first filled: those of the warm-up and, after it, `impute_from`."""
        return max(len(self.phases()) - self.config.epochs, 0) + self.config.impute_from

    def learn(self, run: Run) -> None:
        """All remaining epochs, then the files of the finished run."""
        config = self.config
        phases = self.phases()
        steps = [max(1, -(-len(table) // config.batch_size)) for _, table in phases]
        total = max(sum(steps), 1)
        first_filled = self.first_filled
        first_train = first_filled - config.impute_from
        if self.epoch == 0:
            self._validate(run, "start")
        with progress(f"training {run.name}", len(phases), "epochs") as task:
            task.advance(self.epoch)
            while self.epoch < len(phases) and self.epoch - max(self.best["epoch"], first_train) < config.patience:
                phase, table = phases[self.epoch]
                logged: dict[str, Any] = {"epoch": self.epoch + 1, "phase": phase}
                fill = self.filler.fills and self.epoch >= first_filled and not bool(table.mask.all())
                since = self.epoch - first_filled
                if fill and (since % config.refresh == 0 if config.refresh else since == 0):
                    first = since == 0
                    rounds = config.first_iterations if first else config.refresh_iterations
                    logged |= self.filler.refresh(self.heads, table, rounds)
                logged |= self._one_epoch(run, table, fill, total)
                self.epoch += 1
                score = self._validate(run, phase, logged)
                if score > self.best["score"]:
                    self._keep_best(score)
                if self.epoch % config.checkpoint_every == 0 or self.epoch == len(phases):
                    self._checkpoint(run)
                task.advance(1, f"validation MRR {score:.3f}")
        self._finish(run)

    def _one_epoch(self, run: Run, table: Table, fill: bool, total: int) -> dict[str, float]:
        config = self.config
        journal = StepMetrics(self.device)
        diagnosed: dict[str, float] = {}
        repeats = self.data.repeats(self.generator) if table is self.train_table else None
        groups = group_numbers(table.group, str(self.device)) if config.exclude_same_group else None
        batches = table.batches(config.batch_size, self.generator, config.batching == "pattern", repeats)
        for features in tracked(batches, f"epoch {self.epoch + 1}", -(-len(table) // config.batch_size), "batches"):
            batch = self._embedded(features, fill, groups)
            if not journal.steps and self.epoch % config.checkpoint_every == 0:
                diagnosed = self._diagnosed(batch)
            terms = self._terms(batch)
            for group in self.optimiser.param_groups:
                group["lr"] = config.learning_rate * self.learning_rate_factor(self.step, total)
            norm = update(terms["loss"], self.optimiser, self.parameters, config.clip_norm)
            self._stop_if(run, table, journal.write(self.step, features.items, terms, norm))
            self.step += 1
        self._stop_if(run, table, journal.look())
        self.skipped_batches += journal.idle()
        return {**diagnosed, **journal.means()}

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        # An objective of another package may know no groups.
        terms: dict[str, Tensor] = self.objective(*batch) if batch.groups is not None else self.objective(*batch[:3])
        if "loss" not in terms or terms["loss"].ndim:
            raise CalmrlError(
                f"objective '{self.config.objective}' gave no scalar called 'loss' (it gave: {', '.join(terms) or 'nothing'})",
                hint="docs/adding/objective.md says what an objective returns",
            )
        return terms

    def _embedded(self, features: FeatureBatch, fill: bool, groups: Tensor | None) -> Batch:
        """The batch as the objective sees it: this process's share embedded and filled, then gathered from all."""
        share = -(-len(features.items) // processes())
        part = slice(rank() * share, (rank() + 1) * share)
        mask = features.mask[part]
        embeddings = self.heads([rows[part] for rows in features.features], mask)
        imputed = self.filler.fill(embeddings, mask, features.host_mask[part]) if fill else None
        if imputed is not None and self.config.impute_as_observed:
            embeddings, mask = _taken_for_observed(embeddings, mask, imputed)
        own = None if groups is None else groups[features.items[part]]
        return gather_batch(Batch(embeddings, mask, imputed, own), len(features.items))

    def _diagnosed(self, batch: Batch) -> dict[str, float]:
        """Whether each term of the loss still teaches, on one batch; said aloud once for a term that does not while others do."""
        found = term_gradients(self.objective, *batch)
        # Without any pull there was no valid term in this batch, and no temperature would help.
        taught = "loss" in found and found["loss"].pull > 0
        for name in saturated(found) if taught else []:
            if name not in self.silent:
                self.silent.append(name)
                console.note(
                    f"step {self.step}: term '{name}' of objective '{self.config.objective}' moves {found[name].alive:.0%} of the items; "
                    "its gradient has died (a larger temperature revives it)"
                )
        measured = {f"alive_{name}": value.alive for name, value in found.items()}
        return measured | {f"pull_{name}": value.pull for name, value in found.items()}

    def learning_rate_factor(self, step: int, total: int) -> float:
        """Linear rise, then linear fall to zero (VAST recipe)."""
        rise = int(self.config.warm_up_share * total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return max(0.0, (total - step) / max(total - rise, 1))

    def _validate(self, run: Run, phase: str, logged: Mapping[str, Any] | None = None) -> float:
        """Score on the validation split (its natural mask) and the line of metrics.jsonl."""
        self.heads.eval()
        self.objective.eval()
        score = first_says(self._validation_score())
        self.heads.train()
        self.objective.train()
        line = dict(logged or {"epoch": 0, "phase": phase})
        if rank() == 0:
            metrics = {**line, "step": self.step, **score}
            run.append(run.METRICS, json.dumps(metrics))
            self.watch.told(Validation(line["epoch"], line["phase"], self.step, metrics, run.path, self.heads))
        if logged is None:
            self._keep_best(score["validation_mrr"])
        return score["validation_mrr"]

    @torch.no_grad()
    def _validation_score(self) -> dict[str, float]:
        """The score by which epochs are chosen, of the heads as they are now with the signs that they would end with."""
        ratio, table = self.start.likelihood_ratio, self.validation_table
        if ratio is not None and self.selected_by == LikelihoodRatio.name:
            return validation_score(ratio, self.ratio_vectors, table)
        bounded = self.ranking is not None or (ratio is not None and self.selected_by == Sum.name)
        table = self.ranked_items if bounded else table
        embeddings = [sign * rows for sign, rows in zip(self._signs(), encode(self.heads, table), strict=True)]
        if self.ranking is not None:
            return self.ranking.score(embeddings, table)
        cosine = Cosine(self.heads.dim)
        if ratio is not None and bounded:
            chosen = sampled(len(self.validation_table), RANKED_ITEMS)
            return choose_weights([(ratio, [rows[chosen] for rows in self.ratio_vectors]), (cosine, embeddings)], table)[1]
        return validation_score(cosine, embeddings, table)

    def _signs(self) -> tuple[int, ...]:
        """The signs that observed pairs of training items ask for: objectives made of singular values cannot tell z from -z.

        Heads that start as published or in closed form, and those that do not learn, keep theirs; so do heads whose objective trains a score that
        would be another one.
        """
        keep = getattr(self.objective, "signs_matter", False)
        if keep or self.config.objective == NO_OBJECTIVE or self.config.init not in ("auto", "random"):
            return (1,) * len(self.dims)
        return best_signs(pair_cosines(encode(self.heads, self.sign_items), self.sign_items.mask))

    def _keep_best(self, score: float) -> None:
        self.best = {
            "epoch": self.epoch,
            "score": score,
            "heads": {key: value.detach().clone() for key, value in self.heads.state_dict().items()},
        }
        self.best_objective = {key: value.detach().clone() for key, value in self.objective.state_dict().items()}

    def _checkpoint(self, run: Run) -> None:
        if rank() > 0:
            return
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "best_objective": self.best_objective,
            "skipped_batches": self.skipped_batches,
            "silent": self.silent,
            "heads": self.heads.state_dict(),
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "objective_generator": _generator_state(self.objective),
            "imputer": {key: torch.from_numpy(np.array(value)) for key, value in self.filler.state().items()},
        }
        write_checkpoint(run, state, self.data.store.digest)

    def restore(self, run: Run) -> None:
        """Go on from the checkpoint of `run`; a run without one starts at the beginning."""
        state = read_checkpoint(run, _STATE, self.data.store.digest, self.device)
        if rank() == 0:
            rewind_metrics(run, state)
        if state is None:
            return
        self.epoch, self.step = state["epoch"], state["step"]
        self.best, self.best_objective = state["best"], state["best_objective"]
        self.skipped_batches, self.silent = state["skipped_batches"], state["silent"]
        self.heads.load_state_dict(state["heads"])
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"].cpu())
        if state["objective_generator"] is not None:
            generator = self.objective.generator
            assert isinstance(generator, torch.Generator)
            generator.set_state(state["objective_generator"].cpu())
        if state["imputer"]:
            self.filler.load({key: value.cpu().numpy() for key, value in state["imputer"].items()})

    def _stop_if(self, run: Run, table: Table, broken: NonFiniteStep | None) -> None:
        if broken is None:
            return
        ids = table.ids[broken.items.cpu().numpy()]
        shown = ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise WorkFailedError(
            f"run '{run.path}': the loss or its gradient is not finite at step {broken.step} (epoch {self.epoch + 1}, term {', '.join(broken.terms)}; items {shown})",
            hint="the last checkpoint is kept; a smaller --set learning_rate or a larger temperature usually helps",
        )

    def _finish(self, run: Run) -> None:
        config = self.config
        self.heads.load_state_dict(self.best["heads"])
        self.heads.eval()
        signs = self._signs()
        self.heads.change_signs(signs)
        # Parameters that are fitted once fit no heads of an epoch before that.
        frozen = config.refresh == 0 and self.best["epoch"] >= self.first_filled
        if frozen:
            self.filler.mirror(signs)
        elif config.refresh == 0 or -1 in signs:
            self.filler.forget()
        self.objective.load_state_dict(self.best_objective)
        noise_scale, gate, imputer = 1.0, None, None
        leads = rank() == 0
        # The imputer that goes with the heads that are kept, not with those of the last epoch.
        if self.filler.fills and not bool(self.train_table.mask.all()):
            refit = (
                self.filler.settle
                if frozen and self.filler.imputer.fitted
                else partial(self.filler.refresh, iterations=config.first_iterations)
            )
            logged = refit(self.heads, self.train_table)
            noise_scale = logged.get("imputer_noise_scale", 1.0)
            imputer = self.filler.noise_scaled
            if self.filler.gate is not None:
                gate = {"level": config.risk_level, "threshold": self.filler.gate.threshold}
                gate |= {"held_out_harm": logged["gate_held_out_harm"], **self.filler.gated(self.heads, self.train_table)}
        if not leads:
            return
        similarity, alternatives, score = self._similarities()
        objective = TrainedObjective.of(config.objective, config.objective_options, self.objective)
        AlignmentModel(
            self.dims, self.start.feature_maps, self.heads, similarity, alternatives, imputer, objective
        ).save(run)  # fmt: skip
        mask = self.train_table.mask
        summary = {
            "name": run.name,
            "method": label(config),
            "objective": config.objective,
            "imputer": config.impute,
            "scenario": config.scenario,
            "seed": config.seed,
            "store": {"path": str(config.store), "dataset": self.data.store.dataset, "digest": self.data.store.digest},
            "modalities": list(self.train_table.modalities),
            "dim": self.heads.dim,
            "start": self.start.chosen,
            "epochs": self.epoch,
            "best_epoch": self.best["epoch"],
            "selected_by": self.selected_by,
            "validation_mrr": score,
            "cosine_weight": similarity.parts[1][1] if config.similarity == "sum" and isinstance(similarity, Sum) else None,
            "similarity": dict(self.compared) or None,
            "silent_terms": self.silent,
            "imputer_noise_scale": noise_scale,
            "gate": gate,
            "processes": processes(),
            "seconds": round(time.monotonic() - self.started, 2),
            "counts": {
                "train_items": len(self.train_table),
                "complete": int(mask.all(dim=1).sum()),
                "skipped_batches": self.skipped_batches,
                "observed": {m: int(mask[:, j].sum()) for j, m in enumerate(self.train_table.modalities)},
                "validation_items": len(self.validation_table),
            },
        }
        if self.step and self.skipped_batches == self.step:
            console.note(
                f"objective '{config.objective}' had nothing to teach in any of {self.step} batches (no item shows what a term of it needs, "
                "or no term has a gradient left): the heads are as they started"
            )
        run.append(run.LOG, f"finished after {self.epoch} epochs, best at {self.best['epoch']}")
        run.finish(summary)
        # After the summary: until then the run can be resumed.
        if not config.keep_state:
            remove_checkpoint(run)

    def _similarities(self) -> tuple[Similarity, tuple[Similarity, ...], float]:
        """How the trained model compares, how it could compare otherwise, and its validation score."""
        ratio, cosine, score = self.start.likelihood_ratio, Cosine(self.heads.dim), self.best["score"]
        if self.config.similarity in FROM_FEATURES:
            part, features = self.of_features.parts[self.config.similarity], self.plain_validation.first_rows()
            rows = zip(self.plain_validation.modalities, features, strict=True)
            found = validation_score(part, [part.vectors(name, own, own) for name, own in rows], self.plain_validation)
            self.compared = {"parts": self.of_features.chosen, **found}
            return part, (), found["validation_mrr"]
        if self.config.similarity == "stacked":
            parts: dict[str, Similarity] = {"trained-cosine": cosine}
            if ratio is not None:
                parts[ratio.name] = ratio
            parts |= self.of_features.parts
            embeddings = encode(self.heads, self.validation_table)
            with progress("weights of the similarities"):
                total, record = stack(parts, self.plain_validation, embeddings, self.of_features.groups)
            self.compared = {"parts": dict(self.of_features.chosen), **record}
            console.note(f"pairs are compared by (shares of the sum): {said(record)}")
            return total, () if ratio is None else (ratio,), record["validation_mrr"]
        if ratio is None:
            return cosine, (), score
        if self.config.similarity == Cosine.name:
            return cosine, (ratio,), score
        if self.config.similarity == LikelihoodRatio.name:
            return ratio, (), score
        embeddings = encode(self.heads, self.validation_table)
        weights, found = choose_weights([(ratio, self.ratio_vectors), (cosine, embeddings)], self.validation_table)
        return Sum(tuple(zip((ratio, cosine), weights, strict=True))), (), found["validation_mrr"]


def _taken_for_observed(embeddings: Tensor, mask: Tensor, imputed: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and mask with the gaps filled; entries that a gate left NaN stay gaps."""
    known = ~imputed.isnan().any(dim=2)
    filled = normalize(imputed.nan_to_num(), dim=2, eps=1e-12)
    return torch.where(mask.unsqueeze(2), embeddings, filled), mask | known


def _generator_state(objective: torch.nn.Module) -> Tensor | None:
    generator = getattr(objective, "generator", None)
    return generator.get_state() if generator is not None else None


def _unseen(tables: Sequence[Table]) -> list[str]:
    """Modalities that no item of any of the tables shows."""
    shown = torch.stack([table.mask.any(dim=0) for table in tables]).any(dim=0).tolist()
    return [name for name, seen in zip(tables[0].modalities, shown, strict=True) if not seen]
