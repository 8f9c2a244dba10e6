"""Reader of feature stores: a store is opened only if it is whole and its mask, reasons and rows agree."""

from __future__ import annotations

import hashlib
import json
import operator
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, Shaped, UInt8

from calmrl_lab.errors import CalmrlError
from calmrl_lab.registry import known
from calmrl_lab.runtime.atomic_folders import retired
from calmrl_lab.store.disk.arrays import StoredArray, read_json
from calmrl_lab.store.disk.integrity import WHOLE_CHECK_BYTES, Checksums, size_of
from calmrl_lab.store.schema import FAILURES_FILE, FORMAT, PROVENANCE_FILE, ModalitySpec, Reason, parse_attributes

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from calmrl_lab.store.streaming import StreamBatch


class FeatureStore:
    """N items, k modalities of frozen features, read from `path`. Make one with `FeatureStore.open`.

    path, dataset, licence, attribution: what it is. attributes: all attributes of the root group. digest: one sha256 over
    everything but the provenance. specs: a `ModalitySpec` each; modalities: their names, in order; dims: name -> d_m. mask
    [N, k] bool and reason [N, k] uint8 are read on opening; ids, split, group, labels, heads, provenance when asked for.
    """

    def __init__(self, path: Path, attributes: dict[str, Any], specs: tuple[ModalitySpec, ...], checksums: Checksums) -> None:
        self.path = path
        self.attributes = attributes
        self.specs = specs
        self.modalities = tuple(spec.name for spec in specs)
        self.dims = {spec.name: spec.dimension for spec in specs}
        self._checksums = checksums
        self._features = {m: self._array(f"features/{m}") for m in self.modalities}
        self._offsets = {m: self._array(f"offsets/{m}").read() for m in self.modalities}
        self.mask: Bool[np.ndarray, "n k"] = self._array("mask").read()
        self.reason: UInt8[np.ndarray, "n k"] = self._array("reason").read()

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """The store at `path`.

        Raises CalmrlError, one sentence naming the file, if it is no store, has another version, lacks a file, has a file
        that differs from what was written (stores up to 256 MB are checked whole now, larger ones file by file when first
        read), or if mask, reason and offsets contradict each other.
        """
        root = Path(path)
        if size_of(root / "zarr.json") is None:
            raise _no_store(root)
        metadata = read_json(root, "zarr.json")
        attributes = metadata.get("attributes") if isinstance(metadata, dict) else None
        specs = parse_attributes(attributes, str(root))
        assert isinstance(attributes, dict)
        checksums = Checksums(root, expected="checksums" in attributes)
        checksums.check_sizes()
        checksums.check("zarr.json")
        if checksums.bytes <= WHOLE_CHECK_BYTES:
            checksums.check_all()
        store = cls(root, attributes, specs, checksums)
        store._check_agreement()
        return store

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        ids: Sequence[str] | Shaped[np.ndarray, " n"] | None = None,
        *,
        mask: Bool[np.ndarray, "n k"] | None = None,
        split: Sequence[str] | Shaped[np.ndarray, " n"] | None = None,
        group: Sequence[str] | Shaped[np.ndarray, " n"] | None = None,
        labels: Mapping[str, Sequence[str] | Shaped[np.ndarray, " n"]] | None = None,
        path: str | Path | None = None,
        dataset: str = "arrays",
        licence: str = "",
        overwrite: bool = False,
    ) -> FeatureStore:
        """A store of features that are in memory: {modality: array [N, d_m]}, written to `path` and opened.

        Arrays are NumPy, torch, or anything that `numpy.asarray` takes; floating-point dtypes are kept. A row that is NaN throughout
        is a gap, or, with `mask` ([N, k] bool, columns in the order of `arrays`), a row whose entry is False. Where items have several
        rows of a modality (captions), give a list with one entry per item: [d_m], [rows, d_m], or None for a gap.

        ids: [N] strings, default the index that data frames of pandas share, else the numbers of the items. split: train, validation or test for each item, default drawn, whole groups
        (`group`, default the id) together. labels: name -> [N] strings.
        path: default `stores/<dataset>-<digest>.zarr` below the working directory, so that equal arrays are one store and runs that were
        trained on it find it later. An existing store at a `path` that was given is replaced only with `overwrite`.

        Raises CalmrlError, before anything is written, for shapes that disagree, repeated ids, NaN or infinity in observed rows, items
        that show nothing, and groups in two splits.

        >>> import numpy as np
        >>> vision, text = np.random.default_rng(0).normal(size=(2, 6, 4))
        >>> text[:2] = np.nan
        >>> store = FeatureStore.from_arrays({"vision": vision, "text": text}, ids=list("abcdef"))
        >>> len(store), store.mask[:, 1].tolist()
        (6, [False, False, True, True, True, True])
        """
        from calmrl_lab.store.convert.arrays_in_memory import store_arrays

        return cls.open(
            store_arrays(
                arrays, ids, mask=mask, split=split, group=group, labels=labels, path=path,
                dataset=dataset, licence=licence, overwrite=overwrite,
            )
        )  # fmt: skip

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    def __getitem__(self, item: int) -> dict[str, Any]:
        """One item as a sample for `torch.utils.data.DataLoader`: id (str), features (modality -> [d_m] float32), mask [k] bool.

        Of several rows it is the first; a gap is zeros under a False mask. Only the rows of this item are read. Raises IndexError for a number
        that no item has, and CalmrlError for anything but a whole number.

        >>> store = FeatureStore.from_arrays({"a": [[1.0, 2.0], None], "b": [[3.0], [4.0]]})
        >>> store[1]["features"]["b"], store[1]["mask"]
        (array([4.], dtype=float32), array([False,  True]))
        """
        try:
            number = operator.index(item)
        except TypeError:
            raise CalmrlError(
                f"a store is indexed by the number of an item, got {item!r}",
                hint="several items: [store[i] for i in range(2, 4)]; all rows of a modality: store.to_dense()[0][name]",
            ) from None
        if not -len(self) <= number < len(self):
            raise IndexError(f"store '{self.path}' has items 0 to {len(self) - 1}, not {number}")
        return self.__getitems__([number % len(self)])[0]

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """Several items at once: a `DataLoader` asks for a whole batch in this way."""
        from calmrl_lab.store.convert.arrays_in_memory import samples

        return samples(self, items)

    def to_dense(self, split: str | None = None) -> tuple[dict[str, Float[np.ndarray, "n d_m"]], Bool[np.ndarray, "n k"]]:
        """Items (of a split, default all) as arrays in memory: {modality: [N, d_m]} in the stored dtype, NaN rows for gaps; and mask [N, k].

        Of several rows of an item it is the first. This is what imputers and `AlignmentModel.embed` take. Raises CalmrlError for a split
        without items.

        >>> store = FeatureStore.from_arrays({"a": [[1.0, 2.0], None], "b": [[3.0], [4.0]]})
        >>> arrays, mask = store.to_dense()
        >>> arrays["a"].tolist(), mask.tolist()
        ([[1.0, 2.0], [nan, nan]], [[True, True], [False, True]])
        """
        from calmrl_lab.store.convert.arrays_in_memory import chosen_items, first_rows

        return first_rows(self, chosen_items(self, split))

    def to_torch(self, split: str | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """As `to_dense`, as float32 tensors with zeros for gaps, so that no gradient becomes NaN; and the mask as a bool tensor.

        >>> features, mask = FeatureStore.from_arrays({"a": [[1.0, 2.0], None], "b": [[3.0], [4.0]]}).to_torch()
        >>> features["a"], mask[:, 0]
        (tensor([[1., 2.],
                [0., 0.]]), tensor([ True, False]))
        """
        from calmrl_lab.store.convert.arrays_in_memory import chosen_items, tensors

        return tensors(self, chosen_items(self, split))

    def to_datasets(self, split: str | None = None) -> Dataset:
        """As `to_dense`, as a `datasets.Dataset` of Hugging Face (extra `datasets`): columns id, split, group, label/NAME, and one per
        modality, None for gaps. Raises CalmrlError if the package is not installed.
        """
        from calmrl_lab.store.convert.arrays_in_memory import as_datasets, chosen_items

        return as_datasets(self, chosen_items(self, split))

    def __repr__(self) -> str:
        return f"FeatureStore('{self.path}', {len(self)} items, {', '.join(f'{m} {d}' for m, d in self.dims.items())})"

    @property
    def dataset(self) -> str:
        return self.attributes["dataset"]

    @property
    def licence(self) -> str:
        return self.attributes["licence"]

    @property
    def attribution(self) -> str:
        return self.attributes.get("attribution", "")

    @cached_property
    def ids(self) -> Shaped[np.ndarray, " n"]:
        """[N] str, unique."""
        return self._strings("ids")

    @cached_property
    def split(self) -> Shaped[np.ndarray, " n"]:
        """[N] str: train, validation or test."""
        return self._strings("split")

    @cached_property
    def group(self) -> Shaped[np.ndarray, " n"]:
        """[N] str: items of one group must not be split apart."""
        return self._strings("group")

    @cached_property
    def labels(self) -> dict[str, Shaped[np.ndarray, " n"]]:
        """Name -> [N] str."""
        return {name: self._strings(f"label/{name}") for name in self._members("label")}

    @cached_property
    def heads(self) -> dict[str, Float[np.ndarray, "*shape"]]:
        """Name -> the encoders' own projection weights."""
        return {name: self._array(f"heads/{name}").read() for name in self._members("heads")}

    @cached_property
    def digest(self) -> str:
        """One sha256 over all files but the provenance (over the values, if the store has no digest.json)."""
        return self._checksums.digest or self._digest_of_values()

    @property
    def provenance(self) -> dict[str, Any]:
        """When, where and how the store was made; empty if nobody wrote it down."""
        return read_json(self.path, PROVENANCE_FILE) if (self.path / PROVENANCE_FILE).exists() else {}

    def failures(self) -> list[dict[str, Any]]:
        """One record per medium that failed."""
        if not (self.path / FAILURES_FILE).exists():
            return []
        self._checksums.check(FAILURES_FILE)
        return [json.loads(line) for line in (self.path / FAILURES_FILE).read_text("utf-8").splitlines()]

    def spec(self, modality: str) -> ModalitySpec:
        return self.specs[self.column(modality)]

    def column(self, modality: str) -> int:
        """The column of `modality` in mask and reason; CalmrlError with the nearest name if there is none."""
        return known(modality, self.modalities, f"store '{self.path}' has no modality")

    def offsets(self, modality: str) -> Int64[np.ndarray, " n_plus_1"]:
        """Item i owns rows offsets[i]:offsets[i+1] of `modality`."""
        self.column(modality)
        return self._offsets[modality]

    def features(self, modality: str) -> Float[np.ndarray, "rows dimension"]:
        """All rows of `modality`, [R_m, d_m], in the stored dtype."""
        self.column(modality)
        return self._features[modality].read()

    def feature_range(
        self, modality: str, start: int, stop: int, out: Float[np.ndarray, "rows dimension"] | None = None
    ) -> Float[np.ndarray, "rows dimension"]:
        """The rows start:stop of `modality`, in a new array or in `out` (contiguous, stored dtype)."""
        self.column(modality)
        return self._features[modality].read(start, stop, out)

    def rows(self, modality: str, rows: Sequence[int] | Int[np.ndarray, " n"]) -> Float[np.ndarray, "n dimension"]:
        """The rows of `modality` at the given row numbers, in that order; only these are read from the disk."""
        self.column(modality)
        index = np.asarray(rows)
        if index.size and (index.ndim != 1 or index.dtype.kind not in "iu"):
            raise CalmrlError(
                f"rows of '{modality}' are asked for by {index.dtype} {list(index.shape)}; expected row numbers",
                hint="a mask becomes row numbers by np.flatnonzero",
            )
        return self._features[modality].rows(index.astype(np.int64).reshape(-1))

    def stream(
        self,
        modalities: Sequence[str] | None = None,
        batch_size: int = 1024,
        seed: int = 0,
        buffer_chunks: int = 4,
        items: Int[np.ndarray, " n"] | Bool[np.ndarray, " n"] | None = None,
    ) -> Iterator[StreamBatch]:
        """One pass over the items in random order without holding the store in memory; see `calmrl_lab.store.streaming`."""
        from calmrl_lab.store.streaming import stream

        return stream(self, modalities, batch_size, seed, buffer_chunks, items)

    def _array(self, name: str) -> StoredArray:
        return StoredArray(self.path, name, self._checksums.check)

    def _strings(self, name: str) -> np.ndarray:
        array = self._array(name)
        if not array.is_string or array.shape != (len(self),):
            raise CalmrlError(
                f"store '{self.path}': {name} must be {len(self)} strings, one per item; its shape is {list(array.shape)}"
            )
        return array.read()

    def _members(self, group: str) -> list[str]:
        folder = self.path / group
        return sorted(path.parent.name for path in folder.glob("*/zarr.json")) if folder.is_dir() else []

    def _check_agreement(self) -> None:
        """CalmrlError unless shapes, mask, reason and offsets say the same."""
        where = f"store '{self.path}' contradicts itself"
        n, k = self.mask.shape[0] if self.mask.ndim == 2 else 0, len(self.specs)
        for name, found, dtype in (("mask", self.mask, "bool"), ("reason", self.reason, "uint8")):
            if found.shape != (n, k) or n == 0 or found.dtype != dtype:
                raise CalmrlError(f"{where}: {name} is {found.dtype} {list(found.shape)}; expected {dtype} [items, {k}]")
        for column, spec in enumerate(self.specs):
            features, offsets = self._features[spec.name], self._offsets[spec.name]
            if (
                len(features.shape) != 2
                or features.shape[1] != spec.dimension
                or features.is_string
                or features.dtype != spec.dtype
            ):
                raise CalmrlError(
                    f"{where}: features/{spec.name} has shape {list(features.shape)}; "
                    f"zarr.json says {spec.dtype} [rows, {spec.dimension}]"
                )
            self._check_chunks(features)
            if offsets.shape != (n + 1,) or offsets.dtype != np.int64:
                raise CalmrlError(
                    f"{where}: offsets/{spec.name} is {offsets.dtype} {list(offsets.shape)}; expected int64 [{n + 1}]"
                )
            counts = np.diff(offsets)
            if offsets[0] != 0 or (counts < 0).any() or offsets[-1] != features.shape[0]:
                raise CalmrlError(
                    f"{where}: offsets/{spec.name} does not run from 0 to the {features.shape[0]} rows of features/{spec.name}"
                )
            wrong = np.flatnonzero((counts > 0) != self.mask[:, column])
            if len(wrong):
                says = "observed" if self.mask[wrong[0], column] else "missing"
                raise CalmrlError(
                    f"{where}: mask says that '{spec.name}' of item {str(self.ids[wrong[0]])!r} is {says}, "
                    f"offsets/{spec.name} gives it {int(counts[wrong[0]])} rows"
                )
        odd = np.argwhere(((self.reason == Reason.OBSERVED) != self.mask) | (self.reason > max(Reason)))
        if len(odd):
            item, column = odd[0].tolist()
            says = "observed" if self.mask[item, column] else "missing"
            raise CalmrlError(
                f"{where}: mask says that '{self.modalities[column]}' of item {str(self.ids[item])!r} is {says}, "
                f"reason gives {int(self.reason[item, column])}"
            )
        if self._checksums.digest is None and len(np.unique(self.ids)) < n:
            raise CalmrlError(f"{where}: the ids are not unique")

    def _check_chunks(self, array: StoredArray) -> None:
        """A chunk that is not there would read as zeros in any Zarr tool: features are never zeros by default."""
        for name in array.chunk_files():
            if name not in self._checksums.files and not (self.path / name).is_file():
                raise CalmrlError(f"store '{self.path}' is damaged: the file {name} is missing")

    def _digest_of_values(self) -> str:
        checksum = hashlib.sha256(json.dumps(self.attributes, sort_keys=True).encode())
        for strings in (self.ids, self.split, self.group, *self.labels.values()):
            checksum.update(json.dumps(strings.tolist()).encode())
        for array in (self.reason, *self._offsets.values(), *(self.heads[name] for name in sorted(self.heads))):
            checksum.update(np.ascontiguousarray(array).tobytes())
        for modality in self.modalities:
            checksum.update(self.features(modality).tobytes())
        return checksum.hexdigest()


def _no_store(root: Path) -> CalmrlError:
    old = retired(root)
    if old is not None:
        return CalmrlError(
            f"'{root}' is not there: a command was killed while it replaced it; the store as it was is '{old}'",
            hint=f"repeat that command, or: mv {shlex.quote(str(old))} {shlex.quote(str(root))}",
        )
    return CalmrlError(f"'{root}' {_what_it_is(root)}", hint="extract or import one, or check the path")


def _what_it_is(root: Path) -> str:
    if not root.exists():
        return "does not exist"
    if not root.is_dir():
        return "is a file; a feature store is a directory"
    try:
        empty = not any(root.iterdir())
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "is an empty directory, not a feature store" if empty else f"is not a feature store ({FORMAT}): it has no zarr.json"
