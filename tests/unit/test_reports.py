"""A report as JSON, JUnit, rows, a page, and the page of all checks."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.errors import ArtifactError
from imagebuilder.verify.budgets import check_budgets
from imagebuilder.verify.changes import Baseline, changes_since
from imagebuilder.verify.model import Check, CheckResult, Outcome
from imagebuilder.verify.report import page
from imagebuilder.verify.report.document import as_json, from_json, read_baseline
from imagebuilder.verify.report.junit import as_junit
from imagebuilder.verify.report.page import as_html
from imagebuilder.verify.report.page_of_checks import render_markdown
from imagebuilder.verify.report.text import as_text
from imagebuilder.verify.report.treemap import HEIGHT, NO_PACKAGE, WIDTH, Box, layers_of, squarify, treemap
from tests import report_samples as samples

DOCUMENT = as_json(samples.report(), samples.CHECKS, samples.spent())
HOSTILE = "<script>alert(1)</script>\x1b]0;x\x07 \u202e \x00 & ]]> \ud800"


def result(found: str) -> CheckResult:
    return CheckResult(id="no-swap", outcome=Outcome.FAILED, found=(found,), reason=found)


def html(**changes: Any) -> str:
    report = samples.report(**changes)
    return as_html(report, samples.CHECKS, samples.BASELINE, samples.spent(), when="2026-11-27").decode()


# JSON


def test_the_document_has_the_keys_that_its_description_names() -> None:
    described = set(re.findall(r"``(\w+)``", (as_json.__doc__ or "").split("Args:")[0])) - {"Verification"}
    assert described == set(DOCUMENT)
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


def test_the_worst_comes_first_with_its_words() -> None:
    first = DOCUMENT["checks"][0]
    assert [check["outcome"] for check in DOCUMENT["checks"]] == ["failed", "not-run", "waived", "passed", "passed"]
    assert (first["id"], first["kind"], first["fix"]) == ("no-swap", "offline", samples.WORDS["fix"])
    assert [check["kind"] for check in DOCUMENT["checks"]] == ["offline", "booted", "booted", "offline", "budget"]


def test_a_result_without_a_known_check_is_reported_too() -> None:
    document = as_json(samples.report(), ())
    assert {check["kind"] for check in document["checks"]} == {"other"}
    assert b"no-swap" in as_html(samples.report(), ())


@pytest.mark.parametrize(
    ("results", "passed"),
    [(samples.RESULTS[:1], True), (samples.RESULTS[3:4], True), (samples.RESULTS[:2], False),
     (samples.RESULTS[2:3], False), ((), False)],
    ids=["passed", "waived", "failed", "not-run", "nothing-checked"],
)  # fmt: skip
def test_all_forms_agree_on_whether_it_passed(results: tuple[CheckResult, ...], passed: bool) -> None:
    report = samples.report(results=results)
    assert as_json(report, samples.CHECKS)["passed"] is passed
    assert ('class="verdict good"' in as_html(report, samples.CHECKS).decode()) is passed
    assert (" holds: " in as_text(report, samples.CHECKS).verdict) is passed


def test_a_baseline_is_read_back_from_a_report(tmp_path: Path) -> None:
    (tmp_path / "verify.json").write_text(json.dumps(DOCUMENT))
    (tmp_path / "manifest.json").write_text("{}")
    baseline = read_baseline(tmp_path)
    assert baseline == Baseline(
        name=samples.SUBJECT.name, sha256="0" * 64, inventory=samples.INVENTORY, boots=samples.BOOTS
    )
    assert changes_since(baseline, samples.INVENTORY, samples.BOOTS).nothing


def test_a_manifest_alone_tells_of_packages_and_of_the_artifacts_size(tmp_path: Path) -> None:
    packages = [{"name": one.name, "version": one.version, "arch": one.arch} for one in samples.PACKAGES[1:]]
    manifest = {"kind": "Image", "id": "old", "artifact": {"size": 7, "sha256": "ab"}, "packages": packages}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    baseline = read_baseline(tmp_path)
    changes = changes_since(baseline, samples.INVENTORY, samples.BOOTS)
    assert (baseline.whole, changes.artifact_size[0], changes.installed_size) == (False, 7, None)
    assert [change.name for change in changes.packages] == ["base-files"], "a size that is not stated is no change"
    assert (changes.units_added, changes.sockets_added, changes.boots) == ((), (), ())


def broken(path: str, value: Any) -> Any:
    document = json.loads(json.dumps(DOCUMENT))
    at, *keys = document, *path.split(".")
    for key in keys[:-1]:
        at = at[int(key) if isinstance(at, list) else key]
    at[keys[-1]] = value
    return document


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, {"kind": "Cat"}, {"kind": "Verification"}, {"kind": "Image"}, {"kind": "Image", "artifact": 1},
        broken("inventory", []), broken("inventory.artifact_size", -1), broken("inventory.packages", [1]),
        broken("inventory.packages.0.size", "7"), broken("inventory.packages.0.name", None),
        broken("inventory.units", "ssh"), broken("boots.0.stages.kubelet", float("nan")),
        broken("boots.0.reference", float("inf")), broken("boots.0.spans.0.end", "1"), broken("boots.0.stages", []),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(document: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(document)
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="is no report and no manifest"):
        read_baseline(tmp_path / "x.json")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"])
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match="is no report and no manifest"):
        read_baseline(tmp_path / "x.json")


def test_a_baseline_that_is_not_there_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(ArtifactError) as caught:
            read_baseline(path)
        assert "verify.json" in caught.value.hint


# JUnit


def test_junit_has_a_suite_for_each_kind_and_an_element_for_each_outcome() -> None:
    root = ET.fromstring(as_junit(samples.report(), samples.CHECKS))
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["offline", "booted", "budget"]
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5", "failures": "1", "errors": "1", "skipped": "1",
    }  # fmt: skip
    elements = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert elements == {
        "no-swap": ["failure"], "cgroup-v2": ["error"], "journal": ["skipped"], "no-host-key": [],
        "budget-image-size": [],
    }  # fmt: skip
    assert samples.WORDS["fix"] in (suites["offline"][0][0].text or "")
    assert root.find(".//error").get("message") == "the guest did not answer within 30 s"  # type: ignore[union-attr]


@given(st.text(alphabet=st.characters(), max_size=40))
def test_junit_stays_xml_whatever_a_guest_writes(found: str) -> None:
    root = ET.fromstring(as_junit(samples.report(results=(result(found),)), samples.CHECKS))
    assert root.find(".//failure") is not None


# Rows


def test_rows_have_failures_last_where_they_are_seen() -> None:
    text = as_text(samples.report(), samples.CHECKS, samples.spent())
    assert [row[:2] for row in text.checks.rows] == [
        ("ok", "no-host-key"), ("ok", "budget-image-size"), ("waived", "journal"), ("NOT RUN", "cgroup-v2"),
        ("FAILED", "no-swap"),
    ]  # fmt: skip
    assert text.checks.rows[-1][2] == "/etc/fstab:3: /swapfile <none> swap & more (and 1 more)"
    assert text.boots.rows == (("runtime", "30.0", "30.0"), ("kubelet", "41.5", "45.5"))
    assert text.budgets.rows[0] == ("image_size", "320 MiB", "300 MiB", "-20 MiB")
    assert text.verdict.endswith("does not hold: 1 failed, 1 not run, 1 waived, 2 passed, in 71.2 s")


def test_a_terminal_gets_nothing_that_it_would_obey() -> None:
    rows = as_text(samples.report(results=(result(HOSTILE + "\nnext"),)), samples.CHECKS).checks.rows
    assert re.search("[\x00-\x1f\x7f-\x9f\u202e\ud800]", "".join(rows[0])) is None


# The page


class Reader(HTMLParser):
    """Keeps elements and their attributes, and sees that what is opened is closed."""

    VOID = ("meta", "link", "br", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> list[tuple[str, dict[str, str | None]]]:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader.seen


def test_the_page_is_well_formed_and_needs_nothing_from_outside() -> None:
    seen = read(html())
    tags = [tag for tag, _ in seen]
    assert not {"script", "img", "iframe", "object", "embed", "base"} & set(tags)
    assert [attrs.get("href") for tag, attrs in seen if tag == "link"] == ["data:,"]
    assert "src" not in {key for _, attrs in seen for key in attrs}
    assert "url(" not in html() and "@import" not in html()


def test_headings_go_down_one_step_at_a_time() -> None:
    levels = [int(tag[1]) for tag, _ in read(html()) if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


def test_only_what_stands_in_the_way_is_open_and_it_comes_first() -> None:
    opened = ["open" in attrs for tag, attrs in read(html()) if tag == "details"]
    assert opened == [True, True, False, False, False]


def test_the_page_shows_each_part_of_the_report() -> None:
    text = html()
    for words in (
        "0" * 64, "1 failed, 1 not run", "/etc/fstab:3: /swapfile &lt;none&gt; swap &amp; more", samples.WORDS["fix"],
        "Could not run:</strong> the guest did not answer", "Waived, because:</strong> the driver is known",
        "-20 MiB", "bios, tcg", "11.5 s", "reference of this run took 5.0 s", "containerd, 130 MiB (runtime)",
        "files of no package", "1 added, 1 removed, 1 changed", "1.7.20", "tcp/10250", "cron.service", "+2.5 s",
        "2026-11-27", "debian 13 amd64",
    ):  # fmt: skip
        assert words in text, words


def test_what_is_not_there_leaves_no_empty_part() -> None:
    report = samples.report(boots=(), subject=replace(samples.SUBJECT, manifest=None, target="", release=""))
    text = as_html(report, samples.CHECKS).decode()
    for part in ('id="boot"', 'id="budgets"', 'id="changes"', "Target", "Verified at"):
        assert part not in text
    assert "or its manifest is missing" in text
    read(text)


def test_what_a_guest_writes_stays_text() -> None:
    package = replace(samples.PACKAGES[0], name=HOSTILE, version=HOSTILE)
    inventory = replace(samples.INVENTORY, packages=(package,), units=(HOSTILE,))
    text = html(results=(result(HOSTILE),), inventory=inventory, name=HOSTILE)
    assert "script" not in [tag for tag, _ in read(text)]
    assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text) is None


def test_the_same_report_gives_the_same_bytes() -> None:
    assert html() == html()
    assert as_junit(samples.report(), samples.CHECKS) == as_junit(samples.report(), samples.CHECKS)


def luminance(colour: str) -> float:
    """Of WCAG 2.2, "relative luminance"."""
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_enough_on_each_ground_it_stands_on(mode: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", page._TEMPLATE.read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[mode]))
    pairs = [(ink, "paper") for ink in ("ink", "soft", "accent", "good", "bad", "warn")]
    pairs += [("ink", f"layer-{at}") for at in range(page.COLOURS)]
    pairs += [("ink", "panel"), ("good", "good-panel"), ("bad", "bad-panel")]
    for ink, ground in pairs:
        high, low = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


# The map


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=60))
def test_a_map_fills_its_box_in_proportion_and_stays_inside(sizes: list[int]) -> None:
    sizes.sort(reverse=True)
    boxes = squarify(sizes, Box(left=0, top=0, width=WIDTH, height=HEIGHT))
    area = WIDTH * HEIGHT
    for size, box in zip(sizes, boxes, strict=True):
        assert abs(box.width * box.height / area - size / sum(sizes)) < 1e-6
        assert box.left >= -1e-6 and box.left + box.width <= WIDTH + 1e-4
        assert box.top >= -1e-6 and box.top + box.height <= HEIGHT + 1e-4


def test_cells_do_not_lie_over_each_other_and_are_nearly_square() -> None:
    boxes = squarify([6, 6, 4, 3, 2, 2, 1], Box(left=0, top=0, width=6, height=4))  # the paper's own example
    for at, one in enumerate(boxes):
        assert max(one.width / one.height, one.height / one.width) < 3
        for other in boxes[at + 1 :]:
            apart_x = one.left + one.width <= other.left + 1e-9 or other.left + other.width <= one.left + 1e-9
            apart_y = one.top + one.height <= other.top + 1e-9 or other.top + other.height <= one.top + 1e-9
            assert apart_x or apart_y
    assert (boxes[0].width, boxes[0].height) == (3, 2), "the first two share a strip on the left"


def test_layers_are_those_of_the_manifest_and_the_rest() -> None:
    layers = layers_of(samples.INVENTORY, {**samples.LAYERS, "linux-image": "kernel"})
    assert [(layer.name, len(layer.parts)) for layer in layers] == [
        ("base", 1), ("kernel", 1), ("runtime", 2), ("site", 1), (NO_PACKAGE, 1),
    ]  # fmt: skip
    assert sum(layer.size for layer in layers) == samples.INVENTORY.installed_size
    names = [cell.name for cell in treemap(layers)]
    assert "1 smaller packages" in names, "what cannot be seen is one cell"


def test_an_image_without_anything_has_no_map() -> None:
    empty = replace(samples.INVENTORY, packages=(), installed_size=0)
    assert treemap(layers_of(empty, {})) == ()


# The page of all checks


def test_the_page_of_checks_has_a_row_for_each() -> None:
    words = {**samples.WORDS, "proves": "It is a|b."}
    text = render_markdown([Check(id="of-redhat", families=frozenset({"redhat"}), **words)], samples.CHECKS[2:4])
    assert "| `of-redhat` | It is a\\|b. |" in text and "| redhat |" in text
    assert re.findall(r"^\| `([\w-]+)`", text, re.MULTILINE)[:3] == ["of-redhat", "cgroup-v2", "journal"]
    assert all(line.count(" | ") == 4 for line in text.splitlines() if line.startswith("| `"))
    assert text.endswith("\n1 offline, 2 booted, 7 budgets.\n")


def test_a_budgets_words_are_in_every_form() -> None:
    results = check_budgets(samples.BUDGETS, samples.INVENTORY, samples.BOOTS, samples.BASELINE)
    report = samples.report(results=results)
    assert "20 MiB over the limit" in as_html(report, samples.CHECKS).decode()
    assert b'message="320 MiB, 20 MiB over the limit of 300 MiB (and 2 more)"' in as_junit(report, samples.CHECKS)
