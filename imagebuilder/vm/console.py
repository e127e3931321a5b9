"""Reads a guest's serial log while it grows.

The login prompt, the GRUB and the initramfs prompts end without a newline, so the unfinished last line is
part of what there is to see.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from pathlib import Path

from imagebuilder.errors import BootError

READ_SIZE = 64 << 10  # bytes per poll: a flood must not keep the caller from looking at its clock
LINE_LIMIT = 4096  # characters: longer lines are cut, so that memory is bounded
LOG_LIMIT = 64 << 20  # bytes on disk: a whole boot with systemd.log_level=debug is about 2 MiB
TAIL_LINES = 20  # lines shown with an error

# ECMA-48: control sequences, then operating system commands, then two-character escapes.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])")
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?|[ -/]*)$")
_MOVES = frozenset("HfJ")  # cursor moved or screen cleared: what follows starts a line of its own
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ESCAPE_LIMIT = 256  # characters: no sequence that a boot loader or systemd writes is longer

# What a machine says when it will never get any further.
_FATAL_LINE = re.compile(
    r"Kernel panic - not syncing"
    r"|No bootable device"  # SeaBIOS
    r"|BdsDxe: (?:No bootable option|starting \w+ \"EFI Internal Shell\")"  # OVMF
    r"|^\s*error: (?:\S+:\d+:)? ?no such device"  # GRUB; with file and line since 2.12
    r"|ALERT! .* does not exist"  # initramfs-tools
    r"|Entering emergency mode|Generating \"/run/initramfs/rdsosreport"  # dracut
    r"|You are in emergency mode|Failed to start .*emergency mode|Reached target .*Emergency Mode"  # systemd
    r"|Cannot open access to console, the root account is locked"  # sulogin
)
_FATAL_PROMPT = re.compile(r"^(?:grub(?: rescue)?> ?|\(initramfs\) ?|Press Enter for maintenance.*)$")


def clean(text: str) -> str:
    """Return terminal output as plain lines: no escape sequences, no control characters."""
    text = _ESCAPE.sub(lambda match: "\n" if match[1] in _MOVES else "", text)
    return _CONTROL.sub("", text.replace("\r", "\n"))


def fatal(line: str) -> bool:
    """Return whether a line, or an unfinished one, says that this boot is over."""
    return bool(_FATAL_LINE.search(line) or _FATAL_PROMPT.search(line))


class Console:
    """An incremental reader of one serial log.

    Attributes:
        path: the log.
        size: bytes read so far.
        partial: the last line as far as it has been written.
    """

    def __init__(self, path: Path, *, limit: int = LOG_LIMIT) -> None:
        self.path = path
        self.size = 0
        self.partial = ""
        self._limit = limit
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    def poll(self) -> list[str]:
        """Return the lines that have become complete, at most ``READ_SIZE`` bytes of them.

        Raises:
            BootError: the log has grown beyond its limit.
        """
        before = self.size
        text = self._decode(self._read())
        if self.size == before:
            return []
        *lines, self.partial = (self.partial + clean(text)).split("\n")
        while len(self.partial) > LINE_LIMIT:
            lines.append(self.partial[:LINE_LIMIT])
            self.partial = self.partial[LINE_LIMIT:]
        fresh = [line.rstrip()[:LINE_LIMIT] for line in lines if line.strip()]
        self._tail.extend(fresh)
        return fresh

    def drain(self) -> list[str]:
        """Return everything that is left; only for a log that no longer grows."""
        lines, before = [], -1
        while before != self.size:
            before = self.size
            lines += self.poll()
        return lines

    def tail(self) -> str:
        """Return the last lines, the unfinished one included."""
        last = [self.partial] if self.partial.strip() else []
        return "\n".join([*self._tail, *last])

    def _read(self) -> bytes:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.size)
                data = stream.read(READ_SIZE)
        except FileNotFoundError:
            return b""
        self.size += len(data)
        if self.size > self._limit:
            message = f"the guest wrote more than {self._limit >> 20} MiB to its console"
            raise BootError(message, context=self.tail(), hint=f"the whole console is in {self.path}")
        return data

    def _decode(self, data: bytes) -> str:
        """Decode, and hold back an escape sequence that the rest of is still to come."""
        text = self._held + self._decoder.decode(data)
        cut = _UNFINISHED.search(text, max(0, len(text) - ESCAPE_LIMIT))
        self._held = text[cut.start() :] if cut else ""
        return text[: cut.start()] if cut else text
