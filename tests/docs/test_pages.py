"""The reader of pages itself, and the links between pages."""

import re

import pytest
from docs.pages import ROOT, Block, blocks, is_run, pages, words_of

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_blocks_are_found_with_their_marks(tmp_path):
    page = ROOT / "docs" / "index.md"
    text = "$ a --x \\\n  1\nout\n$ b  # why\nerror: no\n"
    block = Block(page, 3, "console", "", text)
    assert block.commands() == [("a --x    1", "out"), ("b  # why", "error: no")]
    copied = Block(page, 3, "sh", "", "a --x \\\n  1\n\n# why\nb\n")
    assert [command for command, _ in copied.commands()] == ["a --x    1", "b"]
    assert words_of("calmrl-lab list objectives  # all of them") == ["list", "objectives"]
    assert words_of("ls") is None
    assert not is_run(Block(page, 1, "console", "not run: takes minutes", ""))
    assert not is_run(Block(page, 1, "python", "file=a.py", ""))
    assert is_run(Block(page, 1, "console", "slow", ""))


def test_a_block_knows_where_it_stands(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- file=a.py -->\n```python\nx = 1\n```\n\n<!-- slow -->\n```console\n$ ls\n```\n")
    first, second = blocks(page)
    assert (first.line, first.language, first.file, first.text) == (4, "python", "a.py", "x = 1\n")
    assert (second.line, second.mark) == (9, "slow")


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()])
def test_links_lead_somewhere(page):
    # In code, heads[name](rows) is no link.
    for target in LINK.findall(re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()])
def test_no_page_names_a_private_place(page):
    text = page.read_text(encoding="utf-8")
    for word in ("/work/", "/home/", "../shared", "shared/method.md", "TODO"):
        assert word not in text, f"{page.relative_to(ROOT)} says {word}"


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()])
def test_every_fence_is_one_that_any_reader_shows(page):
    """Nothing but a language stands after the backticks, and every fence is read by these tests."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("```")]
    assert all(re.fullmatch(r"```+\w*", line) for line in lines)
    assert len(lines) == 2 * len(blocks(page))
