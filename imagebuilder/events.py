"""Progress as events: engines emit them, monitors show them, tests tape them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

Kind = Literal["begin", "progress", "note", "log", "done", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: ``begin``, ``done`` and ``failed`` frame a stage; ``progress`` counts within it; ``note`` is a
            line for people; ``log`` is a line of a program's output.
        stage: short stable name, such as ``layer:runtime``.
        text: for people.
        seconds: length of the stage, for ``done`` and ``failed``.
        done, total: progress in ``unit``; total is 0 when unknown.
        cached: for ``done``: the result was already there.
    """

    kind: Kind
    stage: str
    text: str = ""
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    unit: str = ""
    cached: bool = False


class Monitor(Protocol):
    """Whoever wants to see events. A monitor never changes or stops the work."""

    def emit(self, event: Event) -> None:
        """Take one event."""


class NullMonitor:
    """A monitor that shows nothing."""

    def emit(self, event: Event) -> None:
        """Drop the event."""


@dataclass
class Tape:
    """A monitor that keeps all events, for tests."""

    events: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)


class Stage:
    """A running stage, handed out by :meth:`Progress.stage`."""

    def __init__(self, monitor: Monitor, name: str) -> None:
        self._monitor = monitor
        self.name = name
        self.cached = False
        self.summary = ""

    def note(self, text: str) -> None:
        """Say one line to people."""
        self._monitor.emit(Event(kind="note", stage=self.name, text=text))

    def log(self, text: str) -> None:
        """Pass on one line of a program's output."""
        self._monitor.emit(Event(kind="log", stage=self.name, text=text))

    def update(self, done: int, total: int = 0, unit: str = "") -> None:
        """Report progress: ``done`` of ``total`` (0 when unknown) in ``unit``."""
        self._monitor.emit(Event(kind="progress", stage=self.name, done=done, total=total, unit=unit))


class Progress:
    """Emits stages to a monitor and remembers how long each took.

    Attributes:
        timings: seconds per stage name, in the order of their ends.
    """

    def __init__(self, monitor: Monitor | None = None) -> None:
        self.monitor: Monitor = monitor or NullMonitor()
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, text: str = "") -> Iterator[Stage]:
        """Frame a piece of work; ``failed`` is emitted when the block raises."""
        stage = Stage(self.monitor, name)
        self.monitor.emit(Event(kind="begin", stage=name, text=text or name))
        start = time.monotonic()
        try:
            yield stage
        except BaseException as error:
            seconds = time.monotonic() - start
            self.monitor.emit(Event(kind="failed", stage=name, text=str(error), seconds=seconds))
            raise
        seconds = time.monotonic() - start
        self.timings[name] = round(self.timings.get(name, 0.0) + seconds, 3)
        text = stage.summary or text or name
        self.monitor.emit(Event(kind="done", stage=name, text=text, seconds=seconds, cached=stage.cached))

    def note(self, text: str, stage: str = "") -> None:
        """Say one line to people, outside of any stage."""
        self.monitor.emit(Event(kind="note", stage=stage, text=text))
