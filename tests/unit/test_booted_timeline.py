"""The parts of a boot, from what a guest said."""

from __future__ import annotations

import pytest

from imagebuilder.verify.booted.timeline import UNITS, duration, healthy_after, startup, timeline
from imagebuilder.verify.model import Span

# Debian 13 under emulation, BIOS.
ANALYZE = """Startup finished in 12.783s (kernel) + 1min 22.497s (userspace) = 1min 35.280s
graphical.target reached after 1min 22.472s in userspace.
"""
REPORT = """Started node-report.service - Tell the console when containerd, kubelet and pods are ready.
imagebuilder: runtime ready after 41.12 s
imagebuilder: kubelet not started: there is no /var/lib/kubelet/config.yaml
imagebuilder: kubelet healthy after 181.48 s
imagebuilder: pods ready after 202.91 s (1 pods)
"""
SHOWN = """Id=containerd.service
InactiveExitTimestampMonotonic=33318116
ActiveEnterTimestampMonotonic=39522138

Id=NetworkManager.service
InactiveExitTimestampMonotonic=0
ActiveEnterTimestampMonotonic=0

Id=kubelet.service
ActiveEnterTimestampMonotonic=175500000
InactiveExitTimestampMonotonic=175400000
"""
SAID = {"analyze": ANALYZE, "report": REPORT, "units": SHOWN}
UEFI = "Startup finished in 2.5s (firmware) + 1.0s (loader) + 3s (kernel) + 4s (initrd) + 5s (userspace) = 15.5s\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1min 22.497s", 82.497), ("783ms", 0.783), ("1h 2min 3s", 3723.0), ("12us", 12e-6), ("soon", 0.0), ("", 0.0)],
)
def test_a_duration_is_read_as_systemd_spells_it(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


def test_each_part_of_a_start_is_read() -> None:
    assert startup(ANALYZE) == {"kernel": 12.783, "userspace": pytest.approx(82.497)}


def test_the_spans_are_in_order_and_since_power_on() -> None:
    assert timeline(4.0, SAID, {"apply": 170.0, "applied": 186.0}) == (
        Span(name="firmware and boot loader", start=0.0, end=4.0),
        Span(name="kernel", start=4.0, end=16.78),
        Span(name="userspace", start=16.78, end=99.28),
        Span(name="containerd", start=37.32, end=43.52),
        Span(name="data package", start=170.0, end=186.0),
        Span(name="kubelet", start=179.4, end=179.5),
        Span(name="kubelet healthy", start=179.4, end=185.48),
        Span(name="static pods", start=185.48, end=206.91),
    )


def test_the_time_in_which_a_node_waited_for_its_package_is_not_the_images() -> None:
    agent = "\n\nId=imagebuilder-agent-local.service\nInactiveExitTimestampMonotonic=9000000\n"
    said = SAID | {"units": f"{SHOWN}{agent}ActiveEnterTimestampMonotonic=11000000\n"}
    waiting = timeline(4.0, said, {"apply": 170.0, "applied": 186.0})
    assert healthy_after(waiting) == pytest.approx(185.48 - (170.0 - 15.0))
    assert healthy_after(timeline(4.0, said, {})) == 185.48, "one that has its own configuration waits for nothing"
    assert healthy_after(timeline(4.0, {}, {})) is None


def test_firmware_and_boot_loader_are_two_where_they_are_told_apart() -> None:
    spans = timeline(3.7, {"analyze": UEFI}, {})
    assert [(one.name, one.start, one.end) for one in spans] == [
        ("firmware", 0.0, 2.5), ("boot loader", 2.5, 3.7), ("kernel", 3.7, 6.7), ("initrd", 6.7, 10.7),
        ("userspace", 10.7, 15.7),
    ]  # fmt: skip


def test_a_guest_that_says_nothing_has_only_what_the_host_measured() -> None:
    assert timeline(4.0, {}, {}) == (Span(name="firmware and boot loader", start=0.0, end=4.0),)


@pytest.mark.parametrize(
    "units",
    [
        pytest.param("Id=a.service\nInactiveExitTimestampMonotonic=x\nActiveEnterTimestampMonotonic=1", id="no-number"),
        pytest.param(f"Id=a\nInactiveExitTimestampMonotonic=1\nActiveEnterTimestampMonotonic={'9' * 5000}", id="huge"),
        pytest.param("Id=a\nInactiveExitTimestampMonotonic=2\nActiveEnterTimestampMonotonic=1", id="backwards"),
        pytest.param("Id=\nInactiveExitTimestampMonotonic=1\nActiveEnterTimestampMonotonic=2", id="no-name"),
    ],
)
def test_a_unit_without_usable_times_has_no_span(units: str) -> None:
    assert len(timeline(4.0, {"units": units}, {})) == 1


def test_a_unit_that_is_shown_twice_by_its_alias_is_one() -> None:
    assert timeline(4.0, {**SAID, "units": f"{SHOWN}\n{SHOWN}"}, {}) == timeline(4.0, SAID, {})


def test_the_units_are_those_that_bring_a_node_up() -> None:
    assert {"containerd", "docker", "kubelet", "imagebuilder-agent-local"} <= set(UNITS)
