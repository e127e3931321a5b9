"""The parts of a boot, from power-on until a pod runs, as spans; only texts are read.

``systemd-analyze`` tells firmware, boot loader, kernel, initrd and userspace, the first two under UEFI only;
``systemctl show`` when units began and were there, in microseconds of the kernel's monotonic clock; the node's own
report says when kubelet was healthy and the pods ran, in seconds of the same clock. The reference is the guest's own
time for the sha256 of 16 MiB: boots of other machines compare by their ratio to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from imagebuilder.verify.model import Span

UNITS = (
    "systemd-networkd", "NetworkManager", "ssh", "sshd", "imagebuilder-agent-local", "imagebuilder-agent-net",
    "containerd", "docker", "kubelet",
)  # fmt: skip
PACKAGE, HEALTHY = "data package", "kubelet healthy"
# What a session asks a guest for, by name, once all is done.
COMMANDS: Mapping[str, str] = {
    "analyze": "systemd-analyze time",
    "units": f"systemctl show -p Id,InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic {' '.join(UNITS)}",
    "report": "journalctl -b -q -u node-report -o cat --no-pager",
    "reference": (
        "begin=$(date +%s%N); head -c 16777216 /dev/zero | sha256sum > /dev/null; end=$(date +%s%N); "
        'echo "$(((end - begin) / 1000000))ms"'
    ),
}
_UNIT_SECONDS = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "μs": 1e-6}
_PART = re.compile(r"([\d.]+(?:h|min|s|ms|us|μs)(?: [\d.]+(?:min|s|ms|us|μs))*) \((\w+)\)")
_REPORT = re.compile(r"imagebuilder: (runtime ready|kubelet healthy|pods ready) after (\d{1,9}(?:\.\d{1,9})?) s")


def duration(text: str) -> float:
    """Return the seconds of systemd's spelling, such as ``1min 22.497s``; 0.0 where it is none."""
    pairs = re.findall(r"(\d{1,9}(?:\.\d{1,9})?)(h|min|ms|us|μs|s)(?![a-z])", text)
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in pairs)


def startup(text: str) -> dict[str, float]:
    """Return the seconds of each part that ``systemd-analyze time`` lists."""
    return {name: duration(spelt) for spelt, name in _PART.findall(text)}


def timeline(kernel: float, said: Mapping[str, str], stages: Mapping[str, float]) -> tuple[Span, ...]:
    """Return the spans of a boot, by their starts.

    Args:
        kernel: seconds from power-on until the kernel's clock began.
        said: the answers to ``COMMANDS``; one that is missing costs its spans only.
        stages: seconds since power-on at which a session began and ended what it did to the guest.
    """
    spans = [*_startup(kernel, startup(said.get("analyze", ""))), *_units(kernel, said.get("units", ""))]
    if "apply" in stages and "applied" in stages:
        spans.append(Span(name=PACKAGE, start=stages["apply"], end=stages["applied"]))
    begun = {span.name: span.start for span in spans}
    reported = {name: kernel + float(seconds) for name, seconds in _REPORT.findall(said.get("report", ""))}
    healthy, pods = reported.get("kubelet healthy"), reported.get("pods ready")
    if healthy is not None:
        spans.append(Span(name=HEALTHY, start=min(begun.get("kubelet", healthy), healthy), end=healthy))
    if healthy is not None and pods is not None:
        spans.append(Span(name="static pods", start=min(healthy, pods), end=pods))
    # "ssh" and "sshd" are one unit where one is the other's alias: it is shown twice.
    rounded = [Span(name=one.name, start=round(one.start, 2), end=round(one.end, 2)) for one in dict.fromkeys(spans)]
    return tuple(sorted(rounded, key=lambda span: (span.start, span.end)))


def healthy_after(spans: Iterable[Span]) -> float | None:
    """Return the seconds from power-on until kubelet was healthy; None where it never was.

    A package of this run comes late: the time in which the node waited for it is not the image's, and is left out.
    """
    by_name = {span.name: span for span in spans}
    healthy = by_name.get(HEALTHY)
    if healthy is None:
        return None
    package, agent = by_name.get(PACKAGE), by_name.get("imagebuilder-agent-local")
    waited = max(0.0, package.start - agent.end) if package and agent else 0.0
    return round(healthy.end - waited, 2)


def _startup(kernel: float, parts: Mapping[str, float]) -> Iterator[Span]:
    """Yield what comes before the services; what runs before the kernel is one where nobody told the two apart."""
    if "firmware" in parts:
        between = min(parts["firmware"], kernel)
        yield Span(name="firmware", start=0.0, end=between)
        yield Span(name="boot loader", start=between, end=kernel)
    else:
        yield Span(name="firmware and boot loader", start=0.0, end=kernel)
    at = kernel
    for name in ("kernel", "initrd", "userspace"):
        if name in parts:
            yield Span(name=name, start=at, end=at + parts[name])
            at += parts[name]


def _units(kernel: float, text: str) -> Iterator[Span]:
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
        name = values.get("Id", "").removesuffix(".service")
        begun, there = (_micros(values.get(f"{key}TimestampMonotonic", "")) for key in ("InactiveExit", "ActiveEnter"))
        if name and 0 < begun <= there:
            yield Span(name=name, start=kernel + begun, end=kernel + there)


def _micros(text: str) -> float:
    """Return microseconds as seconds; a guest's word is not trusted to be a number."""
    return int(text) / 1e6 if re.fullmatch(r"[0-9]{1,15}", text) else 0.0
