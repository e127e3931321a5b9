"""A guest that is well, in memory: what a real one said, and a strict stand-in that says it again."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagebuilder.errors import BootError
from imagebuilder.process import Result
from imagebuilder.verify.booted import session
from imagebuilder.verify.booted.guest import Shell
from imagebuilder.verify.booted.timeline import COMMANDS
from imagebuilder.verify.model import Expected, Subject
from imagebuilder.vm.boot import BootReport

GOLDEN = Path(__file__).resolve().parents[1] / "golden/booted/debian-13.json"  # by check: what its command said
MANIFEST: Mapping[str, Any] = {
    "capabilities": {
        "kubelet": "1.35.8", "containerd": "1.7.24~ds1-6+deb13u1", "runtimes": ["containerd", "docker"],
        "pauseImage": "registry.k8s.io/pause:3.10.1",
    }
}  # fmt: skip
EXPECTED = Expected(
    sockets=("tcp/22", "tcp/5355", "tcp/10250", "udp/68", "udp/5355"),
    journal=(r"sshd-session: pam_env\(sshd:session\): Unable to open env file: /etc/default/locale",),
)


def golden() -> dict[str, str]:
    """Return what a Debian 13 guest that is well said, by check."""
    said: dict[str, str] = json.loads(GOLDEN.read_text())
    return said


def subject(**changes: Any) -> Subject:
    fields: dict[str, Any] = {
        "path": Path("x.qcow2"), "name": "x", "family": "debian", "os": "debian", "release": "13", "target": "qemu",
        "arch": "amd64", "firmware": ("bios",), "manifest": MANIFEST, "expected": EXPECTED,
    }  # fmt: skip
    return Subject(**{**fields, **changes})


@dataclass
class FakeGuest:
    """Answers what a session may ask; anything else is an error.

    Attributes:
        said: by check.
        dies: the command, or name of a check, at which the guest is gone.
        configured: whether the image brings a kubelet configuration.
        code: how the agent ends.
        pause: the image that its kubeadm wants.
    """

    said: Mapping[str, str]
    dies: str = ""
    configured: bool = False
    code: int = 0
    pause: str = ""
    log: list[str] = field(default_factory=list)
    given: list[bytes] = field(default_factory=list)
    seconds: float = 90.0
    report: BootReport = field(
        default=BootReport(firmware="bios", accelerator="tcg", stages={"login": 79.2}, console_log=Path("console"))
    )

    def run(self, command: str, *, timeout: float, stdin: bytes = b"") -> Result:
        assert timeout > 0
        self.seconds += 1.0
        text, code = "", 0
        if command == "sh -s":
            text = self._script(stdin.decode())
        else:
            name = _name(command)
            self._step(name)
            self.given += [stdin] if stdin else []
            text = {"uptime": "86.5 100.0\n", "pause": self.pause}.get(name, "")
            code = {"configured": 0 if self.configured else 1, "apply": self.code}.get(name, 0)
        return Result(argv=(command,), returncode=code, stdout=text, tail=(), seconds=0.1)

    def _step(self, name: str) -> None:
        if name == self.dies:
            raise BootError(f"the guest is gone at {name}")
        self.log.append(name)

    def _script(self, text: str) -> str:
        found = re.search(r"^mark=(\S+)$", text, re.MULTILINE)
        assert found
        parts = []
        for name in re.findall(r"^ask (\S+) ", text, re.MULTILINE):
            self._step(name)
            if name in self.said:
                parts.append(f"\n{found[1]} begin {name} 1.0\n{self.said[name]}\n{found[1]} end {name} 1.5 0  \n")
            else:
                assert name in COMMANDS, f"nobody said what {name} answers"
        return "".join(parts)


def _name(command: str) -> str:
    known = {
        session.UPTIME: "uptime", session.SETTLE.format(seconds=400): "settle", session.CONFIGURED: "configured",
        session.TRUST: "trust", session.APPLY: "apply", session.WAIT.format(seconds=300): "wait",
        session.PAUSE: "pause",
    }  # fmt: skip
    return known[command]


@dataclass
class Opener:
    """Opens fake guests by firmware; one that cannot be opened is the error to raise."""

    guests: Mapping[str, FakeGuest | Exception]
    ended: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def __call__(self, firmware: str) -> Iterator[Shell]:
        guest = self.guests[firmware]
        if isinstance(guest, Exception):
            raise guest
        try:
            yield guest
        finally:
            self.ended.append(firmware)
