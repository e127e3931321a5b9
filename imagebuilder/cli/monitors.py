"""Shows events: a live line on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from imagebuilder.cli.output import size
from imagebuilder.events import Event, Monitor

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

PROGRESS_SECONDS = 10.0  # between progress lines where they cannot be redrawn
FRAMES_PER_SECOND = 8  # of the live line
MARKS = {"done": "✓", "cached": "=", "failed": "✗"}
ASCII_MARKS = {"done": "+", "cached": "=", "failed": "x"}
COLOURS = {"done": "green", "cached": "cyan", "failed": "red"}


def choose_monitor(json: bool) -> Monitor:
    """Return the monitor for where we run: JSON on standard output, or people on standard error."""
    if json:
        return JsonMonitor(sys.stdout)
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return RichMonitor()
    return PlainMonitor(sys.stderr)


def counter(event: Event) -> str:
    """Return a progress event's count: ``3 of 12 packages``, ``1.0 MiB of 2.0 MiB``."""
    show = size if event.unit in ("B", "bytes") else "{:.0f}".format
    unit = "" if event.unit in ("", "B", "bytes") else f" {event.unit}"
    return f"{show(event.done)} of {show(event.total)}{unit}" if event.total else f"{show(event.done)}{unit}"


class JsonMonitor:
    """One JSON object per event, a line each."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def emit(self, event: Event) -> None:
        """Write one event."""
        line = jsonlib.dumps(dataclasses.asdict(event), ensure_ascii=False)
        with self._lock:
            self._stream.write(f"{line}\n")
            self._stream.flush()


class PlainMonitor:
    """Lines with the seconds since the start, for logs of CI systems and pipes."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._lock = stream, clock, threading.Lock()
        self._start = clock()
        self._counted = self._start

    def emit(self, event: Event) -> None:
        """Write one event, unless it is progress that comes too soon, or a program's output."""
        with self._lock:
            now = self._clock()
            if event.kind == "progress":
                if now - self._counted < PROGRESS_SECONDS:
                    return
                self._counted = now
            if text := self._text(event):
                self._stream.write(f"[{now - self._start:6.1f} s] {text}\n")
                self._stream.flush()

    @staticmethod
    def _text(event: Event) -> str:
        match event.kind:
            case "begin":
                return event.text
            case "done":
                return f"done: {event.text} ({'cached' if event.cached else f'{event.seconds:.1f} s'})"
            case "failed":
                return f"failed: {event.stage} after {event.seconds:.1f} s"
            case "note":
                return f"  {event.text}"
            case "progress":
                return f"  {event.stage}: {counter(event)}"
        return ""


@dataclasses.dataclass(kw_only=True)
class _Running:
    """A stage that has begun and not ended."""

    stage: str
    text: str
    since: float
    count: str = ""


class RichMonitor:
    """A terminal: one live line for what is running, and a line that stays for each stage that ended.

    The live line is there only while a stage runs, so that an error never leaves the cursor hidden.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.spinner import Spinner

        self._console = console or Console(stderr=True, highlight=False)
        self._marks = ASCII_MARKS if self._console.options.ascii_only else MARKS
        self._spinner = Spinner("line" if self._console.options.ascii_only else "dots")
        self._clock, self._lock = clock, threading.RLock()
        self._running: list[_Running] = []
        self._live: Live | None = None

    def emit(self, event: Event) -> None:
        """Show one event; a program's output is in its log."""
        with self._lock:
            match event.kind:
                case "begin":
                    self._begin(event)
                case "progress":
                    if running := self._find(event.stage):
                        running.count = counter(event)
                case "note":
                    self._print(f"    {event.text}", "dim")
                case "done" | "failed":
                    self._end(event)

    def _begin(self, event: Event) -> None:
        from rich.live import Live

        self._running.append(_Running(stage=event.stage, text=event.text, since=self._clock()))
        if self._live is None:
            self._live = Live(
                console=self._console, get_renderable=self._line, transient=True,
                refresh_per_second=FRAMES_PER_SECOND, redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()

    def _end(self, event: Event) -> None:
        running = self._find(event.stage)
        if running is not None:
            self._running.remove(running)
        live = self._live
        if not self._running and live is not None:
            self._live = None
            live.stop()
        kind = "cached" if event.kind == "done" and event.cached else event.kind
        text = running.text if running and event.kind == "failed" else event.text
        after = "(cached)" if kind == "cached" else f"{event.seconds:.1f} s"
        self._print(f"{self._marks[kind]} {text}  {after}", COLOURS[kind], mark=True)

    def _find(self, stage: str) -> _Running | None:
        return next((running for running in reversed(self._running) if running.stage == stage), None)

    def _print(self, text: str, style: str, *, mark: bool = False) -> None:
        from rich.text import Text

        line = Text(text)
        line.stylize(style, 0, 1 if mark else len(text))
        self._console.print(line, soft_wrap=True)

    def _line(self) -> Table:
        """Return the live line; called by rich's own thread too, so it reads a copy."""
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        running = self._running[-1:]
        if running:
            seconds = self._clock() - running[0].since
            words = [running[0].text, running[0].count, f"{seconds:.0f} s"]
            text = Text("  ".join(filter(None, words)), no_wrap=True, overflow="ellipsis")
            line.add_row(self._spinner, text)
        return line
