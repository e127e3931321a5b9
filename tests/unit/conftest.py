"""Unit tests decide; they do not act: starting a process or a connection raises."""

from __future__ import annotations

import socket
import subprocess
from typing import Any, NoReturn

import pytest

from imagebuilder import userns


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("a unit test tried to start a process or a connection")


@pytest.fixture(autouse=True)
def _no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", _refuse)
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    monkeypatch.setattr(userns, "enter", lambda: None)  # it would take this whole process along
