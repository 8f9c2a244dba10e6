"""The service: vectors, texts and items in, JSON out; limits of what comes in; the page in a real browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from calmrl_lab.search.index_folder import build_gallery
from calmrl_lab.store import FeatureStore

pytest.importorskip("faiss", reason="FAISS is not installed (extra cpu or gpu)")
pytest.importorskip("fastapi", reason="FastAPI is not installed (extra serve)")
pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def gallery(trained, tmp_path_factory):
    return build_gallery(trained, tmp_path_factory.mktemp("served") / "index", split="test")


@pytest.fixture(scope="module")
def address(gallery):
    """The address of the real command."""
    command = [sys.executable, "-m", "calmrl_lab.cli", "serve", "--index", str(gallery.path), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as served:
        line = served.stdout.readline()
        assert line.startswith("serving on "), line
        yield line.removeprefix("serving on ").strip()
        served.terminate()


def ask(address, path="/search", body=None, **headers):
    """(status, answer) of a request."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else text.decode()


def test_vectors_and_items_find_what_the_gallery_finds(address, gallery, small_store):
    store = FeatureStore.open(small_store)
    vectors = store.features("caption")[:3].astype(float)
    expected = gallery.search(gallery.embed("caption", vectors), 4)
    status, found = ask(address, body={"vectors": vectors.tolist(), "modality": "caption", "k": 4})
    assert status == 200
    assert [row["id"] for rows in found["results"] for row in rows] == expected["id"].tolist()
    item = gallery.items["id"].iloc[0]
    status, found = ask(address, body={"item": item, "modality": "vision", "k": 1})
    assert status == 200
    assert len(found["results"][0]) == 1
    label = gallery.items["label.category"].iloc[0]
    status, found = ask(address, body={"item": item, "modality": "vision", "labels": {"category": label}})
    assert {row["label.category"] for row in found["results"][0]} == {label}
    status, about = ask(address, "/about")
    assert (about["items"], about["labels"][0]) == (len(gallery.items), "category")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "needs one of"),
        ({"text": "a", "item": "b"}, 422, "needs one of"),
        ({"vectors": [[1.0, 2.0]]}, 400, "values"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, 400, "one length"),
        ({"vectors": []}, 422, ""),
        ({"text": "a" * 2001}, 422, ""),
        ({"item": "../../etc/passwd"}, 400, "has no item"),
        ({"item": "<script>alert(1)</script>"}, 400, "has no item"),
        ({"item": "x", "modality": "smell"}, 400, ""),
        ({"item": "x", "k": 0}, 422, ""),
        ({"item": "x", "k": 10**9}, 422, ""),
        ({"item": "x", "path": "/etc"}, 422, ""),
        (b"{", 422, ""),
        (b"[" * 100_000, 422, ""),
        (b'{"vectors": [[NaN]]}', 422, ""),
        (b'{"vectors": [[1e999]]}', 422, ""),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_answered_by_a_sentence(address, body, status, said):
    if isinstance(body, bytes) and b"[[" in body:
        # Infinities are numbers of JSON as Python reads it, and no features.
        assert ask(address, body=body)[0] in (400, 422)
        return
    found, answer = ask(address, body=body)
    assert found == status
    assert said in json.dumps(answer)
    assert "Traceback" not in json.dumps(answer)


def test_other_hosts_too_much_and_other_files_are_refused(address, gallery):
    assert ask(address, "/about", Host="evil.example")[0] == 400
    host, _, port = address.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as said:
        said.sendall(
            b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 17000000\r\n\r\n"
        )
        assert said.recv(100).startswith(b"HTTP/1.1 413")
    for path in ("/../gallery.json", "/%2e%2e/gallery.json", "/page/../../pyproject.toml", "/index.faiss", "//etc/passwd"):
        assert ask(address, path)[0] == 404
    # Nothing of this machine's folders in what others read.
    assert str(gallery.path) not in json.dumps(ask(address, body={"item": "nobody"})[1])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")
def test_the_page_in_a_browser(address, gallery):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra browser)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((address, "data:")) else wrong.append(request.url))
        page.goto(address)
        page.wait_for_function("document.querySelector('#modality').options.length > 1")
        page.select_option("#modality", "vision")
        page.fill("#item", gallery.items["id"].iloc[0])
        page.click("button")
        page.wait_for_selector("#results li .face")
        assert gallery.items["id"].iloc[0] in page.inner_text("#results")
        page.fill("#item", "<img src=x onerror=document.title='owned'>")
        page.click("button")
        page.wait_for_function("document.querySelector('#problem').textContent.length > 0")
        assert "<img src=x" in page.inner_text("#problem")
        assert page.title() == "Search"
        assert wrong == []
        browser.close()
