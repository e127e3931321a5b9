"""What apt prints, and what it says when it fails; nothing is started."""

from __future__ import annotations

import math
import os
import urllib.parse
from dataclasses import replace
from pathlib import Path

import pytest
from fake_runner import Failed, FakeRunner
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.content import sha256_bytes
from imagebuilder.errors import (
    CommandError,
    DeadlineError,
    HostError,
    ImagebuilderError,
    ToolMissingError,
    UnreachableError,
    UnresolvableError,
    UntrustedError,
)
from imagebuilder.events import Stage, Tape
from imagebuilder.model import LockedPackage
from imagebuilder.sources.apt import (
    PREPARED,
    SKEW_SECONDS,
    UPDATED,
    AptFolder,
    Archive,
    by_layer,
    folder_key,
)  # fmt: skip
from imagebuilder.sources.aptdates import goes_back
from imagebuilder.sources.aptmessages import explained
from imagebuilder.sources.apturis import PACKAGE_LIMIT, parse_uris
from imagebuilder.sources.debs import check_package, make_repository

SHA = "0123456789abcdef" * 4
ARCHIVE = Archive(name="debian", suite="tiny", arch="amd64", components=("main",), keyring="/nonexistent/tiny.gpg")
NAMES = st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,20}", fullmatch=True)
VERSIONS = st.from_regex(r"([1-9]:)?[0-9][A-Za-z0-9.+~-]{0,15}", fullmatch=True)
PACKAGES = st.builds(
    LockedPackage,
    name=NAMES, version=VERSIONS, arch=st.sampled_from(["amd64", "arm64", "all"]), filename=st.just(""),
    uri=st.from_regex(r"https?://[a-z.]{1,9}/[A-Za-z0-9%+_./-]{0,40}", fullmatch=True),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True), size=st.integers(min_value=0, max_value=PACKAGE_LIMIT),
)  # fmt: skip


def package(name: str, version: str = "1.0", arch: str = "amd64", **more: object) -> LockedPackage:
    made = LockedPackage(
        name=name, version=version, arch=arch, filename=f"{name}_{version.replace(':', '%3a')}_{arch}.deb",
        uri=f"http://mirror.example/{name}", sha256=SHA, size=5,
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def line(item: LockedPackage) -> str:
    return f"'{item.uri}' {item.filename} {item.size} SHA256:{item.sha256}"


# --- parse_uris


@given(st.lists(PACKAGES, max_size=8, unique_by=lambda item: (item.name, item.arch)))
def test_what_apt_prints_is_read_back(packages: list[LockedPackage]) -> None:
    named = [
        replace(item, filename=f"{item.name}_{urllib.parse.quote(item.version, safe='+~')}_{item.arch}.deb")
        for item in packages
    ]
    text = "Reading package lists...\n" + "".join(f"{line(item)}\n" for item in named)
    assert parse_uris(text) == tuple(sorted(named, key=lambda item: (item.name, item.arch)))


@given(st.text(max_size=200))
def test_any_text_is_refused_or_gives_packages_that_are_plain_names(text: str) -> None:
    try:
        found = parse_uris(text)
    except UntrustedError:
        return
    assert all("/" not in item.filename and not item.filename.startswith(".") for item in found)


def test_an_epoch_is_quoted_in_the_file_name_only() -> None:
    (found,) = parse_uris(f"'http://m/d/docker-ce_29.1_amd64.deb' docker-ce_5%3a29.1~x+1_amd64.deb 7 SHA256:{SHA}")
    assert (found.name, found.version, found.filename) == (
        "docker-ce", "5:29.1~x+1", "docker-ce_5%3a29.1~x+1_amd64.deb"
    )  # fmt: skip
    assert (found.arch, found.size, found.sha256) == ("amd64", 7, SHA)


def test_other_lines_are_not_packages() -> None:
    assert parse_uris("") == ()
    assert parse_uris("Reading package lists...\nThe following NEW packages will be installed:\n  kubelet\n") == ()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("'http://m/a' a_1_amd64.deb 7 ", id="no-hash"),
        pytest.param("'http://m/a' a_1_amd64.deb 7", id="no-hash-field"),
        pytest.param(f"'http://m/a' a_1_amd64.deb 7 MD5Sum:{SHA[:32]}", id="md5"),
        pytest.param(f"'http://m/a' a_1_amd64.deb 7 SHA1:{SHA[:40]}", id="sha1"),
        pytest.param(f"'http://m/a' a_1_amd64.deb 7 SHA512:{SHA}{SHA}", id="sha512"),
        pytest.param(f"'http://m/a' a_1_amd64.deb 7 SHA256:{SHA[:-1]}", id="cut-short"),
        pytest.param(f"'http://m/a' a_1_amd64.deb 7 SHA256:{SHA.upper()}", id="upper-case"),
        pytest.param(f"'http://m/a' ../../etc/a_1_amd64.deb 7 SHA256:{SHA}", id="path"),
        pytest.param(f"'http://m/a' .a_1_amd64.deb 7 SHA256:{SHA}", id="hidden"),
        pytest.param(f"'http://m/a' a_1/2_amd64.deb 7 SHA256:{SHA}", id="path-in-version"),
        pytest.param(f"'http://m/a' a_1_amd64.deb -7 SHA256:{SHA}", id="negative"),
        pytest.param(f"'http://m/a' a_1_amd64.deb {'9' * 40} SHA256:{SHA}", id="huge-number"),
        pytest.param(f"'http://m/a' a_1_amd64.rpm 7 SHA256:{SHA}", id="no-deb"),
    ],
)
def test_a_line_that_cannot_be_trusted_is_never_left_out_silently(text: str) -> None:
    with pytest.raises(UntrustedError, match="no SHA256 for a package") as caught:
        parse_uris(f"{line(package('good'))}\n{text}\n")
    assert caught.value.context == text
    assert "--mirror" in caught.value.hint


def test_a_package_larger_than_any_is_refused() -> None:
    assert parse_uris(line(package("a", size=PACKAGE_LIMIT)))[0].size == PACKAGE_LIMIT
    with pytest.raises(UntrustedError, match=r"says that a_1[.]0_amd64[.]deb has 1073741825 bytes"):
        parse_uris(line(package("a", size=PACKAGE_LIMIT + 1)))


# --- explained: texts of apt 2.6 (Debian 12) and 3.0 (Debian 13), as they were printed

NO_KEY_26 = """Err:1 http://deb.example/debian trixie InRelease
  The following signatures couldn't be verified because the public key is not available: NO_PUBKEY DD2C420336431BF9
E: The repository 'http://deb.example/debian trixie InRelease' is not signed.
E: mmdebstrap failed to run"""
NO_KEY_30 = """Err:1 http://deb.example/debian trixie InRelease
  Sub-process /usr/bin/sqv returned an error code (1), error message is: Missing key 763F8F00, which is needed to \
verify signature.
Warning: OpenPGP signature verification failed: http://deb.example/debian trixie InRelease: Sub-process /usr/bin/sqv \
returned an error code (1), error message is: Missing key 763F8F00, which is needed to verify signature.
Error: The repository 'http://deb.example/debian trixie InRelease' is not signed.
Notice: Updating from such a repository can't be done securely, and is therefore disabled by default."""
CHANGED_30 = "Error: Failed to fetch http://m/InRelease  Sub-process /usr/bin/sqv returned an error code (1), error \
message is: Message has been manipulated"
EXPIRED = "E: Release file for http://m/dists/trixie/InRelease is expired (invalid since 3d 2h). Updates for this \
repository will not be applied."
TOO_NEW = "E: Release file for http://m/dists/trixie/InRelease is not valid yet (invalid for another 2h 4min 11s). \
Updates for this repository will not be applied."
HASH = """E: Failed to fetch http://m/main/binary-amd64/Packages  Hash Sum mismatch
   Hashes of expected file:
    - Filesize:1008 [weak]
    - SHA256:9af21bf54f5235e30ecbfed2fe14cf01c138bc23c6b839726be97f6a98cf231a
   Hashes of received file:
    - SHA256:62932c5d2a590e0111fe7cfd9c40f39755814a9dedf4648a153c5d0578cbb7ae
E: Some index files failed to download. They have been ignored, or old ones used instead."""
SIZE = "E: Failed to fetch http://m/Packages.xz  File has unexpected size (8784 != 8790). Mirror sync in progress?"
UNMET = """The following packages have unmet dependencies:
 kubelet : Depends: libc6 (>= 3) but 2.36-9 is to be installed
E: Unable to correct problems, you have held broken packages."""
UNMET_30 = """Error: Unable to satisfy dependencies. Reached two conflicting assignments:
   1. kubelet:amd64=1.35.8 is selected for install
   2. kubelet:amd64 Depends libc6 (>= 3)
      but none of the choices are installable:
      [no choices]"""
REFUSED = (
    "E: Failed to fetch http://m/InRelease  Could not connect to m:80 (10.0.0.1). - connect (111: Connection refused)"
)
TIMEOUT = "E: Failed to fetch http://m/InRelease  Could not connect to m:80 (10.0.0.1), connection timed out"
NO_NAME = "E: Failed to fetch http://m/InRelease  Could not resolve 'm'"
SILENT = "E: Failed to fetch http://m/InRelease  Connection failed [IP: 10.0.0.1 80]"
NO_NET = (
    "E: Failed to fetch http://m/InRelease  Cannot initiate the connection to m:80 (fd00::1). - connect (101: Network \
is unreachable)"
)
NO_SUITE = """  404  Not Found [IP: 10.0.0.1 80]
E: The repository 'http://m/debian nosuch Release' does not have a Release file."""
GONE = "E: Failed to fetch http://m/pool/a_1_amd64.deb  404  Not Found [IP: 10.0.0.1 80]"
FORBIDDEN = "E: Failed to fetch http://m/debian/dists/trixie/InRelease  403  Forbidden [IP: 10.0.0.1 80]"


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        pytest.param(NO_KEY_26, UntrustedError, "without a valid signature", id="no-key-2.6"),
        pytest.param(NO_KEY_30, UntrustedError, "without a valid signature", id="no-key-3.0"),
        pytest.param(CHANGED_30, UntrustedError, "without a valid signature", id="changed-3.0"),
        pytest.param(EXPIRED, UntrustedError, "no longer valid", id="expired"),
        pytest.param(TOO_NEW, UntrustedError, "from the future", id="not-yet-valid"),
        pytest.param("E: write (28: No space left on device)", HostError, "more than there is space", id="full-disk"),
        pytest.param(HASH, UntrustedError, "hash is not the one", id="hash"),
        pytest.param(SIZE, UntrustedError, "hash is not the one", id="size"),
        pytest.param("E: Unable to locate package kubelett", UnresolvableError, "asked for", id="unknown"),
        pytest.param("Error: Unable to locate package kubelett", UnresolvableError, "asked for", id="unknown-3.0"),
        pytest.param("E: Package 'x' has no installation candidate", UnresolvableError, "asked for", id="no-candidate"),
        pytest.param("E: Version '7' for 'x' was not found", UnresolvableError, "asked for", id="version"),
        pytest.param(UNMET, UnresolvableError, "asked for", id="unmet-2.6"),
        pytest.param(UNMET_30, UnresolvableError, "asked for", id="unmet-3.0"),
        pytest.param(REFUSED, UnreachableError, "out of reach", id="refused"),
        pytest.param(TIMEOUT, UnreachableError, "out of reach", id="timeout"),
        pytest.param(NO_NAME, UnreachableError, "out of reach", id="no-name"),
        pytest.param(SILENT, UnreachableError, "out of reach", id="silent"),
        pytest.param(NO_NET, UnreachableError, "out of reach", id="no-network"),
        pytest.param(NO_SUITE, UnresolvableError, "should have", id="no-suite"),
        pytest.param(GONE, UnresolvableError, "should have", id="gone"),
        pytest.param(FORBIDDEN, UnreachableError, "does not give", id="forbidden"),
    ],
)
def test_what_apt_says_is_explained(said: str, kind: type[ImagebuilderError], message: str) -> None:
    with pytest.raises(kind) as caught, explained("http://user:secret@mirror.example/debian"):
        raise CommandError("apt-get ended with exit code 100", context=f"{said}\ncommand: apt-get is not signed")
    error = caught.value
    assert type(error) is kind
    assert error.message.startswith("http://mirror.example/debian ")
    assert message in error.message
    assert error.hint
    assert "command: " not in error.context
    assert "mmdebstrap failed" not in error.context
    assert error.context


def test_a_wrong_hash_shows_what_was_expected_and_what_came() -> None:
    with pytest.raises(UntrustedError) as caught, explained("m"):
        raise CommandError("apt-get ended", context=HASH)
    assert caught.value.context == HASH.rpartition("\n")[0]


def test_unmet_dependencies_are_shown() -> None:
    with pytest.raises(UnresolvableError) as caught, explained("m"):
        raise CommandError("apt-get ended", context=UNMET)
    assert " kubelet : Depends: libc6 (>= 3) but 2.36-9 is to be installed" in caught.value.context


def test_what_is_not_known_is_passed_on() -> None:
    error = CommandError("dpkg died", context="E: disk full")
    with pytest.raises(CommandError) as caught, explained("m"):
        raise error
    assert caught.value is error


def test_a_mirror_that_does_not_come_to_an_end_is_too_slow() -> None:
    with pytest.raises(UnreachableError, match="m is too slow: it was given up") as caught, explained("m"):
        raise DeadlineError("apt-get was still running after 120 s and was ended")
    assert (caught.value.context[:21], "--mirror" in caught.value.hint) == ("apt-get was still run", True)


@pytest.mark.parametrize("said", [EXPIRED, TOO_NEW, NO_KEY_30], ids=["expired", "not-yet-valid", "signature"])
def test_what_may_be_the_clocks_fault_says_what_the_clock_says(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 86400.0)
    with pytest.raises(UntrustedError) as caught, explained("m"):
        raise CommandError("apt-get ended", context=said)
    assert "clock" in f"{caught.value.message} {caught.value.hint}"
    assert "it says 1970-01-02 00:00 UTC" in caught.value.hint


BEFORE = {"m_InRelease": "Sat, 15 Aug 2026 08:00:00 UTC", "n_InRelease": "Sat, 15 Aug 2026 08:00:00 UTC"}


def test_dates_of_indexes_do_not_go_back() -> None:
    assert not goes_back({}, BEFORE, "m")
    assert not goes_back(BEFORE, BEFORE, "m")
    assert not goes_back(BEFORE, {"m_InRelease": "Sun, 16 Aug 2026 08:00:00 UTC"}, "m")
    assert goes_back(BEFORE, BEFORE | {"n_InRelease": "Fri, 14 Aug 2026 08:00:00 UTC"}, "m"), "servers lag a little"
    with pytest.raises(
        UntrustedError, match="m gives an index that is older than the one that it gave before"
    ) as caught:
        goes_back(BEFORE, BEFORE | {"n_InRelease": "Wed, 12 Aug 2026 08:00:00 UTC"}, "m")
    assert caught.value.context.endswith("now:    Wed, 12 Aug 2026 08:00:00 UTC")
    assert "--mirror" in caught.value.hint
    with pytest.raises(UntrustedError):
        goes_back(BEFORE, {"m_InRelease": "no date"}, "m")


def test_an_index_that_was_fetched_in_the_future_is_fetched_again(tmp_path: Path) -> None:
    made = folder(tmp_path, FakeRunner())
    made.path.mkdir(parents=True, exist_ok=True)
    (made.path / UPDATED).touch()
    assert made.age() < SKEW_SECONDS
    os.utime(made.path / UPDATED, (2_300_000_000, 2_300_000_000))
    assert made.age() == math.inf


def test_the_words_of_the_command_are_no_reason() -> None:
    with pytest.raises(CommandError), explained("m"):
        raise CommandError("apt-get ended", context="E: no space\ncommand: apt-get install was-not-found unreachable")


# --- AptFolder with a strict runner


def folder(tmp_path: Path, runner: FakeRunner) -> AptFolder:
    path = tmp_path / "apt"
    path.mkdir()
    return AptFolder(path, ARCHIVE, runner)


CONFIG = {("apt-config",): 'Acquire::http::Proxy "http://proxy:3128";\nAcquire::http::Timeout "30";\n'}


def test_solve_asks_once_per_index(tmp_path: Path) -> None:
    runner = FakeRunner({**CONFIG, ("install",): f"Reading...\n{line(package('kubelet'))}\n"})
    made = folder(tmp_path, runner)
    assert made.solve(["?essential", "kubelet"]) == made.solve(["?essential", "kubelet"]) == (package("kubelet"),)
    assert runner.commands[-1] == ["apt-get", "-q", "--print-uris", "-y", "install", "?essential", "kubelet"]
    assert runner.folders[-1] == made.path
    assert len([words for words in runner.commands if words[0] == "apt-get"]) == 1
    made.solve(["kubelet"])
    assert len([words for words in runner.commands if words[0] == "apt-get"]) == 2


def test_indexes_are_read_once_for_all_questions(tmp_path: Path) -> None:
    def read(_: list[str]) -> str:
        (made.path / PREPARED).parent.mkdir(parents=True)
        (made.path / PREPARED).touch()
        return ""

    runner = FakeRunner({**CONFIG, ("gencaches",): read})
    made = folder(tmp_path, runner)
    made.prepare()
    made.prepare()
    assert [words for words in runner.commands if words[0] == "apt-cache"] == [["apt-cache", "-q", "gencaches"]]


def test_indexes_that_cannot_be_read_fail_the_question_not_what_goes_before(tmp_path: Path) -> None:
    def fail(_: list[str]) -> str:
        raise Failed("E: The package lists or status file could not be parsed")

    folder(tmp_path, FakeRunner({**CONFIG, ("gencaches",): fail})).prepare()


def test_indexes_are_fetched_into_a_new_folder_and_not_read_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What apt makes of them names the folder, which is renamed: it would read all anew, for each question."""
    monkeypatch.setattr("imagebuilder.process.require", lambda program, *, package: Path("/usr/bin", program))
    monkeypatch.setattr("imagebuilder.sources.apt.goes_back", lambda *_: False)
    (tmp_path / "key.gpg").touch()

    def bootstrap(words: list[str]) -> str:
        Path(words[-1]).mkdir()
        return ""

    runner = FakeRunner({**CONFIG, ("mmdebstrap",): bootstrap, ("update",): ""})
    made = AptFolder(tmp_path / "apt", replace(ARCHIVE, keyring=str(tmp_path / "key.gpg")), runner)
    made.update(tmp_path / "log")
    assert made.age() < 60
    assert [path.name for path in made.path.iterdir()] == [UPDATED]
    said = [words[words.index("apt-get") :] for words in runner.commands if "apt-get" in words]
    assert said == [
        [
            "apt-get", "-q", "-o", f"Dir::Etc::trusted={tmp_path}/key.gpg", "-o", "APT::Sandbox::User=_apt",
            "-o", "pkgCacheFile::Generate=false", "update",
        ]
    ]  # fmt: skip


def test_a_named_mirrors_keyring_is_read_by_who_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's umask may close it to any other user, such as _apt; "root" stands in the folder's configuration."""
    monkeypatch.setattr("imagebuilder.sources.apt.goes_back", lambda *_: False)
    (tmp_path / "key.gpg").write_bytes(b"key")
    runner = FakeRunner({**CONFIG, ("update",): ""})
    archive = replace(ARCHIVE, keyring=str(tmp_path / "key.gpg"), mirror=f"file:{tmp_path}")
    made = AptFolder(tmp_path / "apt", archive, runner)
    made.update(tmp_path / "log")
    assert (made.path / "etc/apt/trusted.gpg.d/archive.gpg").read_bytes() == b"key"
    (words,) = [words for words in runner.commands if "update" in words]
    assert not [word for word in words if "Sandbox::User" in word]


def test_a_failed_question_is_not_remembered(tmp_path: Path) -> None:
    def fail(_: list[str]) -> str:
        raise Failed("E: Unable to locate package kubelett")

    runner = FakeRunner({**CONFIG, ("install",): fail})
    made = folder(tmp_path, runner)
    for _ in range(2):
        with pytest.raises(UnresolvableError, match="the archive of tiny does not have"):
            made.solve(["kubelett"])
    assert len([words for words in runner.commands if words[0] == "apt-get"]) == 2


def test_an_answer_that_cannot_be_trusted_is_not_remembered(tmp_path: Path) -> None:
    runner = FakeRunner({**CONFIG, ("install",): "'http://m/a' a_1_amd64.deb 7 MD5Sum:00\n"})
    made = folder(tmp_path, runner)
    for _ in range(2):
        with pytest.raises(UntrustedError):
            made.solve(["a"])


def test_the_hosts_proxy_is_used_and_nothing_else_of_its_configuration(tmp_path: Path) -> None:
    made = folder(tmp_path, FakeRunner({**CONFIG, ("download",): ""}))
    made.find(["a"])
    (config,) = (path.read_text() for path in made.path.glob("*apt.conf"))
    assert 'Acquire::http::Proxy "http://proxy:3128";' in config or "proxy" not in config  # where apt-config exists
    assert 'Acquire::http::Timeout "5";' in config
    assert '"30"' not in config


def test_update_wants_the_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebuilder.process.require", lambda program, *, package: Path("/usr/bin", program))
    runner = FakeRunner()
    with pytest.raises(ToolMissingError, match=r"/nonexistent/tiny[.]gpg is not on this host"):
        folder(tmp_path, runner).update(tmp_path / "log")
    assert runner.commands == []


def test_fetch_asks_for_exact_versions_of_what_is_missing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    wanted = [package("a", "1:2"), package("b", arch="all"), package("here")]
    (store / "here_1.0_amd64.deb").write_bytes(b"there")

    def download(_: list[str]) -> str:
        for item in wanted[:2]:
            (next(store.glob(".incoming*")) / item.filename).write_bytes(b"other")
        return "Get:1 http://m a\nGet:2 http://m b"

    runner = FakeRunner({**CONFIG, ("download",): download})
    tape = Tape()
    with pytest.raises(UntrustedError, match=r"a_1%3a2_amd64[.]deb is not the file that the lock names"):
        folder(tmp_path, runner).fetch(wanted, store, Stage(tape, "fetch"), tmp_path / "log")
    assert runner.commands[-1][-5:] == ["apt-get", "-q", "download", "a:amd64=1:2", "b=1.0"]
    assert [(event.done, event.total) for event in tape.events] == [(1, 2), (2, 2)]
    assert [path.name for path in store.iterdir()] == ["here_1.0_amd64.deb"]


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        pytest.param(["Sat, 15 Aug 2026 08:00:00 UTC"], 1786780800, id="one"),
        pytest.param(["Sat, 15 Aug 2026 08:00:00 UTC", "Fri, 14 Aug 2026 23:00:00 UTC"], 1786780800, id="newest"),
        pytest.param(["no date"], 0, id="broken"),
        pytest.param([], 0, id="none"),
    ],
)
def test_the_epoch_is_the_date_of_the_newest_index(tmp_path: Path, dates: list[str], expected: int) -> None:
    made = folder(tmp_path, FakeRunner())
    lists = made.path / "var/lib/apt/lists"
    lists.mkdir(parents=True)
    for number, date in enumerate(dates):
        (lists / f"m_{number}_InRelease").write_text(f"Suite: x\nDate: {date}\n")
    assert made.epoch() == expected


def test_folders_of_different_mirrors_are_apart() -> None:
    one, other = ARCHIVE, replace(ARCHIVE, mirror="http://mirror.example/debian")
    assert folder_key(one) != folder_key(other)
    assert folder_key(one).startswith("tiny-amd64-")
    assert "/" not in folder_key(other)


def test_by_layer_takes_away_what_is_below() -> None:
    a, b, c = package("a"), package("b"), package("c")
    below = {"runtime": "base", "site": "runtime", "tools": "base"}
    solved = {"base": (a,), "runtime": (a, b), "site": (a, b), "tools": (a, c)}
    assert by_layer(solved, below) == {"base": (a,), "runtime": (b,), "site": (), "tools": (c,)}
    newer = package("a", "2.0")
    assert by_layer({"base": (a,), "runtime": (newer,)}, below)["runtime"] == (newer,)


# --- debs


def test_a_package_is_checked_and_a_wrong_one_removed(tmp_path: Path) -> None:
    path = tmp_path / "a_1.0_amd64.deb"
    for data in (b"other", b"longer than five"):
        path.write_bytes(data)
        with pytest.raises(UntrustedError, match="is not the file that the lock names"):
            check_package(path, package("a"))
        assert not path.exists()
    with pytest.raises(UntrustedError):
        check_package(path, package("a"))


def test_a_repository_is_made_of_checked_files_only(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "a_1.0_amd64.deb").write_bytes(b"other")
    runner = FakeRunner()
    with pytest.raises(UntrustedError):
        make_repository([package("a")], store, "tiny", tmp_path / "out", runner)
    assert runner.commands == []
    assert list((tmp_path / "out").iterdir()) == []


def test_a_package_that_only_dpkg_reads_is_in_the_repositorys_index(tmp_path: Path) -> None:
    odd = package("a", sha256=sha256_bytes(b"an odd"), size=6)
    (tmp_path / odd.filename).write_bytes(b"an odd")
    asked = FakeRunner({("dpkg-deb", "--field"): "Package: a\nVersion: 1.0\n"})
    make_repository([odd], tmp_path, "tiny", tmp_path / "out", asked)
    text = f"Package: a\nVersion: 1.0\nFilename: ./{odd.filename}\nSize: 6\nSHA256: {odd.sha256}\n"
    assert (tmp_path / "out/Packages").read_text() == text


def test_a_repository_that_is_empty_has_an_index(tmp_path: Path) -> None:
    make_repository([], tmp_path, "tiny", tmp_path / "out", FakeRunner())
    assert (tmp_path / "out/Packages").read_bytes() == b""
    assert "Suite: tiny\n" in (tmp_path / "out/Release").read_text()
