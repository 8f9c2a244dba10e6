"""The training loop: heads, imputer and objective over cached features; checkpoints, resume, selection on validation."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from calmrl_lab import console
from calmrl_lab.batches import FeatureTable, load_table
from calmrl_lab.config import TrainConfig, build
from calmrl_lab.devices import resolve
from calmrl_lab.errors import CalmrlError, WorkFailedError
from calmrl_lab.filling import Filler, encode
from calmrl_lab.gating import Gate
from calmrl_lab.missingness import apply_scenario
from calmrl_lab.objectives import objectives
from calmrl_lab.runs import Run, write_atomically
from calmrl_lab.starting import start_heads
from calmrl_lab.validation import validation_score

if TYPE_CHECKING:
    from calmrl_lab.store import FeatureStore


def train_heads(
    store: FeatureStore | str | Path,
    objective: str = "calmrl",
    imputer: Any = "ppca",
    scenario: str = "full",
    seed: int = 0,
    run: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train projection heads over the cached features of `store` and return the finished run.

    `imputer` is a name, or an unfitted imputer such as `PPCA(latent_dim=32)`, whose options are taken over. `run` is the run
    directory (default: runs/<objective>-<imputer>-<scenario>-s<seed>). `settings` are the other fields of `TrainConfig`.
    Raises CalmrlError for a request that makes no sense, before anything is written.
    """
    options = dict(settings.pop("impute_options", {}))
    if not isinstance(imputer, str):
        options = {**imputer.options(), **options}
        imputer = imputer.name
    path = getattr(store, "path", store)
    values = {"store": str(path), "objective": objective, "impute": imputer, "scenario": scenario, "seed": seed, **settings}
    if options:
        values["impute_options"] = options
    config = build(TrainConfig, values, "train_heads")
    return train(config, Path(run) if run else default_run_path(config))


def default_run_path(config: TrainConfig) -> Path:
    """runs/<objective>-<imputer>-<scenario>-s<seed>, with characters a file system may refuse replaced."""
    name = "-".join([config.objective, config.impute, config.scenario, f"s{config.seed}"])
    return Path("runs") / "".join(c if c.isalnum() or c in "-_.+@" else "_" for c in name)


def train(config: TrainConfig, path: Path, resume: bool = False) -> Run:
    """Run `config` into the directory `path`; with `resume`, go on from its last checkpoint."""
    session = _Session(config)
    if resume:
        run = Run.open(path)
        session.restore(run)
    else:
        run = Run.create(path, config)
    session.learn(run)
    return run


class _Session:
    """Everything that moves during one run."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.started = time.monotonic()
        self.device = resolve(config.device)
        self.store, full = _open(config.store, config, str(self.device))
        split = splits_of(self.store, config)
        self.train_table = training_items(full, split, config)
        self.validation_table = full.select(np.flatnonzero(split == "validation"))
        self.warm_up_table = None
        replay = []
        if config.warm_up:
            warm_store, warm = _open(config.warm_up, config, str(self.device), full.modalities)
            if warm.dims != full.dims:
                raise CalmrlError(
                    f"warm-up store '{config.warm_up}' has dimensions {warm.dims}, the training store has {full.dims}"
                )
            complete = (splits_of(warm_store, config) == "train") & warm.mask.all(dim=1).cpu().numpy()
            if not complete.any():
                raise CalmrlError(f"warm-up store '{config.warm_up}' has no complete training item")
            self.warm_up_table = warm.select(np.flatnonzero(complete))
            replay.append(self.warm_up_table)

        self.heads = start_heads(config, self.store, self.train_table).to(self.device)
        self.objective = self._objective(full.modalities)
        gate = Gate(config.gate_level) if config.gate else None
        self.filler = Filler(config.impute, config.impute_options, full.modalities, self.validation_table, replay, gate)
        if gate is not None:
            gate.refuse_unless_possible(self.validation_table.mask, config.gate_level, config.store)
        if config.objective == "calmrl" and not self.filler.fills and not bool(self.train_table.mask.all()):
            raise CalmrlError(
                f"objective 'calmrl' needs the gaps filled, and imputer '{config.impute}' fills none",
                hint="use --impute ppca (or mean, random), or --objective pmrl",
            )
        if self.filler.fills:
            self._refuse_what_nothing_shows(replay)
        self.parameters = [*self.heads.parameters(), *self.objective.parameters()]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.step = 0
        self.best: dict[str, Any] = {"epoch": -1, "score": -1.0}

    def _refuse_what_nothing_shows(self, replay: Sequence[FeatureTable]) -> None:
        shown = torch.cat([table.mask for table in (*replay, self.train_table)]).any(dim=0)
        unseen = [name for name, seen in zip(self.train_table.modalities, shown.tolist(), strict=True) if not seen]
        if unseen:
            raise CalmrlError(
                f"modality '{unseen[0]}' is never observed in training (0 of {len(self.train_table)} items under scenario "
                f"'{self.config.scenario}'), so imputer '{self.config.impute}' cannot know it",
                hint="leave it out with --modalities, add a --warm-up store that has it, or use --impute none --objective pmrl",
            )

    def _objective(self, modalities: tuple[str, ...]) -> torch.nn.Module:
        config = self.config
        try:
            objective = objectives.get(config.objective)(modalities, self.heads.dim, **config.objective_options)
        except TypeError as error:
            raise CalmrlError(f"objective '{config.objective}': {error}", hint="see calmrl-lab list objectives") from None
        return objective.to(self.device)

    def phases(self) -> list[tuple[str, FeatureTable]]:
        """One (phase, table) an epoch: the warm-up store first, then the training store."""
        warm = [("warm-up", self.warm_up_table)] * self.config.warm_up_epochs if self.warm_up_table is not None else []
        return [*warm, *[("train", self.train_table)] * self.config.epochs]

    def learn(self, run: Run) -> None:
        """All remaining epochs, then the files of the finished run."""
        config = self.config
        phases = self.phases()
        steps = [max(1, -(-len(table) // config.batch_size)) for _, table in phases]
        total = max(sum(steps), 1)
        first_train = len(phases) - config.epochs
        if self.epoch == 0:
            self._validate(run, "start")
        with console.progress(f"training {run.name}", len(phases)) as ticker:
            ticker.advance(self.epoch)
            while self.epoch < len(phases) and self.epoch - max(self.best["epoch"], first_train) < config.patience:
                phase, table = phases[self.epoch]
                logged: dict[str, Any] = {"epoch": self.epoch + 1, "phase": phase}
                fill = self.filler.fills and self.epoch >= first_train + config.impute_from and not bool(table.mask.all())
                if fill and (self.epoch - first_train - config.impute_from) % config.refresh == 0:
                    first = self.epoch == first_train + config.impute_from
                    rounds = config.first_iterations if first else config.refresh_iterations
                    logged |= self.filler.refresh(self.heads, table, rounds)
                logged |= self._one_epoch(run, table, fill, total)
                self.epoch += 1
                score = self._validate(run, phase, logged)
                if score > self.best["score"]:
                    self._keep_best(score)
                if self.epoch % config.checkpoint_every == 0 or self.epoch == len(phases):
                    self._checkpoint(run)
                ticker.advance(1, f"validation MRR {score:.3f}")
        self._finish(run)

    def _one_epoch(self, run: Run, table: FeatureTable, fill: bool, total: int) -> dict[str, float]:
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=self.device))
        count = 0
        for items in table.batches(self.config.batch_size, self.generator):
            mask = table.mask[items]
            embeddings = self.heads(table.gather(items, self.generator), mask)
            imputed = self.filler.fill(embeddings, mask) if fill else None
            terms = self.objective(embeddings, mask, imputed)
            loss = terms["loss"]
            if not bool(torch.isfinite(loss.detach())):
                self._not_finite(run, terms, table.ids[items.cpu().numpy()])
            self.optimiser.zero_grad(set_to_none=True)
            if loss.requires_grad:
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
                for group in self.optimiser.param_groups:
                    group["lr"] = self.config.learning_rate * self._pace(self.step, total)
                self.optimiser.step()
            self.step += 1
            count += 1
            for name, value in terms.items():
                sums[name] += value.detach().double()
        return {name: float(value) / max(count, 1) for name, value in sums.items()}

    def _pace(self, step: int, total: int) -> float:
        """Linear rise, then linear fall to zero (VAST recipe)."""
        rise = int(self.config.warm_up_share * total)
        if step < rise:
            return (step + 1) / (rise + 1)
        return max(0.0, (total - step) / max(total - rise, 1))

    def _validate(self, run: Run, phase: str, logged: Mapping[str, Any] | None = None) -> float:
        """Score on the validation split (its natural mask) and the line of metrics.jsonl."""
        self.heads.eval()
        score = validation_score(encode(self.heads, self.validation_table), self.validation_table)
        self.heads.train()
        line = dict(logged or {"epoch": 0, "phase": phase})
        run.append("metrics.jsonl", json.dumps({**line, "step": self.step, **score}))
        if logged is None:
            self._keep_best(score["validation_mrr"])
        return score["validation_mrr"]

    def _keep_best(self, score: float) -> None:
        self.best = {
            "epoch": self.epoch,
            "score": score,
            "heads": {key: value.detach().clone() for key, value in self.heads.state_dict().items()},
        }

    def _checkpoint(self, run: Run) -> None:
        import io

        state = {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "heads": self.heads.state_dict(),
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "objective_generator": _generator_state(self.objective),
            "imputer": {key: torch.from_numpy(np.array(value)) for key, value in self.filler.state().items()},
            "metrics_lines": self.epoch + 1,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(run.path / "state.pt", buffer.getvalue())

    def restore(self, run: Run) -> None:
        """Go on from state.pt; a run without one starts at the beginning. Nothing in the file is executed."""
        path = run.path / "state.pt"
        if not path.exists():
            (run.path / "metrics.jsonl").unlink(missing_ok=True)
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged or hostile file
            raise CalmrlError(
                f"checkpoint '{path}' cannot be read: {str(error).splitlines()[0]}", hint="train the run again"
            ) from None
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
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
        lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[: state["metrics_lines"]]
        write_atomically(run.path / "metrics.jsonl", ("\n".join(lines) + "\n").encode())

    def _not_finite(self, run: Run, terms: Mapping[str, Tensor], ids: np.ndarray) -> None:
        broken = [name for name, value in terms.items() if not bool(torch.isfinite(value.detach()))]
        shown = ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise WorkFailedError(
            f"run '{run.path}': the loss is not finite at step {self.step} (epoch {self.epoch + 1}, term {', '.join(broken)}; items {shown})",
            hint="the last checkpoint is kept; a smaller --set learning_rate or a larger temperature usually helps",
        )

    def _finish(self, run: Run) -> None:
        config = self.config
        self.heads.load_state_dict(self.best["heads"])
        self.heads.eval()
        noise_scale, gate = 1.0, None
        # The imputer that goes with the heads that are kept, not with those of the last epoch.
        if self.filler.fills and not bool(self.train_table.mask.all()):
            logged = self.filler.refresh(self.heads, self.train_table, config.first_iterations)
            noise_scale = logged.get("imputer_noise_scale", 1.0)
            run.save_imputer(config.impute, self.filler.tempered.state())
            if self.filler.gate is not None:
                gate = {"level": config.gate_level, "threshold": self.filler.gate.threshold}
                gate |= {"held_out_harm": logged["gate_held_out_harm"], **self.filler.gated(self.heads, self.train_table)}
        run.save_heads(self.heads)
        mask = self.train_table.mask
        summary = {
            "name": run.name,
            "method": f"{config.objective}+{config.impute}" if self.filler.fills else config.objective,
            "objective": config.objective,
            "imputer": config.impute,
            "scenario": config.scenario,
            "seed": config.seed,
            "store": {"path": str(config.store), "dataset": self.store.dataset, "digest": self.store.digest},
            "modalities": list(self.train_table.modalities),
            "dim": self.heads.dim,
            "epochs": self.epoch,
            "best_epoch": self.best["epoch"],
            "validation_mrr": self.best["score"],
            "imputer_noise_scale": noise_scale,
            "gate": gate,
            "seconds": round(time.monotonic() - self.started, 2),
            "counts": {
                "train_items": len(self.train_table),
                "complete": int(mask.all(dim=1).sum()),
                "observed": {m: int(mask[:, j].sum()) for j, m in enumerate(self.train_table.modalities)},
                "validation_items": len(self.validation_table),
            },
        }
        run.write_json("summary.json", summary)
        run.append("log.txt", f"finished after {self.epoch} epochs, best at {self.best['epoch']}")


def _open(
    path: str, config: TrainConfig, device: str, modalities: tuple[str, ...] | None = None
) -> tuple[FeatureStore, FeatureTable]:
    from calmrl_lab.store import FeatureStore

    store = FeatureStore.open(path)
    return store, load_table(store, modalities or config.modalities, device)


def splits_of(store: FeatureStore, config: TrainConfig) -> np.ndarray:
    if config.split_seed is None:
        return np.asarray(store.split)
    from calmrl_lab.store.splits import assign_splits

    return assign_splits(store.group, seed=config.split_seed)


def training_items(full: FeatureTable, split: np.ndarray, config: TrainConfig) -> FeatureTable:
    """The training items as the scenario shows them; items that show nothing are left out."""
    table = full.select(np.flatnonzero(split == "train"))
    if len(table) == 0:
        raise CalmrlError(
            f"store '{config.store}' has no training items", hint="its split has no 'train'; use --set split_seed=0"
        )
    if not (split == "validation").any():
        raise CalmrlError(
            f"store '{config.store}' has no validation items, and models are selected on validation only",
            hint="re-draw the split with --set split_seed=0",
        )
    mask, keep = apply_scenario(config.scenario, table.ids, table.modalities, table.mask.cpu().numpy(), config.seed)
    keep &= mask.any(axis=1)
    if not keep.any():
        raise CalmrlError(f"scenario '{config.scenario}' leaves no training item of store '{config.store}'")
    return table.with_mask(mask).select(np.flatnonzero(keep))


def _generator_state(objective: torch.nn.Module) -> Tensor | None:
    generator = getattr(objective, "generator", None)
    return generator.get_state() if generator is not None else None
