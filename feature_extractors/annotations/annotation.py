"""What an annotation file says of one item, and which files a dataset looks for."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Split:
    """A split and the names its annotation file may have, best first."""

    name: str
    files: tuple[str, ...]


@dataclass
class Annotation:
    """What one item's rows say, before its media are looked for.

    `first_captions`: the first caption of each row, where an item has several rows. `raw_id`: the id as the file spells it, under which its media may lie. `name`: what its media are called if the id had to be told apart from
    another item's of that name. `occurrence`: 0, or 1 for the second item of one name in one split. `alone`: whether the name is one item's.
    """

    id: str
    raw_id: str
    split: str
    captions: list[str]
    subtitle: str = ""
    extra: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    name: str = ""
    occurrence: int = 0
    alone: bool = True
    first_captions: list[str] = field(default_factory=list)

    @property
    def media_name(self) -> str:
        return self.name or self.id
