"""The commands that put a program into namespaces and a root tree: argument lists, escapes, environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder import userns
from imagebuilder.direct import sandbox
from imagebuilder.direct.sandbox import PATH, SCRIPT, Bind, Mount, Overlay, Tmpfs, command
from imagebuilder.process import namespaces

CLEAN = ["/usr/bin/env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", f"PATH={PATH}", "TZ=UTC"]
PARTS = {"--mount", "--pid", "--uts", "--ipc", "--net"}


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        pytest.param(
            Overlay(lower=[Path("/l/2"), Path("/l/1")], upper=Path("/u"), work=Path("/w")),
            ["overlay", "/", "/l/2:/l/1", "/u", "/w"], id="overlay",
        ),
        pytest.param(Overlay(lower=[Path("/l")], target="/image"), ["overlay-ro", "/image", "/l"], id="read-only"),
        pytest.param(Bind(source=Path("/s"), target="/t"), ["robind", "/s", "/t"], id="bind"),
        pytest.param(Bind(source=Path("/s"), target="/t", writable=True), ["bind", "/s", "/t"], id="writable"),
        pytest.param(Bind(source=Path("/a,b:c\\d e"), target="/t"), ["robind", "/a,b:c\\d e", "/t"], id="no escape"),
        pytest.param(Tmpfs(target="/run"), ["tmpfs", "/run"], id="tmpfs"),
        pytest.param(
            Overlay(lower=[Path("/a:b"), Path("/c,d"), Path("/e\\f")], upper=Path("/u:,\\"), work=Path("/w")),
            ["overlay", "/", r"/a\:b:/c\,d:/e\\f", r"/u\:\,\\", "/w"], id="escaped",
        ),
    ],
)  # fmt: skip
def test_mounts_as_words(mount: Mount, words: list[str]) -> None:
    assert mount.words() == words


def split(text: str, separator: str) -> list[str]:
    """Split at separators without a backslash before them, and take one backslash off, as overlayfs does."""
    found, escaped = [""], False
    for character in text:
        if escaped or character not in (separator, "\\"):
            found[-1] += character
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            found.append("")
    return found


@given(st.lists(st.text("ab:,\\= ", min_size=1), min_size=1))
def test_any_folder_name_survives_the_mount_options(names: list[str]) -> None:
    lower = [Path("/", name) for name in names]
    words = Overlay(lower=lower).words()
    assert split(words[2], ":") == [str(path) for path in lower]


def test_namespaces_end_with_their_command_and_have_no_network_unless_asked() -> None:
    for network in (False, True):
        words = namespaces(network=network)
        assert words[0] == "unshare"
        assert words[-1] == "--"
        assert PARTS & set(words) == (PARTS - {"--net"} if network else PARTS)
        assert "--fork" in words  # the command is process 1: with it ends everything in there
        assert "--kill-child=KILL" in words
        assert words[words.index("--propagation") + 1] == "private"


def test_a_command_has_a_clean_environment_and_its_mounts_in_order() -> None:
    mounts = [Tmpfs(target="/run"), Bind(source=Path("/s"), target="/run/x")]
    words = command(Path("/r"), mounts, ["/bin/sh", "-c", "true"])
    assert words[: len(namespaces())] == namespaces()
    assert words[len(namespaces()) :] == [
        "/bin/sh", str(SCRIPT), "/r", "", "tmpfs", "/run", "robind", "/s", "/run/x", "--", *CLEAN,
        "/bin/sh", "-c", "true",
    ]  # fmt: skip


def test_a_network_is_the_hosts_with_its_names_and_said_to_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (names := tmp_path / "resolv.conf").touch()
    monkeypatch.setattr(sandbox, "NAMES", (names, tmp_path / "hosts"))
    words = command(Path("/r"), [Tmpfs(target="/run")], ["true"], network=True)
    assert words[: len(namespaces(network=True))] == namespaces(network=True)
    mounts = words[len(namespaces(network=True)) + 4 : words.index("/usr/bin/env") - 1]
    assert mounts == ["network", "tmpfs", "/run", "robind", str(names), str(names)]


def test_overlays_are_marked_as_a_user_namespace_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userns, "mapped", lambda: True)
    assert command(Path("/r"), [], ["true"])[len(namespaces()) :][:4] == ["/bin/sh", str(SCRIPT), "/r", "userxattr"]


@pytest.fixture(autouse=True)
def _first_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userns, "mapped", lambda: False)


def test_nothing_of_this_process_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = command(Path("/r"), [], ["true"])
    monkeypatch.setenv("IB_LEAK", "secret")
    monkeypatch.setenv("PATH", "/somewhere")
    assert command(Path("/r"), [], ["true"]) == before


def test_given_variables_win_and_keep_their_odd_values() -> None:
    words = command(Path("/r"), [], ["true"], {"TZ": "Mars", "A": "b c=d\ne", "B": ""})
    start = words.index("-i") + 1
    assert words[start:-1] == ["A=b c=d\ne", "B=", "HOME=/root", "LC_ALL=C.UTF-8", f"PATH={PATH}", "TZ=Mars"]


def test_the_script_travels_with_the_package() -> None:
    assert SCRIPT.read_text().startswith("#!/bin/sh\n")
