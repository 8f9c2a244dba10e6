"""The settings of a run: those of a method, with every setting that was named over them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from calmrl_lab.config import TrainConfig, build, laid_over, override, read_yaml
from calmrl_lab.errors import CalmrlError
from calmrl_lab.methods.method import Method, load
from calmrl_lab.runtime import console

DEFAULT = "recommended"
# Where stores are looked for when none is named.
STORES = Path("stores")
# What a configuration calls its method when its settings were put together without one.
CUSTOM = TrainConfig.model_fields["method"].default
# Method of those who name an imputer and nothing else.
IMPUTING = "calmrl"
# The options of a plug-in are those of no other.
_OPTIONS_OF = {"objective": "objective_options", "impute": "impute_options", "init": "init_options"}
# Settings that say what is trained on, where and how it is kept: they change no method.
_DATA = (
    "store", "mix", "scenario", "scenarios", "modalities", "seed", "split_seed", "memory", "device", "checkpoint_every", "keep_state", "method",
    "changed",
)  # fmt: skip


def request(file: Path | None, flags: Mapping[str, Any], assignments: Sequence[str]) -> TrainConfig:
    """The configuration that a command line describes: the file, then the flags that were given, then `--set`, all over a method."""
    values = read_yaml(file) if file else {}
    values |= {key: value for key, value in flags.items() if value is not None}
    values = override(values, assignments)
    if not values.get("store") and (store := _only_store()) is not None:
        console.note(f"store {store}, the only one in {STORES}/")
        values["store"] = store
    return resolve(values, str(file) if file else "train-heads")


def _only_store() -> str | None:
    """The store below the working directory, where there is exactly one. Raises CalmrlError where there are several to choose from."""
    found = sorted(str(path.parent) for path in STORES.glob("*.zarr/zarr.json"))
    if len(found) > 1:
        raise CalmrlError(
            f"no feature store was named, and there are {len(found)} in {STORES}/",
            hint=" or ".join(f"--store {name}" for name in found[:4]),
        )
    return found[0] if found else None


def resolve(values: Mapping[str, Any], source: str) -> TrainConfig:
    """The configuration of a run: `values` over the method that they name, or over the one for those who name none.

    That is `recommended`; or `calmrl` where `values` name an imputer that fills gaps and no other objective; or what `recommended` names
    for stores that bring projection weights. A plug-in that is replaced takes the method's options for it away. `dim` is the latent
    dimension too where heads start from PPCA. `source` begins error messages.

    Raises CalmrlError for an unknown method and for settings that `TrainConfig` refuses.

    >>> resolve({"store": "s.zarr", "impute": "ppca"}, "example").method
    'calmrl'
    """
    given = {key: value for key, value in values.items() if key not in ("method", "changed")}
    if not given.get("store"):
        raise CalmrlError("no feature store was named", hint="--store stores/openmoji.zarr (calmrl-lab extract writes one)")
    named = values.get("method")
    method = _unnamed(given) if named is None else load(str(named))
    settings = over_method(method, given)
    if "dim" in given and settings.get("init") == "ppca":
        settings["init_options"] = {"latent_dim": given["dim"], **settings.get("init_options", {})}
    config = build(TrainConfig, {**settings, "method": method.name}, source)
    return config.model_copy(update={"changed": _changed(config, method)})


def over_method(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `method` with `given` over them; options of a plug-in that is replaced are dropped."""
    below = dict(method.settings)
    for plugin, options in _OPTIONS_OF.items():
        if plugin in given and given[plugin] != below.get(plugin):
            below.pop(options, None)
    return laid_over(below, dict(given))


def _unnamed(given: Mapping[str, Any]) -> Method:
    """The method of those who name none."""
    if given.get("impute", "none") != "none" and given.get("objective") in (None, load(IMPUTING).settings["objective"]):
        return load(IMPUTING)
    method = load(DEFAULT)
    return load(method.with_stored_heads) if method.with_stored_heads and _brings_heads(given["store"]) else method


def _brings_heads(store: Any) -> bool:
    from calmrl_lab.store import FeatureStore

    # A store that cannot be read is refused by whoever reads it for its items.
    with suppress(CalmrlError):
        return bool(FeatureStore.open(store).heads)
    return False


def _changed(config: TrainConfig, method: Method) -> tuple[str, ...]:
    """The settings of `config` that differ from those of `method`, data and seeds apart; options as `group.option`."""
    usual = _flat(build(TrainConfig, {"store": config.store, **method.settings}, f"method '{method.name}'"))
    own = _flat(config)
    different = [key for key in {**own, **usual} if own.get(key) != usual.get(key)]
    replaced = tuple(f"{options}." for plugin, options in _OPTIONS_OF.items() if plugin in different)
    # That the old plug-in's options are gone goes without saying.
    return tuple(key for key in different if key in own or not key.startswith(replaced))


def _flat(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json", exclude=set(_DATA)).items():
        found |= {f"{key}.{inner}": part for inner, part in value.items()} if isinstance(value, dict) else {key: value}
    return found


def in_words(config: TrainConfig) -> str:
    """Which method `config` trains and what was changed in it, without a full stop."""
    if config.method == CUSTOM:
        return f"no method: settings put together by hand, objective {config.objective}"
    found = _changes_in_words(config)
    return f"method {config.method}, " + (f"changed: {', '.join(found)}" if found else "as it is")


def label(config: TrainConfig) -> str:
    """The name of a run in tables: its method, and in brackets up to three settings that were changed in it."""
    if config.method == CUSTOM:
        return config.objective if config.impute == "none" else f"{config.objective}, imputer {config.impute}"
    found = [words.rpartition("options.")[2] for words in _changes_in_words(config)]
    shown = [*found[:3], *([f"{len(found) - 3} more changes"] if len(found) > 3 else [])]
    return config.method + (f" ({', '.join(shown)})" if shown else "")


def _changes_in_words(config: TrainConfig) -> list[str]:
    own = _flat(config)
    if own.get("warm_up"):
        # The folder above a store says nothing of the method, and tables are read elsewhere.
        own["warm_up"] = Path(own["warm_up"]).name
    return [f"{key} {_short(own[key])}" if key in own else f"no {key}" for key in config.changed]


def default_run_path(config: TrainConfig) -> Path:
    """runs/<store>-<method>-<scenario>[-<digest>]-s<seed>: the digest is of every other setting that is not the method's own."""
    own = _flat(config)
    other = own if config.method == CUSTOM else {key: own.get(key) for key in config.changed}
    for key in ("mix", "scenarios", "modalities", "split_seed"):
        if (value := getattr(config, key)) not in (None, {}):
            other[key] = value
    digest = [hashlib.sha256(json.dumps(other, sort_keys=True, default=str).encode()).hexdigest()[:6]] if other else []
    name = "-".join([Path(config.store).stem, config.method, config.scenario, *digest, f"s{config.seed}"])
    return Path("runs") / "".join(c if c.isalnum() or c in "-_.+@" else "_" for c in name)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
