"""Figures: text as text, the same bytes, the page's colours."""

import dataclasses
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from calmrl_lab.reporting.content.calibration_figures import anchor_shift
from calmrl_lab.reporting.output.palette import INKS, inks
from calmrl_lab.reporting.results.anchor_shifts import shifts
from calmrl_lab.reporting.results.collect import Method, gather

NAMES = (
    "overview",
    "differences",
    "fig3_imputation_mse",
    "fig4_anchor_shift",
    "fig5_oracle",
    "reliability",
    "training",
    "missing_curves",
)


@pytest.mark.parametrize("name", NAMES)
def test_svg_is_valid_has_its_words_as_text_and_no_date(report, name):
    text = (report.folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(words) > 8
    assert not any(element.tag.endswith("image") for element in root.iter())
    assert "dc:date" not in text
    expected = {
        "overview": "CLIP, observed pairs", "fig3_imputation_mse": "ppca", "fig4_anchor_shift": "with calibration",
        "fig5_oracle": "Recall@10", "differences": "CalMRL, PPCA − CLIP, observed pairs", "reliability": "made squared error",
        "training": "validation MRR", "missing_curves": "in the query",
    }  # fmt: skip
    assert expected[name] in words


@pytest.mark.parametrize("name", NAMES)
def test_hover_values_and_intervals_are_in_the_svg(report, name):
    text = (report.folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    titles = re.findall(r"<title>(.*?)</title>", text)
    assert any(re.search(r"\d (%|points)? ?\[[+−\d]|: (best|expected) ", title) for title in titles), titles[:3]


def test_the_bounds_are_drawn(report):
    text = (report.folder / "figures" / "fig4_anchor_shift.svg").read_text(encoding="utf-8")
    assert len(re.findall(r"<title>[^<]*proven bounds", text)) == 5  # all patterns together, and four


def test_every_case_of_the_anchor_shift_is_in_a_bar_harmed_ones_apart(report):
    text = (report.folder / "figures" / "fig4_anchor_shift.svg").read_text(encoding="utf-8")
    bars = re.findall(r"<title>(closer|farther)[^:]*: (\d+) cases change by ([+\-−.\d]+) to", text)
    cases = int(re.search(r"case by case \((\d+) cases", report.page.read_text(encoding="utf-8"))[1])
    assert sum(int(count) for _, count, _ in bars) == cases
    assert {kind for kind, _, _ in bars} == {"closer", "farther"}
    assert all((kind == "farther") == (float(left.replace("−", "-")) > -1e-9) for kind, _, left in bars)


@pytest.mark.parametrize("left_alone", [0.5, 1.0])
def test_cases_that_calibration_left_alone_are_in_no_bar_of_harmed_ones(experiment, left_alone):
    """As under risk control: where the gate stays shut, both shifts are one."""
    found = shifts(gather(experiment))
    changes = np.where(np.arange(len(found.changes)) < left_alone * len(found.changes), 0.0, found.changes)
    figure = anchor_shift(dataclasses.replace(found, changes=changes))
    bars = re.findall(r"<title>(closer|farther|unchanged)[^:]*: (\d+) cases", figure.svg())
    counted = {kind: sum(int(count) for name, count in bars if name == kind) for kind in ("closer", "farther", "unchanged")}
    assert counted == {
        "closer": (changes < 0).sum(), "farther": (changes > 0).sum(), "unchanged": (changes == 0).sum(),
    }  # fmt: skip
    assert f"{counted['unchanged']} are as they were" in figure.caption


def test_pdf_is_a_pdf_with_fonts_and_no_date(report):
    for name in NAMES:
        data = (report.folder / "figures" / f"{name}.pdf").read_bytes()
        assert data.startswith(b"%PDF")
        assert b"CreationDate" not in data


def test_ids_are_unique_in_the_page(report):
    ids = re.findall(r'\bid="([^"]+)"', report.page.read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids))


def test_inline_figures_follow_the_page(report):
    html = report.page.read_text(encoding="utf-8")
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        assert 'role="img"' in svg
        assert 'aria-label="' in svg
        assert not [colour for colour in re.findall(r"#[0-9a-f]{6}\b", svg) if colour in {ink.light for ink in INKS}]
        for target in re.findall(r"(?:href=\"|url\()#([^\")]+)", svg):
            assert f'id="{target}"' in svg


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a, b):
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_colour_stands_out_on_its_page():
    for ink in INKS:
        assert _contrast(ink.light, "#ffffff") >= 3, ink
        assert _contrast(ink.dark, "#1b2027") >= 4.5, ink


def test_methods_have_different_colours_that_do_not_depend_on_order(experiment):
    from calmrl_lab.reporting.results.collect import gather

    methods = gather(experiment).methods
    found = inks(methods)
    assert len({ink.light for ink in found.values()}) == len(methods)
    assert inks(methods[::-1]) == found
    assert inks(methods[3:4])["calmrl-ppca"] == found["calmrl-ppca"]


def test_many_methods_still_differ_in_colour_or_marker():
    methods = [Method(f"m{i}", f"m{i}", "baseline", settings={"objective": f"o{i}", "impute": "none"}) for i in range(20)]
    found = inks(methods)
    assert len({(ink.light, ink.marker) for ink in found.values()}) == 20


def test_no_id_depends_on_the_last_bit_of_a_coordinate(report):
    for path in sorted((report.folder / "figures").glob("*.svg")):
        text = path.read_text(encoding="utf-8")
        ids = set(re.findall(r'\bid="([^"]+)"', text))
        assert not [found for found in ids if re.fullmatch(r"[a-zA-Z][0-9a-f]{10}", found)], path
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= ids, path


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(report, experiment, tmp_path):
    code = f"from calmrl_lab.reporting import write_report; write_report({str(experiment)!r}, {str(tmp_path / 'again')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    for path in sorted(report.folder.rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(report.folder)).read_bytes() == path.read_bytes(), path
