"""Configuration: frozen pydantic models, YAML files, `key=value` overrides, and errors that name the nearest known key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from calmrl_lab import renamed
from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import nearest

SimilarityName = Literal["cosine", "likelihood-ratio", "sum", "stacked", "canonical-cosine", "shared-space"]
# What a pair is compared by, in a sentence that begins with "compared by".
SIMILARITY_WORDS: dict[str, str] = {
    "cosine": "the cosine of their embeddings",
    "likelihood-ratio": "their likelihood ratio under PPCA (PLDA scoring)",
    "sum": "their likelihood ratio under PPCA plus the cosine of their embeddings",
    "stacked": "a sum of similarities of several kinds, with weights that validation items choose",
    "canonical-cosine": "the cosine of their canonical variates",
    "shared-space": "their likelihood ratio under the two-covariance model of the space that their features share",
}


# Counts above this (passes, iterations, items of a batch) are slips of the pen.
MOST = 10_000_000


def _leaves(value: Any) -> Iterator[Any]:
    """Every value in nested lists and dictionaries that is neither."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _types(annotation: Any) -> Iterator[Any]:
    """Every type that a nested annotation is made of."""
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for one in inner:
        yield from _types(one)


class Settings(BaseModel):
    """A group of settings: unchangeable, without unknown keys, and without true or false in the place of a number, where Python would count them as
    1 and 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = set(_types(cls.model_fields[str(info.field_name)].annotation))
        if kinds & {int, float} and not kinds & {bool, Any}:
            for found in _leaves(value):
                if isinstance(found, bool):
                    raise ValueError("expected a number, not true or false")
        return value


class TrainConfig(Settings):
    """Everything that decides what `train-heads` does; with the store's digest it decides the result.

    >>> from calmrl_lab.config import TrainConfig
    >>> TrainConfig(store="stores/openmoji.zarr", objective="clip", epochs=5).epochs
    5
    """

    model_config = ConfigDict(allow_inf_nan=False)

    store: str = Field(description="feature store to train on")
    mix: dict[str, Annotated[float, Field(gt=0, le=MOST)]] = Field(
        default_factory=dict,
        description="further stores to train on at the same time, each with its weight: how often a pass shows their items (the first store: once)",
    )
    scenarios: dict[str, str] = Field(
        default_factory=dict, description="scenario of a store of the mix, where it is another than that of the first store"
    )
    warm_up: str | None = Field(
        None, description="feature store of complete data to train on first; its items stay in the imputer"
    )
    warm_up_epochs: int = Field(10, ge=0, le=MOST, description="passes over the warm-up store; with 0 only the imputer sees it")
    warm_up_scenario: str = Field(
        "full", description="which items of the warm-up store are used (share:0.25; rest:0.25 leaves the others to training)"
    )
    imputer_data: Literal["all", "warm-up", "train"] = Field(
        "all", description="items the imputer is fitted on: the warm-up store's and those in training, or one of the two"
    )
    modalities: tuple[str, ...] | None = Field(
        None, min_length=1, description="modalities to align, in this order; default: all of the store"
    )
    method: str = Field("custom", description="method that the settings come from; custom: they were put together by hand")
    changed: tuple[str, ...] = Field(
        (), description="settings that are not those of the method, by name; filled in, never asked for"
    )
    objective: str = Field(description="name of the alignment objective, or none: heads as they start")
    objective_options: dict[str, Any] = Field(
        default_factory=dict, description="options of the objective (temperatures, weights)"
    )
    impute: str = Field("none", description="name of the imputer that fills missing modalities during training")
    impute_options: dict[str, Any] = Field(default_factory=dict, description="options of the imputer (latent_dim, ...)")
    scenario: str = Field("full", description="which observed modalities training may see")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of masks, initialisation and batch order")
    split_seed: int | None = Field(
        None, ge=0, lt=2**63, description="re-draw the 60/15/25 split by group with this seed; default: the store's own"
    )
    head: Literal["linear", "mlp"] = Field("linear", description="projection head, one per modality")
    init: Literal["auto", "random", "stored", "ppca", "identity"] = Field(
        "auto",
        description="start of the heads: the store's own projection weights (stored), random, PPCA of the features in closed form (ppca), the features as they are (identity), or "
        "stored where there are any and random elsewhere (auto)",
    )
    init_options: dict[str, Any] = Field(
        default_factory=dict,
        description="options of a start by PPCA (kernel, latent_dim, components, whitening, noise_scale, iterations, embedding)",
    )
    similarity: SimilarityName = Field(
        "cosine",
        description="how a query and a candidate are compared: by the cosine of their embeddings, by their likelihood ratio under the PPCA "
        "that the heads start from (init: ppca), by the sum of both, the cosine with a weight that validation chooses, by the cosine of canonical variates, by the "
        "likelihood ratio under a model of the space that features share, or by the sum of all of these that help (stacked)",
    )
    select_by: str = Field(
        "auto",
        description="what validation ranks by when it chooses the epoch and among the candidates of a grid: similarity (pairs of modalities, as "
        "`similarity` says), cosine (pairs, by the cosine of their embeddings), a scorer of whole items (calmrl-lab list scorers), or auto: the scorer "
        "of the objective's system if it has one, else similarity",
    )
    features: Literal["scaled", "centred", "standardised", "raw", "kernel"] = Field(
        "scaled",
        description="what heads that start at random see: features scaled to mean squared norm one, the same about their mean, also with equal "
        "variances, as they are, or their kernel principal components. Spectral objectives cannot tell z from -z and need the common mean that centring removes",
    )
    dim: int = Field(
        256,
        ge=2,
        le=65_536,
        description="dimension of the common space (512 for VAST; the stored heads decide when they are used)",
    )
    epochs: int = Field(40, ge=0, le=MOST, description="passes over the training items")
    batch_size: int = Field(256, ge=2, le=MOST, description="items per step, of all processes together")
    batching: Literal["mixed", "pattern"] = Field(
        "mixed", description="batches of all items, or of items that show the same modalities"
    )
    exclude_same_group: bool = Field(
        False, description="items of one group (captions of a clip, near duplicates) are no negatives of each other"
    )
    memory: Literal["auto", "table", "stream"] = Field(
        "auto", description="keep the features in memory, read them as they are needed, or decide by the free memory"
    )
    learning_rate: float = Field(1e-3, gt=0, le=100, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, le=1000, description="decoupled weight decay (VAST recipe)")
    warm_up_share: float = Field(
        0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises (VAST recipe)"
    )
    clip_norm: float | None = Field(2.0, gt=0, description="largest gradient norm (VAST recipe); null clips nothing")
    refresh: int = Field(
        1,
        ge=0,
        description="epochs between two updates of the imputer; 0: fitted once, on the embeddings after the warm-up, and kept as it is",
    )
    scale_noise: bool = Field(
        True, description="scale the noise of a generative imputer by what held-out items say, after every fit"
    )
    first_iterations: int = Field(50, ge=1, le=MOST, description="EM iterations of the imputer's first fit")
    refresh_iterations: int = Field(
        5, ge=1, le=MOST, description="EM iterations of every later fit, from where the last one ended"
    )
    members: tuple[dict[str, Any], ...] = Field(
        (),
        description="settings of the members of an ensemble, each laid over those of the run; their scores are added with weights that validation chooses",
    )
    impute_as_observed: bool = Field(
        False,
        description="show imputed embeddings to the objective as if they had been observed, so that any objective trains on any imputer's "
        "filling (calmrl tells them apart by itself)",
    )
    impute_from: int = Field(
        0, ge=0, description="epochs trained on observed modalities only, before imputed ones enter the loss"
    )
    risk_control: bool = Field(
        False, description="leave an item uncalibrated unless its predicted gain clears a threshold that held-out items set"
    )
    risk_level: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="largest share of items with gaps that calibration may harm under risk_control, with probability 0.9 over the held-out items",
    )
    patience: int = Field(10, ge=1, le=MOST, description="epochs without a better validation score before training stops")
    checkpoint_every: int = Field(10, ge=1, le=MOST, description="epochs between two checkpoints")
    keep_state: bool = Field(
        False, description="keep the last checkpoint (state.pt) of a finished run, which nothing needs any more"
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, ... or auto")

    @field_validator("objective_options", "impute_options", "init_options", "members")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        """Numbers inside of options are finite too."""
        for number in _leaves(value):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"numbers have to be finite, not {number}")
        return value


Model = TypeVar("Model", bound=BaseModel)


def build(model: type[Model], values: Mapping[str, Any], source: str) -> Model:
    """`model(**values)`; a CalmrlError of one sentence (source, key, what was got, what was expected) if that is not possible."""
    try:
        return model(**values)
    except ValidationError as error:
        # A key that is misspelt is also one that is lacking: the misspelling says more.
        first = min(error.errors(), key=lambda found: found["type"] == "missing")
        key = ".".join(str(part) for part in _place(values, first)) or "(whole file)"
        if first["type"] == "extra_forbidden":
            known = list(_fields_at(model, first["loc"][:-1]))
            former = str(first["loc"][-1])
            if renamed.SETTINGS.get(former) in known:
                raise CalmrlError(f"{source}: {key}: unknown key", hint=renamed.hint(former, renamed.SETTINGS)) from None
            raise CalmrlError(
                f"{source}: {key}: unknown key{nearest(str(first['loc'][-1]), known)}", hint=f"known keys: {', '.join(known)}"
            ) from None
        got = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        hint = renamed.hint(str(first["input"]), renamed.VALUES) if first["type"] == "literal_error" else None
        said = first["msg"].removeprefix("Value error, ")
        raise CalmrlError(f"{source}: {key}: {said[0].lower()}{said[1:]}{got}", hint=hint) from None


def _place(values: Any, error: ErrorDetails) -> list[int | str]:
    """The keys that lead to an error, without the names that pydantic gives to the members of a union of types."""
    found: list[int | str] = []
    for part in error["loc"]:
        inside = isinstance(part, int) if isinstance(values, list | tuple) else isinstance(values, Mapping) and part in values
        if not inside and error["type"] != "missing":
            break
        found.append(part)
        values = values[part] if inside else None
    return found


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        inner = [t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(t, type)]
        nested = [t for t in inner if issubclass(t, BaseModel)]
        if nested:
            model = nested[0]
    return list(model.model_fields)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; CalmrlError if it is absent, not YAML, or not a mapping."""
    try:
        loaded = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CalmrlError(f"there is no file '{path}'") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CalmrlError(f"'{path}' cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise CalmrlError(
            f"'{path}'{where} is not valid YAML: {' '.join(str(getattr(error, 'problem', error)).split())}"
        ) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise CalmrlError(f"'{path}' holds a {type(loaded).__name__}, expected keys with values")
    return loaded


# Settings are a few levels deep and a few hundred values long; more is a mistake, or meant to exhaust the memory.
_DEEPEST, _MOST_VALUES = 20, 100_000


class _Excess(yaml.YAMLError):
    """YAML that is nested too deeply, or whose repeated parts come to too many values."""


def _parsed(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError, also for a document of absurd depth or size (references counted out)."""
    try:
        loaded = yaml.safe_load(text)
    except RecursionError:
        raise _Excess(f"it is nested more than {_DEEPEST} levels deep") from None
    except ValueError as error:  # a date with a thirteenth month
        raise yaml.YAMLError(str(error)) from None
    seen, level = 0, [loaded]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for value in level:
            inner += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
            if seen + len(inner) > _MOST_VALUES:
                raise _Excess(f"it comes to more than {_MOST_VALUES:,} values")
        seen, level = seen + len(inner), inner
        if not level:
            return loaded
    raise _Excess(f"it is nested more than {_DEEPEST} levels deep")


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`values` with `a.b=c` assignments applied; the right-hand side is read as YAML (numbers, lists, true, null)."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise CalmrlError(
                f"--set '{assignment}' is not of the form key=value", hint="for example --set learning_rate=0.001"
            )
        try:
            value = _parsed(text)
        except yaml.YAMLError as error:
            reason = f": {error}" if isinstance(error, _Excess) else ""
            raise CalmrlError(f"--set '{assignment[:80]}': the value is not valid YAML{reason}") from None
        # YAML 1.1 reads 1e-3 as text, but a number is meant.
        if isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        *parents, last = key.strip().split(".")
        place = result
        for parent in parents:
            inner = place.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise CalmrlError(f"--set '{assignment}': '{parent}' is a single value, not a group of keys")
            place = inner
        place[last] = value
    return result


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two layers of settings; groups of options are merged key by key."""
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        result[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    return result
