"""Monitors: what a person, a log file and a program see of the same tape of events."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console

from imagebuilder.cli.monitors import JsonMonitor, PlainMonitor, RichMonitor, choose_monitor, counter
from imagebuilder.events import Event, Monitor, Progress, Tape


def tape() -> list[Event]:
    """A stage with a note, one that was cached, one within another that fails with it."""
    recorded = Tape()
    progress = Progress(recorded)
    with progress.stage("layer:base", "Layer base") as stage:
        stage.note("[10] Install")
        stage.log("Setting up libc6")
        stage.update(3, 12, "packages")
    with progress.stage("layer:runtime", "Layer runtime") as stage:
        stage.cached = True
    with pytest.raises(ValueError), progress.stage("disk", "Disk"), progress.stage("pack", "Pack") as stage:
        stage.update(512, 2048, "B")
        raise ValueError("no space")
    return recorded.events


def play(monitor: Monitor) -> None:
    for event in tape():
        monitor.emit(event)


class Clock:
    """Seconds that pass by one at every look."""

    def __init__(self, step: float = 1.0) -> None:
        self._now: Iterator[float] = (step * tick for tick in range(1000))

    def __call__(self) -> float:
        return next(self._now)


def terminal(**options: object) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=60, highlight=False, _environ={}, **options)  # type: ignore[arg-type]
    return console, stream


def test_json_has_every_event_on_its_line() -> None:
    stream = io.StringIO()
    play(JsonMonitor(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["kind"] for event in events[:4]] == ["begin", "note", "log", "progress"]
    assert events[3] == {
        "kind": "progress", "stage": "layer:base", "text": "", "seconds": 0.0, "done": 3, "total": 12,
        "unit": "packages", "cached": False,
    }  # fmt: skip
    assert [event["stage"] for event in events if event["kind"] == "failed"] == ["pack", "disk"]


def test_plain_lines() -> None:
    stream = io.StringIO()
    play(PlainMonitor(stream, Clock()))
    assert stream.getvalue().splitlines() == [
        "[   1.0 s] Layer base",
        "[   2.0 s]   [10] Install",
        "[   5.0 s] done: Layer base (0.0 s)",
        "[   6.0 s] Layer runtime",
        "[   7.0 s] done: Layer runtime (cached)",
        "[   8.0 s] Disk",
        "[   9.0 s] Pack",
        "[  10.0 s]   pack: 512 B of 2.0 KiB",
        "[  11.0 s] failed: pack after 0.0 s",
        "[  12.0 s] failed: disk after 0.0 s",
    ]


@pytest.mark.parametrize(("step", "lines"), [(1.0, 3), (4.0, 10), (10.0, 30)])
def test_plain_progress_comes_at_most_every_ten_seconds(step: float, lines: int) -> None:
    stream = io.StringIO()
    monitor = PlainMonitor(stream, Clock(step))
    for done in range(30):
        monitor.emit(Event(kind="progress", stage="pull", done=done, total=30))
    assert len(stream.getvalue().splitlines()) == lines


def test_rich_leaves_a_line_per_finished_stage_and_the_cursor_visible() -> None:
    console, stream = terminal(color_system=None)
    play(RichMonitor(console))
    text = stream.getvalue()
    for line in (
        "✓ Layer base  0.0 s",
        "= Layer runtime  (cached)",
        "✗ Pack  0.0 s",
        "✗ Disk  0.0 s",
        "    [10] Install",
    ):
        assert line in text
    assert "Setting up" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 3
    assert text.index("✗ Pack") < text.index("✗ Disk")


def test_rich_shows_the_running_stage_with_its_count() -> None:
    console, stream = terminal(color_system=None)
    monitor = RichMonitor(console, Clock())
    monitor.emit(Event(kind="begin", stage="pull", text="Image pause"))
    monitor.emit(Event(kind="progress", stage="pull", done=1 << 20, total=2 << 20, unit="B"))
    console.print(monitor._line())
    monitor.emit(Event(kind="done", stage="pull", text="Image pause"))
    assert "Image pause  1.0 MiB of 2.0 MiB  " in stream.getvalue()


def test_rich_without_unicode() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    play(RichMonitor(Console(file=stream, force_terminal=True, width=60, color_system=None, _environ={})))
    stream.seek(0)
    assert "+ Layer base" in stream.read()


def test_no_color_is_honoured() -> None:
    stream = io.StringIO()
    environ = {"NO_COLOR": "1", "TERM": "xterm"}
    play(RichMonitor(Console(file=stream, force_terminal=True, width=60, _environ=environ)))
    assert "\x1b[32m" not in stream.getvalue()


def test_a_note_outside_of_any_stage_is_shown() -> None:
    console, stream = terminal(color_system=None)
    Progress(RichMonitor(console)).note("docker-ce is out of reach")
    assert stream.getvalue() == "    docker-ce is out of reach\n"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        pytest.param(Event(kind="progress", stage="x", done=3), "3", id="bare"),
        pytest.param(Event(kind="progress", stage="x", done=3, unit="files"), "3 files", id="no-total"),
        pytest.param(Event(kind="progress", stage="x", done=3, total=4, unit="files"), "3 of 4 files", id="total"),
        pytest.param(Event(kind="progress", stage="x", done=3 << 30, unit="B"), "3.0 GiB", id="bytes"),
    ],
)
def test_counter(event: Event, text: str) -> None:
    assert counter(event) == text


@pytest.mark.parametrize(
    ("json", "tty", "term", "kind"),
    [
        pytest.param(True, True, "xterm", JsonMonitor, id="json"),
        pytest.param(False, True, "xterm", RichMonitor, id="terminal"),
        pytest.param(False, True, "dumb", PlainMonitor, id="dumb"),
        pytest.param(False, False, "xterm", PlainMonitor, id="pipe"),
    ],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, json: bool, tty: bool, term: str, kind: type) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    assert isinstance(choose_monitor(json), kind)
