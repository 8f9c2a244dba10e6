"""One table in five forms."""

import csv
import io
import re
import shutil
import subprocess

import pytest

from calmrl_lab.evaluation.significance import Comparison
from calmrl_lab.reporting.content.main_tables import probability
from calmrl_lab.reporting.output.table import Cell, Column, Table, tex

NASTY = r"50 % of R&D_x #1 {~^\} <$> |a| “q” ‖z − x‖² → 日"


@pytest.fixture
def table():
    columns = [
        Column("method", numeric=False),
        Column("R@1 %", group="vision → caption"),
        Column("R@5 %", group="vision → caption"),
    ]
    rows = [
        [Cell("A & B"), Cell("12.0", "[11.0, 13.0]", bold=True, title="n = 5", sort=12.0), Cell("30.0")],
        [Cell(NASTY), Cell("−1.5", sort=-1.5), Cell("–")],
    ]
    records = [{"method": "A & B", "r": 12.0}, {"method": 'a "quoted", name', "r": float("nan")}]
    return Table("toy", "A caption with 100 % & more", columns, rows, ("a note_1",), ("method", "r"), records, rules=(1,))


@pytest.mark.parametrize(
    ("corrected", "at_floor", "shown"),
    [(0.0004, True, "< .001"), (0.022, True, "≤ .022"), (0.022, False, ".022"), (1.0, True, "1"), (0.07, False, ".070")],
)
def test_a_p_value_at_the_floor_of_its_resampling_says_so(corrected, at_floor, shown):
    assert probability(Comparison(0.1, 0.05, 0.15, corrected / 2, 9, 1, corrected, at_floor)) == shown


def test_csv_is_exact_and_empty_where_there_is_no_number(table):
    read = list(csv.reader(io.StringIO(table.to_csv())))
    assert read == [["method", "r"], ["A & B", "12"], ['a "quoted", name', ""]]


def test_markdown_escapes_pipes_and_marks_the_best(table):
    text = table.to_markdown()
    assert "| **12.0 [11.0, 13.0]** |" in text
    assert "\\|a\\|" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_html_escapes_scrolls_and_explains(table):
    html = table.to_html()
    assert "A &amp; B" in html
    assert "&lt;$&gt;" in html
    assert '<div class="scroll" role="region" tabindex="0"' in html
    assert ">A caption with 100 % &amp; more</p>" in html
    assert 'colspan="2">vision → caption</th>' in html
    assert 'title="n = 5"' in html
    assert html.count('scope="row"') == 2


def test_latex_escapes_everything(table):
    assert tex(r"a_b & 5% ~ ^ \x {y} $") == (r"a\_b \& 5\% \textasciitilde{} \textasciicircum{} \textbackslash{}x \{y\} \$")
    text = table.to_latex()
    assert r"\textbf{12.0} {\scriptsize [11.0, 13.0]}" in text
    assert r"\multicolumn{2}{c}{vision $\rightarrow$ caption}" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert text.isascii()


def test_latex_letters_that_need_packages_lose_their_accents():
    assert tex("Łódź, ąę, þing, Đorđe, «x», L·L") == r"Łódź, ae, thing, Dorde, $\ll$x$\gg$, L$\cdot$L"
    assert tex("two\n\nparagraphs\x00") == "two paragraphs?"
    assert tex("GRAM ↑ 日 🔓") == r"GRAM $\uparrow$ ? ?"


def test_latex_rows_may_begin_with_a_bracket_or_a_star():
    rows = [
        [Cell("plain"), Cell("1")],
        [Cell("[ours] a method with a name that is long [new]"), Cell("2")],
        [Cell("*starred"), Cell("3")],
    ]
    text = Table("x", "x", [Column("method", numeric=False), Column("n")], rows).to_latex()
    assert not re.search(r"\\\\\s*[\[*]", text.replace(r"\\[3pt]", ""))


def test_latex_balances_braces_and_has_equal_columns(table):
    text = table.to_latex()
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {row.replace(r"\&", "").count("&") for row in rows} == {2}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.slow
def test_latex_compiles(report, table, tmp_path):
    files = [path.read_text(encoding="utf-8") for path in sorted((report.folder / "tables").glob("*.tex"))]
    letters = "".join(
        map(
            chr, [*range(0x20, 0x7F), *range(0xA0, 0x250), *range(0x370, 0x3FF), *range(0x2010, 0x2027), *range(0x2190, 0x21FF)]
        )
    )
    every = [[Cell(f"{char}{char} x", f"[{char}]"), Cell("1")] for char in letters]
    nasty = Table(
        "letters",
        f"{letters} [a] *",
        [Column("[x] a letter", numeric=False), Column("*n")],
        every,
        [letters, "two\n\nparagraphs"],
    )
    body = "\n\\clearpage\n".join([*files, table.to_latex(), nasty.to_latex()])
    source = (
        "\\documentclass{article}\n\\usepackage[margin=1cm,landscape,a3paper]{geometry}\n\\usepackage{booktabs,longtable}\n"
    )
    (tmp_path / "all.tex").write_text(f"{source}\\begin{{document}}\n{body}\n\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "all.log").read_text(errors="replace")
