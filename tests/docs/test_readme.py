"""The numbers and the picture on the first screen of the README are those of the example report."""

from docs.pages import ROOT, script


def test_the_table_of_the_readme_is_that_of_the_example_report():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script("reports/make_example.py").with_table(readme) == readme, "run: make example"


def test_the_picture_is_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](reports/example/figures/overview.svg)" in readme
    assert (ROOT / "reports" / "example" / "figures" / "overview.svg").is_file()
