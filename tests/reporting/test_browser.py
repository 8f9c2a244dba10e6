"""The page in a real browser: at three widths, light and dark, without an error and without asking any host for anything."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)"),
]

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip

# Runs before anything else on the page, and after everything else; leaves what it saw on the root element.
_BEFORE = """<script>
window.seen = {errors: []};
addEventListener("error", (event) => seen.errors.push(String(event.message || event.target)), true);
addEventListener("securitypolicyviolation", (event) => seen.errors.push("policy: " + event.violatedDirective));
</script>"""
_AFTER = """<script>
addEventListener("load", () => {
  const shown = (element) => element.getClientRects().length > 0;
  const summary = document.querySelector("#table-summary table");
  const names = () => [...summary.tBodies[0].rows].map((row) => row.cells[0].textContent);
  seen.inner = innerWidth;
  seen.scroll = document.documentElement.scrollWidth;
  seen.paper = getComputedStyle(document.querySelector("header.top")).backgroundColor;
  seen.wide = [...document.querySelectorAll("svg.wide")].filter(shown).length;
  seen.narrow = [...document.querySelectorAll("figure.chart svg.narrow")].filter(shown).length;
  seen.outside = [...document.querySelectorAll("body *")].filter((e) => shown(e) && !e.closest(".scroll, nav, pre, svg, .skip")
    && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + "." + e.className).slice(0, 5);
  seen.small = [...document.querySelectorAll("svg text")].filter(shown).map((e) => e.getBoundingClientRect().height)
    .filter((height) => height > 0 && height < 8.5).length;
  seen.resources = performance.getEntriesByType("resource").map((entry) => entry.name);
  seen.written = names();
  const button = summary.tHead.rows[1].cells[1].querySelector("button");
  button.click();
  seen.down = names();
  button.click();
  seen.up = names();
  seen.order = summary.tHead.rows[1].cells[1].getAttribute("aria-sort");
  document.documentElement.dataset.seen = JSON.stringify(seen);
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>"""
# A window is never narrower than 500 pixels, a frame is.
_FRAME = """<!doctype html><body style="margin:0"><script>
addEventListener("message", (event) => { document.documentElement.dataset.seen = event.data; });
</script><iframe src="probed.html" style="border:0" width="%d" height="900"></iframe>"""


def chromium(tmp_path, page, *flags):
    profile = tmp_path / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
    environment = {**os.environ, "HOME": str(tmp_path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=True)


def look(tmp_path, report, width, dark):
    text = report.page.read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("<title>", f"{_BEFORE}<title>", 1).replace("</body>", f"{_AFTER}</body>"), encoding="utf-8")
    framed = tmp_path / "framed.html"
    framed.write_text(_FRAME % width, encoding="utf-8")
    flags = [f"--window-size={width},900", "--dump-dom", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    dom = chromium(tmp_path, framed if width < 500 else probed, *flags).stdout
    found = re.search(r'<html[^>]*data-seen="([^"]*)"', dom)
    assert found, dom[:500]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_the_page_fits_and_works(tmp_path, report, width, dark):
    seen = look(tmp_path, report, width, dark)
    assert seen["inner"] == width
    assert seen["errors"] == []
    assert seen["resources"] == []
    assert seen["scroll"] <= width, seen["outside"]
    assert seen["outside"] == []
    assert seen["small"] == 0
    assert (seen["narrow"] > 0, seen["wide"] > 0) == ((True, False) if width == 390 else (False, True))
    assert seen["paper"] == ("rgb(27, 32, 39)" if dark else "rgb(255, 255, 255)")


def test_headings_sort(tmp_path, report):
    seen = look(tmp_path, report, 1280, False)
    assert seen["down"][0] == "PMRL, nothing hidden (oracle)"
    assert seen["up"] == seen["down"][::-1]
    assert sorted(seen["written"]) == sorted(seen["down"])
    assert seen["order"] == "ascending"


def test_the_page_as_it_is_says_nothing_on_the_console_and_asks_no_host(tmp_path, report):
    log = tmp_path / "net.json"
    done = chromium(tmp_path, report.page, "--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert 'id="headline"' in done.stdout
    asked = set(re.findall(r'"url":"(https?://[^"]+)"', log.read_text(encoding="utf-8", errors="replace")))
    # What the browser itself asks of its maker is not the page's doing.
    assert [url for url in asked if not re.match(r"https?://([a-z0-9-]+\.)*(google|googleapis|gstatic|gvt1)\.com/", url)] == []


def test_the_page_prints(tmp_path, report):
    out = tmp_path / "page.pdf"
    chromium(tmp_path, report.page, f"--print-to-pdf={out}", "--no-pdf-header-footer")
    pages = len(re.findall(rb"/Type\s*/Page\b", out.read_bytes()))
    assert 2 <= pages <= 30
