"""Which fields of a file are the features of a modality, and which name their rows, mark them missing and say their split.

A file may hold them in three ways: arrays beside each other (features [R, d], ids [R]); a table with a column of lists or a numbered family of
columns (x0, x1, ...); or one array per item, whose name is the id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from calmrl_lab.errors import CalmrlError
from calmrl_lab.store.convert.reading.content import Content, Field, as_float32, spelled
from calmrl_lab.store.convert.reading.reading_errors import check_memory
from calmrl_lab.store.convert.reading.row_names import ids_from, is_id, names_of_rows
from calmrl_lab.store.convert.reading.source import ReadOptions, Source
from calmrl_lab.store.splits import FRACTIONS, split_named

# Where a file of several arrays keeps features and mask, tried in this order (after the modality's own name, for features).
FEATURE_NAMES = ("features", "embeddings", "embedding", "feature", "feats", "feat", "emb", "vectors")
_MASK_NAMES = ("mask", "observed")
# What says how many of the frames of each item are there, where all are padded to one length.
_LENGTH_NAMES = (
    "lengths",
    "length",
    "lens",
    "num_frames",
    "n_frames",
    "frame_counts",
    "seq_lens",
    "seq_lengths",
    "valid_lengths",
)
# What makes whole numbers features again, where these were quantised.
_SCALE_NAMES = ("scale", "scales", "zero_point", "zero_points", "quant_scale", "quantization_scale")
# How the weights of a network are called.
_WEIGHT = re.compile(
    r"(.+\.)?(weight|bias|gamma|beta|running_mean|running_var|num_batches_tracked|weight_[gv]|in_proj_weight|in_proj_bias)"
)
_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)
# Columns that a data frame writes for its index, and never for a feature.
_FRAME_INDEX = re.compile(r"__index_.*|Unnamed: \d+|index|level_\d+|")


def choose(content: Content, modality: str, options: ReadOptions) -> Source:
    """The features of `modality` among the fields of a file.

    Raises CalmrlError naming what the file has if it is not clear which they are, and what to say to make it so.
    """
    content = replace(content, fields={name: _flat_ids(field) for name, field in content.fields.items()})
    fields = content.fields
    _check_no_weights(content, options)
    if not fields:
        raise CalmrlError(
            f"'{content.path}' holds no arrays of its own, so it does not say which are the features",
            hint="expected features [rows, d]",
        )
    if parts := _parts(content, modality, options):
        return _together(content, modality, options, parts)
    found = _columns_of_one_table(content, modality, options) if content.table else _array(content, modality, options)
    if found is not None:
        return _beside(content, options, *found)
    return _one_array_an_item(content, modality, options)


def _flat_ids(field: Field) -> Field:
    """Ids in one column, [R, 1], or texts in one row, [1, R], as [R]."""
    one_column = len(field.shape) == 2 and field.shape[1] == 1 and (field.kind == "strings" or is_id(field.name))
    one_row = len(field.shape) == 2 and field.shape[0] == 1 and field.kind == "strings"
    if not one_column and not one_row:
        return field
    return replace(field, shape=(max(field.shape),), load=lambda: np.asarray(field.load()).reshape(-1))


def _check_no_weights(content: Content, options: ReadOptions) -> None:
    """CalmrlError for the weights of a network, which are arrays too."""
    arrays = [name for name, field in content.fields.items() if field.kind == "numbers" and field.shape]
    # {"weight": ...} alone may well be a table of embeddings.
    network = len(arrays) > 1 or any("." in name for name in arrays)
    if options.key is None and not content.table and network and all(map(_WEIGHT.fullmatch, arrays)):
        raise CalmrlError(
            f"'{content.path}' holds the weights of a network ({', '.join(map(_shown, arrays[:3]))}), not features",
            hint="--weights takes them in calmrl-lab extract, which makes features by them; if one of them is what you want: FILE:KEY",
        )


def _parts(content: Content, modality: str, options: ReadOptions) -> list[str]:
    """The groups of a file that each hold features and the ids of their rows (train/features, train/ids): parts of one modality."""
    if content.table or options.key is not None:
        return []
    outer = {name.partition("/")[0] for name in content.fields}
    different = len({split_named(name) for name in outer} - {None}) == len(outer) > 1
    if content.nested and different and all("/" in name for name in content.fields):
        return sorted(outer, key=lambda name: list(FRACTIONS).index(split_named(name) or ""))
    homes: dict[str, list[Field]] = {}
    for field in content.fields.values():
        homes.setdefault(field.name.rpartition("/")[0], []).append(field)
    whole = []
    for group, fields in homes.items():
        lengths = {f.shape for f in fields if f.kind == "strings"}
        rows = [f for f in fields if f.kind == "numbers" and len(f.shape) == 2 and _leaf(f.name) in (modality, *FEATURE_NAMES)]
        if group and len(rows) == 1 and rows[0].shape[:1] in lengths:
            whole.append(group)
    return whole if len(whole) > 1 else []


def _together(content: Content, modality: str, options: ReadOptions, groups: Sequence[str]) -> Source:
    """The rows of several groups one after the other; groups called like splits give the splits."""
    found = []
    for group in groups:
        inner = {name.removeprefix(f"{group}/"): f for name, f in content.fields.items() if name.startswith(f"{group}/")}
        fields = {name: replace(f, name=name) for name, f in inner.items()}
        nested = any("/" in name for name in fields)
        found.append(choose(Content(content.path, fields, ordered=content.ordered, nested=nested), modality, options))
    if any(part.ids is None for part in found):
        raise unclear(content, modality, None, [f.name for f in content.fields.values()])
    rows = np.concatenate([part.rows for part in found])
    check = [part.observed if part.observed is not None else np.ones(len(part.rows), dtype=bool) for part in found]
    observed = np.concatenate(check) if any(part.observed is not None for part in found) else None
    splits = np.concatenate(
        [np.full(len(part.rows), group.rpartition("/")[2]) for group, part in zip(groups, found, strict=True)]
    )
    named = all(split_named(group.rpartition("/")[2]) for group in groups)
    ids = np.concatenate([part.ids for part in found if part.ids is not None])
    return Source(
        content.path,
        rows,
        ids,
        observed,
        splits if named else None,
        (),
        None,
        f"the groups {', '.join(groups)}, {list(rows.shape)} in all",
    )


@dataclass(frozen=True)
class _Matrix:
    """The chosen features: one array, or columns of numbers side by side."""

    names: Sequence[str]
    parts: Sequence[Field]
    columns: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (*first, len(self.parts)) if self.columns else first

    def load(self) -> np.ndarray:
        return np.stack([part.load() for part in self.parts], axis=1) if self.columns else self.parts[0].load()


def _array(content: Content, modality: str, options: ReadOptions) -> tuple[_Matrix] | None:
    """The array of several beside each other that holds the features; None if every array is an item's."""
    fields = content.fields
    matrices = [f for f in fields.values() if f.kind == "numbers" and len(f.shape) >= 2 and _leaf(f.name) not in _MASK_NAMES]
    if options.key is not None:
        if options.key in fields:
            return (_Matrix([options.key], [fields[options.key]]),)
        if _family(content, options.key) is not None:
            return _numbered(content, options.key, is_key=True)
        if _members(fields, options.key):
            return None
        raise unclear(content, modality, options.key, [f.name for f in matrices] or list(fields))
    for name in (modality, f"features/{modality}", *FEATURE_NAMES):
        if name in fields and (len(fields) == 1 or fields[name] in matrices):
            return (_Matrix([name], [fields[name]]),)
    if _looks_like_items(content, matrices):
        return None
    if len(matrices) == 1:
        return (_Matrix([matrices[0].name], matrices),)
    if matrices:
        if options.pool is not None or all(len(f.shape) == 2 and f.shape[0] == 1 for f in matrices):
            return None
        raise unclear(content, modality, None, [f.name for f in matrices])
    columns = [f for f in fields.values() if f.kind == "numbers" and len(f.shape) == 1]
    lengths = {f.shape for f in columns}
    named = any(f.kind == "strings" and f.shape in lengths for f in fields.values())
    if named and len(lengths) == 1 and any(len(family) > 1 for family in _families(content).values()):
        return _numbered(content, modality)
    if named:
        raise unclear(content, modality, None, list(fields))
    return None


def _columns_of_one_table(content: Content, modality: str, options: ReadOptions) -> tuple[_Matrix]:
    fields = content.fields
    lists = [f for f in fields.values() if len(f.shape) >= 2]
    key = options.key
    if key is not None and key not in fields and "," in key and all(name in fields for name in key.split(",")):
        return (_Matrix(key.split(","), [fields[name] for name in key.split(",")], columns=True),)
    wanted = [key] if key is not None else [modality, *FEATURE_NAMES]
    for name in wanted:
        if any(f.name == name for f in lists):
            return (_Matrix([name], [fields[name]]),)
    if key is None and len(lists) == 1:
        return (_Matrix([lists[0].name], lists),)
    if key is None and len(lists) > 1:
        raise unclear(content, modality, None, [f.name for f in lists])
    if key is not None and key in fields and _family(content, key) is None:
        raise unclear(content, modality, key, [f.name for f in lists] or list(fields))
    return _numbered(content, key if key is not None else modality, key is not None)


def _numbered(content: Content, name: str, is_key: bool = False) -> tuple[_Matrix]:
    """The one family of numbered columns (x0 to xN), in the order of its numbers."""
    families = _families(content)
    wanted = [prefix for prefix in families if prefix.rstrip("_-. ") == name.rstrip("_-. ")]
    if not is_key:
        several = {prefix: family for prefix, family in families.items() if len(family) > 1}
        wanted = wanted if len(wanted) == 1 else list(several)
    if len(wanted) != 1:
        numbers = [f.name for f in content.fields.values() if f.kind == "numbers" and not _FRAME_INDEX.fullmatch(f.name)]
        if is_key:
            raise unclear(content, name, name, list(content.fields))
        kinds = ", ".join(f"{_shown(f.name)} ({f.kind})" for f in list(content.fields.values())[:12])
        what = (
            f"numbered columns of {len(wanted)} kinds ({', '.join(f'{w}0...' for w in wanted)})"
            if wanted
            else "no numbered columns"
        )
        raise CalmrlError(
            f"'{content.path}' has {what}, so it does not say which columns are the features of '{name}'",
            hint=f"name them as FILE:{'PREFIX' if wanted else 'COLUMN,COLUMN,...'}; it has: {', '.join(numbers[:12]) or kinds}",
        )
    family = families[wanted[0]]
    numbers_there = sorted(family)
    gap = next((n for n in range(numbers_there[0], numbers_there[-1] + 1) if n not in family), None)
    if gap is not None or numbers_there[0] > 1:
        missing = gap if gap is not None else 0
        raise CalmrlError(
            f"'{content.path}' has the columns {wanted[0]}{numbers_there[0]} to {wanted[0]}{numbers_there[-1]}, but no {wanted[0]}{missing}",
            hint="a family of features is numbered from 0 or 1 without gaps; name other columns as FILE:COLUMN,COLUMN,...",
        )
    parts = [family[number] for number in numbers_there]
    return (_Matrix([part.name for part in parts], parts, columns=True),)


def _families(content: Content) -> dict[str, dict[int, Field]]:
    """Prefix -> number -> column, of the columns of numbers whose names end in one."""
    families: dict[str, dict[int, Field]] = {}
    for field in content.fields.values():
        match = _NUMBERED.fullmatch(field.name)
        if match and field.kind == "numbers" and len(field.shape) == 1 and not field.name.startswith("__index_"):
            family = families.setdefault(match[1], {})
            if int(match[2]) in family:
                raise CalmrlError(
                    f"'{content.path}' numbers two columns alike: {family[int(match[2])].name} and {field.name}",
                    hint="name the columns of the features as FILE:COLUMN,COLUMN,...",
                )
            family[int(match[2])] = field
    return families


def _family(content: Content, key: str) -> dict[int, Field] | None:
    families = [family for prefix, family in _families(content).items() if prefix.rstrip("_-. ") == key.rstrip("_-. ")]
    return families[0] if families and len(families[0]) > 1 else None


def _beside(content: Content, options: ReadOptions, matrix: _Matrix) -> Source:
    """The source of a chosen matrix with the ids, the mask and the splits of its rows."""
    length = matrix.shape[0] if matrix.shape else 0
    group = "" if content.table else matrix.names[0].rpartition("/")[0]
    beside = f"{group}/" if group else ""
    mask = next(
        (n for place in dict.fromkeys((beside, "")) for n in (place + m for m in _MASK_NAMES) if _is_mask(content, n, matrix)),
        None,
    )
    taken = [*matrix.names, *([mask] if mask else [])]
    named, unused = names_of_rows(content, length, beside, taken, options, matrix.shape[-1] if len(matrix.shape) == 2 else 0)
    split = next((n for place in dict.fromkeys((beside, "")) for n in (f"{place}split",) if _fits(content, n, length)), None)
    ids = None
    if named is not None:
        ids = ids_from(content.path, named, content.fields[named].load())
    observed = None if mask is None else _as_mask(content, mask)
    splits = None if split is None or split == named else np.asarray(content.fields[split].load())
    _check_not_quantised(content, matrix, beside)
    counts = _frames_of_items(content, matrix, beside)
    rows, ids = _pooled(content, matrix, ids, options, None if counts is None else content.fields[counts].load())
    if len(rows) != length and length:
        # Frames became rows of their item.
        each = len(rows) // length if counts is None else np.asarray(content.fields[counts].load()).astype(np.int64)
        observed, splits = (None if part is None else np.repeat(part, each) for part in (observed, splits))
    left = [n for n in content.fields if n not in (*taken, named, split, counts)]
    told = f"{_listed(matrix.names)} {list(matrix.shape)}" + (f", ids from {_shown(named)!r}" if named is not None else "")
    told += f", frames of each item from {_shown(counts)!r}" if counts is not None else ""
    told += f"; left out: {', '.join(map(_shown, left[:8]))}{', ...' if len(left) > 8 else ''}" if left else ""
    told += "".join(f"; {note}" for note in (*content.notes, *_ids_again(ids, len(rows) == length)))
    return Source(
        content.path,
        rows,
        ids,
        observed,
        splits,
        tuple(unused),
        named,
        told,
    )


def _ids_again(ids: np.ndarray | None, as_given: bool) -> list[str]:
    """The note on ids that stand at several rows of a file."""
    if ids is None or not as_given:
        return []
    several = sum(count > 1 for count in Counter(ids.tolist()).values())
    return [f"{several} of its ids stand at several rows, which become rows of one item"] if several else []


def _check_not_quantised(content: Content, matrix: _Matrix, beside: str) -> None:
    """CalmrlError for whole numbers with a scale beside them: they are not the features yet."""
    scales = [name for name in (*_SCALE_NAMES, *(f"{beside}{s}" for s in _SCALE_NAMES if beside)) if name in content.fields]
    if scales and matrix.parts[0].kind == "numbers" and not matrix.columns and matrix.load().dtype.kind in "iu":
        raise CalmrlError(
            f"'{content.path}': {_listed(matrix.names)} are whole numbers, and {_shown(scales[0])!r} beside them says that they are quantised features",
            hint="save the features themselves: features.astype(np.float32) * scale (less the zero point)",
        )


def _frames_of_items(content: Content, matrix: _Matrix, beside: str) -> str | None:
    """The array that says how many frames of [R, T, d] are there for each item, or None."""
    if matrix.columns or len([n for n in matrix.shape[1:] if n != 1]) != 2:
        return None
    for name in (*(f"{beside}{n}" for n in _LENGTH_NAMES), *_LENGTH_NAMES):
        field = content.fields.get(name)
        if field is not None and field.kind == "numbers" and field.shape == matrix.shape[:1]:
            counts = np.asarray(field.load())
            if counts.dtype.kind not in "iuf" or (counts != counts.astype(np.int64)).any() or (counts < 0).any():
                continue
            if counts.max(initial=0) > max(matrix.shape[1:-1]):
                continue
            return name
    return None


def _is_mask(content: Content, name: str, matrix: _Matrix) -> bool:
    field = content.fields.get(name)
    return field is not None and name not in matrix.names and field.kind in ("flags", "numbers") and len(field.shape) == 1


def _fits(content: Content, name: str, length: int) -> bool:
    field = content.fields.get(name)
    return field is not None and field.kind == "strings" and field.shape == (length,)


def _as_mask(content: Content, name: str) -> np.ndarray:
    return as_mask(np.asarray(content.fields[name].load()), f"the mask in '{content.path}'")


def as_mask(values: np.ndarray, what: str) -> np.ndarray:
    """`values` as bool; CalmrlError unless they are True and False, or 1 and 0."""
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise CalmrlError(f"{what} holds {values.dtype} values other than 0 and 1", hint="save a mask of True and False")
    return values.astype(bool)


def _pooled(
    content: Content, matrix: _Matrix, ids: np.ndarray | None, options: ReadOptions, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows [R, d]: axes of length 1 are dropped, frames [R, T, d] become their mean or rows of their item.

    counts [R]: how many of its T frames each item has; what stands behind them is padding.
    """
    check_memory(content.path, 8 * int(np.prod(matrix.shape, dtype=np.float64)) if matrix.parts[0].kind == "other" else 0)
    rows = matrix.load()
    if all(part.printed for part in matrix.parts):
        rows = as_float32(rows)
    if rows.ndim > 2:
        rows = rows.reshape(len(rows), *([n for n in rows.shape[1:] if n != 1] or [1]))
    if rows.ndim == 3 and rows.dtype.kind in "fiu":
        if options.pool is None:
            raise CalmrlError(
                f"'{content.path}': {_listed(matrix.names)} is {list(matrix.shape)}: {rows.shape[1]} rows for every item",
                hint="--pool mean takes the mean of an item's rows, --pool rows keeps them all",
            )
        if options.pool == "mean":
            return _mean(rows, axis=1) if counts is None else _mean_of_first(rows, counts), ids
        if ids is None:
            ids = numbered(len(rows))
        if counts is not None:
            there = np.arange(rows.shape[1]) < counts.astype(np.int64)[:, None]
            return rows[there], np.repeat(ids, counts.astype(np.int64))
        return rows.reshape(-1, rows.shape[2]), np.repeat(ids, rows.shape[1])
    return rows, ids


def _one_array_an_item(content: Content, modality: str, options: ReadOptions) -> Source:
    """The source of a file whose arrays are items, named by their ids: [d], [1, d], or [T, d] for T frames."""
    items = _items(content, modality, options)
    if not content.ordered:
        items = dict(sorted(items.items(), key=lambda item: natural(item[0])))
    shapes = {name: tuple(n for n in field.shape[:-1] if n != 1) + field.shape[-1:] for name, field in items.items()}
    _check_items(content, modality, items, shapes)
    frames = next((name for name, shape in shapes.items() if len(shape) == 2), None)
    if frames is not None and options.pool is None:
        raise CalmrlError(
            f"'{content.path}': the array of the item {frames!r} is {list(items[frames].shape)}: {shapes[frames][0]} rows for one item",
            hint="--pool mean takes the mean of an item's rows, --pool rows keeps them all",
        )
    check_memory(content.path, 8 * int(sum(np.prod(shape, dtype=np.float64) for shape in shapes.values())))
    arrays = [np.asarray(field.load()).reshape(-1, field.shape[-1]) for field in items.values()]
    if all(field.printed for field in items.values()):
        # Before a mean, which is no number that was printed.
        arrays = np.split(as_float32(np.concatenate(arrays)), np.cumsum([len(array) for array in arrays])[:-1])
    parts, ids = [], []
    for name, array in zip(items, arrays, strict=True):
        if options.pool == "mean" and len(array) != 1:
            array = _mean(array, axis=0)[None] if len(array) else array
        parts.append(array)
        ids += [name] * len(array)
    rows = np.concatenate(parts)
    taken = {field.name for field in items.values()}
    left = [name for name in content.fields if name not in taken]
    told = f"one array per item, {len(items)} of {list(rows.shape[1:])}" + "".join(f"; {note}" for note in content.notes)
    told += f"; left out: {', '.join(map(_shown, left[:8]))}{', ...' if len(left) > 8 else ''}" if left else ""
    return Source(
        content.path, rows, ids_from(content.path, "the names of its arrays", np.array(ids, dtype=np.str_)), told=told
    )


def _items(content: Content, modality: str, options: ReadOptions) -> dict[str, Field]:
    """Id -> array: all arrays of numbers, those of one group (`vision/ID`), or one member of every group (`ID/features`)."""
    arrays = [f for f in content.fields.values() if f.kind == "numbers" and f.shape]
    if not arrays:
        raise unclear(content, modality, options.key, list(content.fields))
    by_name = {f.name: f for f in arrays}
    while content.nested and len({name.partition("/")[0] for name in by_name}) == 1 and all(n.count("/") > 1 for n in by_name):
        # What is around all of them (data/ID/features) says nothing of an item.
        by_name = {name.partition("/")[2]: f for name, f in by_name.items()}
    if options.key is not None:
        members = _members(by_name, options.key)
        if members:
            return members
        if options.key in by_name:
            return {options.key: by_name[options.key]}
        raise unclear(content, modality, options.key, list(by_name))
    if not content.nested or not all("/" in name for name in by_name):
        flat = {name: f for name, f in by_name.items() if not content.nested or "/" not in name}
        return _majority(flat or by_name)
    if group := _members(by_name, modality):
        return group
    leaves, groups = Counter(map(_leaf, by_name)), Counter(name.partition("/")[0] for name in by_name)
    if len(leaves) == 1 and len(groups) >= 1 and len(by_name) == len({name.rpartition("/")[0] for name in by_name}):
        return {name.rpartition("/")[0]: f for name, f in by_name.items()}
    if len(groups) == 1:
        return _majority({name.partition("/")[2]: f for name, f in by_name.items()})
    parents = {name.rpartition("/")[0] for name in by_name}
    common = [leaf for leaf, count in leaves.items() if count == len(parents)]
    known = [leaf for leaf in (modality, *FEATURE_NAMES) if leaf in common]
    wide = [leaf for leaf in common if all(len(f.shape) >= 2 for n, f in by_name.items() if _leaf(n) == leaf)]
    if known or len(common) == 1 or len(wide) == 1:
        leaf = known[0] if known else (common if len(common) == 1 else wide)[0]
        return _members(by_name, leaf)
    if common:
        raise unclear(content, modality, None, common)
    return by_name


def _members(fields: Mapping[str, Field], key: str) -> dict[str, Field]:
    """The members of the group `key`, by the rest of their names; or the members called `key` of all groups, by their group."""
    inside = {name.removeprefix(f"{key}/"): f for name, f in fields.items() if name.startswith(f"{key}/")}
    if inside:
        return inside
    return {name.rpartition("/")[0]: f for name, f in fields.items() if name.endswith(f"/{key}") and f.kind == "numbers"}


def _majority(fields: dict[str, Field]) -> dict[str, Field]:
    """Without single numbers (a version, a rate) that stand beside the items."""
    return {name: f for name, f in fields.items() if len(f.shape) != 1 or f.shape[0] != 1} or fields


def _looks_like_items(content: Content, matrices: Sequence[Field]) -> bool:
    """Whether most arrays of a file have one last dimension and so are likely items, not arrays beside each other."""
    arrays = [f for f in content.fields.values() if f.kind == "numbers" and f.shape]
    if content.nested and len(matrices) > 1 and len({_leaf(f.name) for f in matrices}) == 1:
        return True
    width = Counter(f.shape[-1] for f in arrays).most_common(1)
    if not width or len(arrays) < 3:
        return False
    flat = [f for f in arrays if len(f.shape) == 1 and f.shape[0] == width[0][0]]
    uneven = len({f.shape[0] for f in matrices}) > 2 and len(matrices) > 3
    return width[0][1] > 0.8 * len(arrays) and (len(flat) > len(matrices) or uneven or all(f.shape[0] == 1 for f in matrices))


def _check_items(content: Content, modality: str, items: Mapping[str, Field], shapes: Mapping[str, tuple[int, ...]]) -> None:
    widths = Counter(shape[-1] for shape in shapes.values())
    if len(widths) > 1:
        width, count = widths.most_common(1)[0]
        odd = next(name for name, shape in shapes.items() if shape[-1] != width)
        if count < 0.5 * len(items) or len(items) < 3:
            raise unclear(content, modality, None, [f.name for f in items.values()])
        raise CalmrlError(
            f"'{content.path}': the array of the item {odd!r} is {list(items[odd].shape)}; {count} of {len(items)} end in {width}",
            hint="all items of a modality have features of one length; if it is no item, take it out or name the others as FILE:KEY",
        )
    ids = next((f.name for f in items.values() if is_id(_leaf(f.name)) and f.load().dtype.kind in "iu"), None)
    if ids is not None and any(f.load().dtype.kind == "f" for f in items.values()):
        raise CalmrlError(
            f"'{content.path}': '{ids}' holds whole numbers like ids, and the arrays beside it single numbers for each of these, or features of as many items",
            hint="save features as one array [rows, d] with its ids, or rename the array if it is an item",
        )
    deep = next((name for name, shape in shapes.items() if len(shape) > 2), None)
    if deep is not None:
        raise CalmrlError(
            f"'{content.path}': the array of the item {deep!r} is {list(items[deep].shape)}; expected [d], or [T, d] for T frames",
            hint="pool it over space before it is saved",
        )


def _mean_of_first(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of the first frames of each item; NaN, which is a gap, for an item without any."""
    wide = np.full((len(rows), rows.shape[2]), np.nan)
    for number, count in enumerate(counts.astype(np.int64)):
        if count:
            wide[number] = rows[number, :count].mean(axis=0, dtype=np.float64)
    return wide.astype(rows.dtype) if rows.dtype.kind == "f" else wide


def _mean(rows: np.ndarray, axis: int) -> np.ndarray:
    """The mean in float64, in the precision of the rows."""
    mean = np.asarray(rows).mean(axis=axis, dtype=np.float64)
    return mean.astype(rows.dtype) if rows.dtype.kind == "f" else mean


def numbered(length: int) -> np.ndarray:
    """Ids of rows that have none: their numbers, with as many digits as the last needs."""
    return np.array([f"{row:0{len(str(max(length - 1, 0)))}}" for row in range(length)], dtype=np.str_)


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts item2 before item10."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def unclear(content: Content, modality: str, key: str | None, names: Iterable[str]) -> CalmrlError:
    """The refusal of a file that does not say which of its fields are the features."""
    listed = list(names)
    has = ", ".join(map(_shown, listed[:12])) + (", ..." if len(listed) > 12 else "") or "nothing usable"
    if key is not None:
        return CalmrlError(f"'{content.path}' has no features called '{key}'", hint=f"it has: {has}")
    return CalmrlError(
        f"'{content.path}' does not say which of its arrays are the features of '{modality}'",
        hint=f"name one as FILE:KEY (or, if each is the frames of one item, say --pool mean or --pool rows); it has: {has}",
    )


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]


def _listed(names: Sequence[str]) -> str:
    return f"'{names[0]}'" if len(names) == 1 else f"'{names[0]}' to '{names[-1]}'"


def _shown(name: str) -> str:
    return (name if name.isprintable() else repr(spelled(name))) or "the column without a name"
