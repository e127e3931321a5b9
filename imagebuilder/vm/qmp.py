"""QEMU's monitor protocol, as far as a throwaway guest needs it.

The ``qemu.qmp`` package is asyncio throughout; for the two commands that we send to a socket of our own, one
at a time, an event loop in a thread would be more code than this.
https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagebuilder.errors import BootError

REPLY_SECONDS = 10.0  # QEMU answers in milliseconds, or it hangs
DYING_SECONDS = 1.0  # from closing its socket to the end of its process
POLL_SECONDS = 0.02
LINE_LIMIT = 1 << 20  # bytes of one message


class Qmp:
    """A connection that has greeted QEMU and can send commands."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rwb")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return what it gives; events in between are dropped.

        Raises:
            BootError: QEMU refused, or does not answer.
        """
        try:
            self._stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            self._stream.flush()
            while True:
                reply = self._message()
                if "return" in reply:
                    return reply["return"]
                if "error" in reply:
                    raise BootError(f"QEMU refused {command}: {reply['error'].get('desc', reply['error'])}")
        except (OSError, ValueError) as error:
            raise BootError(f"QEMU's monitor does not answer to {command}: {error}") from error

    def greet(self) -> None:
        """Take QEMU's greeting and leave the mode in which it only negotiates."""
        try:
            self._message()
        except (OSError, ValueError) as error:
            raise BootError(f"QEMU's monitor does not answer: {error}") from error
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):  # unsent bytes to a QEMU that is gone
            self._stream.close()
        self._connection.close()

    def _message(self) -> dict[str, Any]:
        line = self._stream.readline(LINE_LIMIT)
        if not line:
            raise ConnectionError("the connection was closed")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message


def connect(folder: Path, name: str, *, check: Callable[[], None], timeout: float) -> Qmp:
    """Connect to the monitor's socket ``name`` in ``folder`` as soon as QEMU has made it.

    Args:
        folder: where the socket is.
        name: the socket's file name.
        check: raises when QEMU has ended.
        timeout: seconds after which QEMU counts as hanging.

    Raises:
        BootError: QEMU ended, or its monitor does not answer.
    """
    deadline = time.monotonic() + timeout
    while not (connection := _attempt(folder, name)):
        check()
        if time.monotonic() > deadline:
            raise BootError(f"QEMU's monitor did not come up within {timeout:.0f} s")
        time.sleep(POLL_SECONDS)
    connection.settimeout(REPLY_SECONDS)
    monitor = Qmp(connection)
    try:
        monitor.greet()
    except BootError:
        monitor.close()
        _last_words(check)
        raise
    return monitor


def _last_words(check: Callable[[], None]) -> None:
    """Let a QEMU that hung up finish dying: how it ended says more than that it hung up."""
    deadline = time.monotonic() + DYING_SECONDS
    while time.monotonic() < deadline:
        check()
        time.sleep(POLL_SECONDS)


def _attempt(folder: Path, name: str) -> socket.socket | None:
    """Connect through the folder's descriptor: socket addresses end at 107 bytes, TMPDIR may be longer."""
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{name}")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection
