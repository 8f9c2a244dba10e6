"""The page in a real browser: at several widths, light and dark, by mouse, by keyboard, on paper, and as axe-core sees it for screen readers."""

import re
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)"),
]

# What shows on the page: whatever stands out to the right, and the smallest text in pixels as it is on the screen.
_OUTSIDE = """() => [...document.querySelectorAll("body *")].filter((e) => e.getClientRects().length > 0
  && !e.closest(".scroll, nav, pre, svg, .skip") && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + "." + e.className).slice(0, 5)"""
_SMALLEST = """() => Math.min(...[...document.querySelectorAll("body *")].filter((e) => e.getClientRects().length > 0
  && !e.closest("title, script, .skip") && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
    const size = parseFloat(getComputedStyle(e).fontSize);
    if (!e.closest("svg")) return size;
    const matrix = e.getScreenCTM();
    return size * Math.hypot(matrix.a, matrix.b);
  }))"""
_SHOWN = "(selector) => [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length > 0).length"
_NAMES = "() => [...document.querySelector('#table-summary table').tBodies[0].rows].map((row) => row.cells[0].textContent)"


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install axe-playwright-python)"
    )
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, report):
    """A function width, dark -> the page, with everything that went wrong or was asked of a host in `page.seen`."""
    contexts = []

    def open_page(width=1280, dark=False):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
        contexts.append(context)
        page = context.new_page()
        page.seen = []
        page.on("pageerror", lambda error: page.seen.append(f"error: {error}"))
        page.on("console", lambda message: page.seen.append(f"console: {message.text}"))
        page.on(
            "request", lambda request: None if request.url.startswith(("file:", "data:")) else page.seen.append(request.url)
        )
        page.goto(report.page.resolve().as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 420, 1000, 1280, 1920])
def test_the_page_fits_its_window(opened, width, dark):
    page = opened(width, dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(_OUTSIDE) == []
    assert page.evaluate(_SMALLEST) >= 11.9
    shown = [page.evaluate(_SHOWN, f"figure.chart svg.{kind}") > 0 for kind in ("wide", "narrow")]
    assert shown == ([False, True] if width < 900 else [True, False])
    paper = page.evaluate("getComputedStyle(document.querySelector('header.top')).backgroundColor")
    assert paper == ("rgb(27, 32, 39)" if dark else "rgb(255, 255, 255)")
    assert page.seen == []


def test_figures_are_as_wide_as_their_card(opened):
    widths = opened(1280).evaluate(
        "() => [...document.querySelectorAll('figure.chart svg.wide')].map((e) => e.getBoundingClientRect().width / e.closest('figure').clientWidth)"
    )
    assert min(widths) > 0.95


def test_a_narrow_page_is_not_endless(opened):
    assert opened(420).evaluate("document.documentElement.scrollHeight") < 22_000


def test_the_whole_heading_cell_sorts(opened):
    page = opened()
    head = page.locator("#table-summary thead tr").last.locator("th", has_text="R@1 %").first
    written = page.evaluate(_NAMES)
    head.click(position={"x": 2, "y": 2})
    down = page.evaluate(_NAMES)
    assert down[0] == "PMRL, nothing hidden (oracle)"
    assert head.get_attribute("aria-sort") == "descending"
    head.click(position={"x": 2, "y": 2})
    assert page.evaluate(_NAMES) == down[::-1]
    head.click(position={"x": 2, "y": 2})
    assert page.evaluate(_NAMES) == written


def test_everything_can_be_done_with_the_keyboard(opened):
    page = opened(420)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#results"
    page.locator("#table-summary thead button", has_text="R@1 %").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(_NAMES)[0] == "PMRL, nothing hidden (oracle)"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    box = page.locator("#table-summary .scroll")
    box.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#table-summary .scroll').scrollLeft > 0")
    fold = page.locator("#missing details").first
    fold.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert fold.evaluate("(e) => e.open")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(opened, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    page = opened(dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    found = axe.run(page).response["violations"]
    assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == []


def test_on_paper_folds_are_open_and_headings_repeat(opened, tmp_path):
    page = opened()
    before = page.evaluate("document.querySelectorAll('details[open]').length")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('#table-recall thead')).display") == "table-header-group"
    page.evaluate(
        "addEventListener('beforeprint', () => { window.open_folds = document.querySelectorAll('details[open]').length; })"
    )
    out = tmp_path / "page.pdf"
    page.pdf(path=out)
    assert page.evaluate("open_folds") == page.evaluate("document.querySelectorAll('details').length")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == before
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", out.read_bytes())) <= 45
