"""The report folder: its files, their exact columns, and a page that is complete in itself."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest
from runs.resealing import reseal
from synthetic_runs import RECIPES, write_experiment

from calmrl_lab.errors import CalmrlError
from calmrl_lab.reporting import write_report
from calmrl_lab.reporting.content.published import facts
from calmrl_lab.runs.experiment_folder import ExperimentFolder
from calmrl_lab.runs.run import Run


def rows(report, name):
    with open(report.folder / "tables" / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_recall_csv_has_exactly_its_columns_and_a_row_a_method_and_direction(report):
    found = rows(report, "recall.csv")
    assert list(found[0]) == (
        [
            "method",
            "query",
            "gallery",
            "recall_at_1",
            "low",
            "high",
            "recall_at_5",
            "recall_at_10",
            "median_rank",
            "seeds",
            "queries",
        ]
    )
    assert len(found) == 7 * 12
    assert len({(row["method"], row["query"], row["gallery"]) for row in found}) == 7 * 12
    for row in found:
        assert 0 <= float(row["low"]) <= float(row["recall_at_1"]) <= float(row["high"]) <= 100
        assert float(row["recall_at_1"]) <= float(row["recall_at_5"]) <= float(row["recall_at_10"])
        assert (row["seeds"], row["queries"]) == ("2", "120")


def test_imputation_csv_has_exactly_its_columns_and_all_patterns_together(report):
    found = rows(report, "imputation_mse.csv")
    assert list(found[0]) == ["imputer", "modality", "pattern", "split", "mse", "low", "high", "mean_over_coordinates", "items"]
    # The synthetic runs have 64 dimensions.
    assert all(float(row["mean_over_coordinates"]) == pytest.approx(float(row["mse"]) / 64, abs=1e-6) for row in found)
    test = {(r["imputer"], r["modality"]): r for r in found if r["split"] == "test" and r["pattern"] == "all"}
    for modality in ("vision", "audio", "caption", "subtitle"):
        errors = [float(test[imputer, modality]["mse"]) for imputer in ("ppca", "mean", "random")]
        assert errors == sorted(errors)
        assert test["ppca", modality]["items"] == "120"
    assert {r["split"] for r in found} == {"train", "test"}


def test_every_row_of_the_summary_says_what_it_is_scored_by(report):
    assert {row["scored_by"] for row in rows(report, "summary.csv")} == {"cosine"}
    table = (report.folder / "tables" / "summary.md").read_text(encoding="utf-8")
    assert "| method | scored by |" in table


def test_all_the_promised_files_are_there(report):
    for name in ("recall", "imputation_mse", "summary"):
        for ending in ("csv", "md", "tex"):
            assert (report.folder / "tables" / f"{name}.{ending}").stat().st_size > 0
    for name in ("fig3_imputation_mse", "fig4_anchor_shift", "fig5_oracle"):
        assert (report.folder / "figures" / f"{name}.svg").stat().st_size > 0


class Outside(HTMLParser):
    """Collects everything that a browser would fetch, and every link to a file beside the page."""

    def __init__(self):
        super().__init__()
        self.fetched, self.links = [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "a" and not values.get("href", "#").startswith("#"):
            self.links.append(values["href"])
        elif tag in {"img", "script", "iframe", "source", "video", "audio", "embed"} and values.get("src"):
            self.fetched.append(values["src"])
        elif tag == "link" and values.get("href") != "data:,":
            self.fetched.append(values["href"])
        elif tag in {"image", "use"}:
            target = values.get("href") or values.get("xlink:href") or ""
            self.fetched += [] if target.startswith("#") else [target]


def test_the_page_fetches_nothing_and_its_links_lead_somewhere(report):
    html = report.page.read_text(encoding="utf-8")
    outside = Outside()
    outside.feed(html)
    assert outside.fetched == []
    assert outside.links
    for link in outside.links:
        assert (report.folder / link).is_file(), link
    assert not re.search(r"@import|url\((?!#)", html)


def test_the_page_says_what_was_done(report):
    html = report.page.read_text(encoding="utf-8")
    for part in ("headline", "story", "table-summary", "table-recall", "protocol-card", "missing-by-modality", "missing-patterns",
                 "training-view", "fig5_oracle", "fig4_anchor_shift", "fig3_imputation_mse", "table-published"):  # fmt: skip
        assert f'id="{part}"' in html, part
    assert "nobody, &lt;invented&gt; &amp; free" in html
    assert "CC BY-SA 4.0" in html
    assert "learning_rate: 0.001" in html
    assert "Learning rates were chosen on validation" in html


def test_published_numbers_stand_beside_ours_with_their_source(report):
    html = report.page.read_text(encoding="utf-8")
    assert 'title="published: arXiv 2511.12034, Table 1"' in html
    assert "on other data" in html
    values = {(f.method, f.dataset, f.task): f.value for f in facts("CalMRL-T1")}
    assert values["CalMRL_up", "MSR-VTT", "T2V"] == "61.1"
    assert values["PMRL_up", "AudioCaps", "A2T"] == "52.0"


@pytest.mark.slow
def test_failed_runs_are_on_the_page(tmp_path, without_pdf):
    folder = write_experiment(tmp_path / "x", RECIPES[2:4], seeds=(0, 1), items=20)
    failure = {"run": "pmrl-s1", "error": "the loss is not finite", "traceback": "Traceback <x>"}
    Run(folder / "pmrl-s1").write_record(Run.ERROR, failure)
    written = write_report(folder, tmp_path / "out")
    html = written.page.read_text(encoding="utf-8")
    assert "the loss is not finite" in html
    assert "Traceback &lt;x&gt;" in html
    assert written.problems == ("pmrl-s1: the loss is not finite",)


@pytest.mark.slow
def test_optional_parts_are_left_out_with_their_old_files(tmp_path, without_pdf):
    folder = write_experiment(tmp_path / "x", RECIPES[2:4], seeds=(0,), items=20)
    first = write_report(folder, tmp_path / "out")
    assert (first.folder / "figures" / "fig4_anchor_shift.svg").exists()
    for name in ("imputation.parquet", "anchors.parquet"):
        (folder / "calmrl-ppca-s0" / name).unlink()
    reseal(folder / "calmrl-ppca-s0")
    (first.folder / "tables" / "mine.txt").write_text("kept")
    second = write_report(folder, tmp_path / "out")
    assert not (second.folder / "figures" / "fig4_anchor_shift.svg").exists()
    assert (second.folder / "tables" / "mine.txt").exists()
    assert 'id="anchors"' not in second.page.read_text(encoding="utf-8")


def test_nothing_finished_still_gives_a_page(tmp_path, without_pdf):
    folder = write_experiment(tmp_path / "x", RECIPES[2:3], seeds=(0,), items=10)
    (folder / "pmrl-s0" / "summary.json").unlink()
    html = write_report(folder, tmp_path / "out").page.read_text(encoding="utf-8")
    assert "No finished run can be compared." in html
    assert "has not finished" in html


def test_a_foreign_page_is_not_overwritten(tmp_path, experiment):
    (tmp_path / "index.html").write_text("<p>my homepage</p>")
    with pytest.raises(CalmrlError, match="is not a report"):
        write_report(experiment, tmp_path)


def test_the_command(cli, tmp_path, without_pdf):
    folder = write_experiment(tmp_path / "runs" / "demo", RECIPES[2:3], seeds=(0, 1), items=20)
    code, out, _ = cli("report", "--runs", folder, "--out", tmp_path / "out", "--json")
    assert code == 0
    payload = json.loads(out)
    assert payload["page"].endswith("index.html")
    assert payload["headline"]
    assert [row["method"] for row in payload["summary"]] == ["PMRL, observed only"]


def test_the_command_says_what_it_found_and_where(cli, tmp_path, without_pdf):
    folder = write_experiment(tmp_path / "runs" / "demo", RECIPES[2:3], seeds=(0,), items=20)
    (folder / "pmrl-s0" / "summary.json").unlink()
    code, out, err = cli("report", "--runs", folder, "--out", tmp_path / "out")
    assert code == 0
    assert "index.html" in out
    assert "has not finished" in err


def test_the_command_refuses_what_is_not_there(cli, tmp_path):
    code, _, err = cli("report", "--runs", tmp_path / "absent")
    assert code == 2
    assert "there is no folder" in err


@pytest.mark.slow
def test_the_main_tables_of_another_experiment_are_added(experiment, tmp_path, without_pdf):
    from synthetic_runs import write_experiment

    other = write_experiment(tmp_path / "runs" / "other-data", seeds=(0,), items=60, extras=True)
    written = write_report(experiment, tmp_path / "both", also=[other])
    assert {"summary", "summary_other_data", "classification_other_data"} <= set(written.tables)
    assert (written.folder / "tables" / "summary_other_data.csv").exists()
    html = written.page.read_text(encoding="utf-8")
    assert "On other data" in html
    assert html.count("Classification accuracy") == 2
    assert "On other data" not in write_report(experiment, tmp_path / "one").page.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "other"), [("openmoji", True), ("msrvtt", False)])
def test_published_numbers_are_on_other_data_unless_the_store_is_of_the_paper(tmp_path, dataset, other):
    folder = write_experiment(tmp_path / "x", RECIPES[:4], seeds=(0,), items=40)
    record = ExperimentFolder(folder).read()
    record["store"]["dataset"] = dataset
    ExperimentFolder(folder).write(record)
    report = write_report(folder, tmp_path / "report")
    assert report.tables["published"].caption.endswith("on other data") is other
    assert ("The published numbers are on other data" in report.page.read_text()) is other
