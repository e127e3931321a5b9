"""What the console's reader makes of a growing serial log."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder.errors import BootError
from imagebuilder.vm.boot import NOT_STARTED, PATTERNS, STAGES
from imagebuilder.vm.console import LINE_LIMIT, READ_SIZE, TAIL_LINES, Console, clean, fatal


def test_a_log_that_is_not_there_yet_gives_nothing(tmp_path: Path) -> None:
    console = Console(tmp_path / "log")
    assert console.poll() == []
    assert console.tail() == ""


def test_lines_come_when_complete_and_the_prompt_is_seen_unfinished(tmp_path: Path) -> None:
    log = tmp_path / "log"
    console = Console(log)
    log.write_bytes(b"one\r\ntw")
    assert console.poll() == ["one"]
    assert console.partial == "tw"
    with log.open("ab") as stream:
        stream.write(b"o\r\n\r\nnode login: ")
    assert console.poll() == ["two"]
    assert console.partial == "node login: "
    assert console.poll() == []
    assert console.tail() == "one\ntwo\nnode login: "


def test_pieces_of_any_size_give_the_same_lines(tmp_path: Path) -> None:
    data = "\x1b[0;32m  OK  \x1b[0m Stärted\r\n\x1b]0;title\x07x\x1b[2J\x1b[01;01HBdsDxe: go\r\n".encode()
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    whole.write_bytes(data)
    pieces.write_bytes(b"")
    console, lines = Console(pieces), []
    for index in range(len(data)):
        with pieces.open("ab") as stream:
            stream.write(data[index : index + 1])
        lines += console.poll()
    assert lines == Console(whole).drain() == ["  OK   Stärted", "x", "BdsDxe: go"]


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        pytest.param("\x1b[1;31mred\x1b[0m", "red", id="colour"),
        pytest.param("a\x1b[2Jb", "a\nb", id="cleared screen"),
        pytest.param("\x1bc\x1b[?7lhello", "hello", id="reset and private mode"),
        pytest.param("a\x00\x07b\x7f", "ab", id="control characters"),
        pytest.param("[ *  ]\r[  * ]", "[ *  ]\n[  * ]", id="carriage return"),
    ],
)
def test_terminal_codes_are_removed(raw: str, plain: str) -> None:
    assert clean(raw) == plain


def test_one_poll_reads_a_bounded_piece(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 99 + b"\n" + b"y" * READ_SIZE * 2)
    console = Console(log)
    console.poll()
    assert console.size == READ_SIZE
    assert len(console.partial) <= LINE_LIMIT
    console.drain()
    assert console.size == log.stat().st_size
    assert len(console.tail().splitlines()) <= TAIL_LINES + 1


def test_an_escape_that_never_ends_is_not_kept_for_ever(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\x1b]" + b"a" * 5000 + b"\nimagebuilder: kubelet healthy\n")
    assert "imagebuilder: kubelet healthy" in Console(log).drain()


def test_a_log_beyond_its_limit_ends_the_boot(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x\n" * (1 << 20))
    with pytest.raises(BootError, match="more than 1 MiB") as caught:
        Console(log, limit=1 << 20).drain()
    assert str(log) in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs",
        "No bootable device.",
        'BdsDxe: starting Boot0002 "EFI Internal Shell" from Fv(7CB8BDC9)',
        "error: no such device: 4b1c-22.",
        "error: ../../grub-core/commands/search.c:315:no such device: 4b1c-22.",
        "grub rescue> ",
        "grub> ",
        "(initramfs) ",
        "ALERT!  UUID=4b1c does not exist.  Dropping to a shell!",
        "You are in emergency mode. After logging in, type ...",
        "[FAILED] Failed to start emergency.service - emergency mode.",
        "Press Enter for maintenance",
    ],
)
def test_lines_after_which_nothing_comes(line: str) -> None:
    assert fatal(line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Booting from Hard Disk...",
        "[FAILED] Failed to start chrony.service - chrony.",
        "echo (initramfs) is a word",
        "udev: some error: no such device here",
        'BdsDxe: starting Boot0001 "UEFI Misc Device" from PciRoot(0x0)',
    ],
)
def test_lines_that_mean_nothing(line: str) -> None:
    assert not fatal(line)


@pytest.mark.parametrize(
    ("line", "stages"),
    [
        pytest.param("imagebuilder: runtime ready after 21.3 s", {"runtime"}, id="runtime"),
        pytest.param("[  33.2] imagebuilder: kubelet healthy after 33.2 s", {"kubelet"}, id="kmsg"),
        pytest.param("imagebuilder: pods ready after 40.1 s (1 pods)", {"pods"}, id="pods"),
        pytest.param("node-1 login: ", {"login"}, id="prompt"),
        pytest.param("node-1 login:", {"login"}, id="prompt as a line"),
        pytest.param("node-1 login: imagebuilder: kubelet healthy after 33.2 s", {"login", "kubelet"}, id="both"),
        pytest.param("imagebuilder: kubelet not started: no configuration", set(), id="not started"),
        pytest.param("systemd-logind: new login: none", set(), id="another login"),
    ],
)
def test_stages_are_told_by_their_lines(line: str, stages: set[str]) -> None:
    assert {name for name in STAGES if PATTERNS[name].search(line)} == stages


def test_the_reason_for_no_kubelet_is_taken_whole() -> None:
    match = NOT_STARTED.search("[ 3.0] imagebuilder: kubelet not started: no /var/lib/kubelet/config.yaml")
    assert match is not None
    assert match[1] == "kubelet not started: no /var/lib/kubelet/config.yaml"
