"""Every command of the table in docs/import.md, on the files that the page makes."""

import re

from docs.pages import ROOT, blocks

from calmrl_lab.store import FeatureStore

PAGE = ROOT / "docs" / "import.md"
ROW = re.compile(r"^\| (?!what you have)([^|]+) \| `([^`]+)` \|", re.MULTILINE)
START = "calmrl-lab store import --overwrite --out mine.zarr"


def test_every_row_of_the_table_is_imported(room, cli):
    room(PAGE)
    text = PAGE.read_text(encoding="utf-8")
    assert START in text
    (made,) = [block for block in blocks(PAGE) if block.language == "python"]
    exec(compile(made.text, made.where, "exec"), {"__name__": "__page__"})
    commands = ROW.findall(text)
    assert len(commands) > 14
    for what, words in commands:
        code, _, err = cli(*START.split()[1:], *words.split())
        assert code == 0, f"{what}: {err}"
        store = FeatureStore.open("mine.zarr")
        assert store.ids.tolist() == [f"video{number}" for number in range(8)], what
        assert store.mask.sum() == store.mask.size - (3 if "zeros" in what else 0), what
