"""The report's page in a real browser: it asks the network for nothing, and fits a phone."""

from __future__ import annotations

import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.process import RealRunner
from imagebuilder.verify.budgets import Spent
from imagebuilder.verify.report.page import as_html
from tests import report_samples as samples

pytestmark = pytest.mark.integration

CHROMIUM = "chromium"
PHONE = 375  # CSS pixels: the narrowest phone that is still sold
# Chromium's window is never narrower than 500 pixels: a frame is as narrow as it is told.
FRAME = """<!DOCTYPE html>
<title>waiting</title>
<iframe src="page.html" style="width:{width}px;height:800px;border:0" onload="
const r = this.contentDocument.documentElement; document.title = r.clientWidth + ' ' + r.scrollWidth"></iframe>
"""


def page(long: bool = False) -> bytes:
    """Return the page; with names, versions and findings that have no place to break where ``long`` says so."""
    if not long:
        return as_html(samples.report(), samples.CHECKS, samples.BASELINE, samples.spent())
    packages = tuple(replace(one, name=one.name + "x" * 90, version="1" * 120) for one in samples.PACKAGES)
    inventory = replace(samples.INVENTORY, packages=packages, units=("u" * 200 + ".service",))
    results = (replace(samples.RESULTS[1], found=("f" * 400,), reason="r" * 400), *samples.RESULTS)
    spans = tuple(replace(one, name=one.name + "s" * 60) for one in samples.BOOTS[0].spans)
    report = samples.report(
        name="n" * 120, results=results, inventory=inventory, boots=(replace(samples.BOOTS[0], spans=spans),)
    )
    unknown = (Spent(name="installed_size", limit=123 << 30, value=None), *samples.spent())
    return as_html(report, samples.CHECKS, samples.BASELINE, unknown)


def chromium(folder: Path, *args: str) -> str:
    assert shutil.which(CHROMIUM), "scripts/setup.sh tests installs it"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--allow-file-access-from-files",
    ]
    profile = f"--user-data-dir={folder / 'profile'}"
    return RealRunner().run([CHROMIUM, *options, profile, *args], timeout=120, capture=True).stdout


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str]]]:
    """A proxy that keeps what it is asked for: its address, and the list."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def parse_request(self) -> bool:
            """Keep what is asked for, whatever the method; answer nothing."""
            if super().parse_request():
                asked.append(self.path)
                self.send_error(404)
            return False

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_the_page_is_shown_without_a_single_request(tmp_path: Path, requests: tuple[str, list[str]]) -> None:
    proxy, asked = requests
    options = [f"--proxy-server=http://{proxy}", "--proxy-bypass-list=<-loopback>", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--no-first-run", "--dump-dom"]  # fmt: skip
    file = tmp_path / "page.html"
    file.write_bytes(page().replace(b"</main>", b'<img src="http://seen.example/x.png"></main>'))
    chromium(tmp_path, *options, file.as_uri())
    assert [path for path in asked if "seen.example" in path], "the proxy sees what a page asks for"
    asked.clear()
    file.write_bytes(page())
    shown = chromium(tmp_path, *options, file.as_uri())
    ours = [path for path in asked if "google" not in path and "gstatic" not in path]  # the browser's own
    assert ours == []
    assert "does not hold" in shown and shown.count("<details") == len(samples.RESULTS)
    assert re.findall(r'(?:src|srcset)="', shown) == []


def widths(folder: Path, data: bytes, width: int) -> tuple[int, int]:
    """Return how wide a frame of the page is, and how wide what is in it."""
    (folder / "page.html").write_bytes(data)
    (folder / "frame.html").write_text(FRAME.format(width=width))
    shown = chromium(folder, "--dump-dom", (folder / "frame.html").as_uri())
    title = re.search(r"<title>(\d+) (\d+)</title>", shown)
    assert title, shown[:500]
    return int(title[1]), int(title[2])


@pytest.mark.parametrize("width", [PHONE, 768, 1280])
@pytest.mark.parametrize("long", [False, True], ids=["plain", "long-words"])
def test_nothing_has_to_be_scrolled_sideways(tmp_path: Path, width: int, long: bool) -> None:
    frame, inside = widths(tmp_path, page(long), width)
    assert width - 20 <= frame <= width
    assert inside <= frame


def test_what_has_to_be_scrolled_is_seen(tmp_path: Path) -> None:
    wide = page().replace(b"</main>", b'<p style="width:500px">wide</p></main>')
    frame, inside = widths(tmp_path, wide, PHONE)
    assert inside > frame
