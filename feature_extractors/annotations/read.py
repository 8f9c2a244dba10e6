"""Rows of an annotation file to items: rows of one id are joined, empty captions left out, and what was joined or left out is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from calmrl_lab.runtime import console
from calmrl_lab.store.splits import split_named
from feature_extractors.annotations.annotation import Annotation, Split
from feature_extractors.annotations.rows import Row, rows_of


def read_annotations(
    path: Path,
    split: Split,
    extra_keys: Mapping[str, str] | None = None,
    captions_each: int | None = None,
    words: Mapping[str, str] | None = None,
) -> list[Annotation]:
    """The items of one split in a file, in its order.

    A file whose rows say their split gives those of `split`; any other gives all. `words` maps a name of a split in the file to the split it stands
    for, where the dataset means it otherwise than usual. `captions_each`: how many captions every item has; a name with twice as many
    is two items. Raises CalmrlError for a broken file, a row without id, or texts that are none.
    """
    rows = rows_of(path, extra_keys)
    if any(row.split for row in rows):
        rows = [row for row in rows if (words or {}).get(row.split.lower(), split_named(row.split)) == split.name]
    items = [item for of_id in _by_id(rows).values() for item in _items(of_id, split.name, captions_each)]
    # Items come in the order of their first rows.
    empty = sum(row.empty for row in rows)
    if empty:
        bare = sum(not item.captions for item in items)
        console.note(f"{path.name}: {empty} empty captions are left out" + (f"; {bare} items have none left" if bare else ""))
    if len(rows) != len(items):
        console.note(f"{path.name}: {len(rows)} rows are {len(items)} items ({split.name})")
    return items


def _by_id(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.id, []).append(row)
    return found


def _items(rows: Sequence[Row], split: str, captions_each: int | None) -> list[Annotation]:
    """The items of the rows of one id: one, or several where a dataset has a fixed number of captions per item and there are twice as many."""
    total = sum(len(row.captions) + row.empty for row in rows)
    if captions_each and total > captions_each and total % captions_each == 0 and len(rows) > 1:
        count = total // captions_each
        return [_joined(part, split, number, distinct=False) for number, part in enumerate(_parts(rows, count))]
    return [_joined(rows, split, 0, distinct=total != captions_each)]


def _parts(rows: Sequence[Row], count: int) -> list[Sequence[Row]]:
    """Rows of `count` items of one name: a row each, or as many rows each, one item after the other."""
    size = len(rows) // count
    return [rows[number * size : (number + 1) * size if number < count - 1 else len(rows)] for number in range(count)]


def _joined(rows: Sequence[Row], split: str, occurrence: int, distinct: bool) -> Annotation:
    captions = [caption for row in rows for caption in row.captions]
    firsts = [row.captions[0] for row in rows if row.captions]
    if rows[0].paragraph and len(rows) > 1:
        captions = firsts = [" ".join(caption.strip() for caption in captions)] if captions else []
    if distinct and len(rows) > 1:
        captions, firsts = list(dict.fromkeys(captions)), list(dict.fromkeys(firsts))
    extra = {
        name: list(dict.fromkeys(text for row in rows for text in row.extra.get(name, ())))
        for row in rows
        for name in row.extra
    }
    subtitle = next((row.subtitle for row in rows if row.subtitle), "")
    labels = rows[0].labels
    return Annotation(
        rows[0].id, rows[0].raw_id, split, captions, subtitle, extra, labels, occurrence=occurrence, first_captions=firsts
    )


def with_unique_ids(dataset: str, annotated: Sequence[Annotation]) -> list[Annotation]:
    """The items with ids that are unique over all splits: items of one name get the id `split/name`, a second one in the same split `split/name#2`.

    How many there are is written to standard error; also how many of them share a caption, and so are test items among the training items.
    """
    homes: dict[str, list[Annotation]] = {}
    for item in annotated:
        homes.setdefault(item.id, []).append(item)
    shared = {name: items for name, items in homes.items() if len(items) > 1}
    if not shared:
        return list(annotated)
    for name, items in shared.items():
        same = len(set.intersection(*(set(item.captions) for item in items))) > 0
        for item in items:
            item.name, item.alone = name, same
            item.id = f"{item.split}/{name}" + (f"#{item.occurrence + 1}" if item.occurrence else "")
    kinds = Counter(" and ".join(sorted({item.split for item in items})) for items in shared.values())
    leaked = sum(any(item.alone for item in items) and len({item.split for item in items}) > 1 for items in shared.values())
    told = ", ".join(f"{count} in {splits}" for splits, count in kinds.items())
    first = next(iter(shared))
    console.note(
        f"{dataset}: {len(shared)} names stand for several items ({told}), the first is {first!r}; these have the ids split/name"
    )
    if leaked:
        console.note(
            f"{dataset}: {leaked} of them share a caption: they are test items among the training items, which spoils every number"
        )
    return list(annotated)
