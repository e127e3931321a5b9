"""Offline checks fail closed: what could not look has not passed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from imagebuilder.errors import ArtifactError
from imagebuilder.verify.booted import CHECKS as BOOTED
from imagebuilder.verify.model import FOUND_LINES, Found, Image, OfflineCheck, Outcome
from imagebuilder.verify.offline import CHECKS, files
from imagebuilder.verify.offline.people import VAGRANT
from imagebuilder.verify.offline.run import run_offline
from imagebuilder.verify.offline.system import kernel_settings, ssh_settings
from imagebuilder.verify.offline.units import unit_settings
from imagebuilder.verify.tree import Changed, Empty, Entry, Tree, file, in_memory, link
from tests.offline_image import good_image


class Broken(Empty):
    """A file system that is damaged wherever it is looked at."""

    def entry(self, path: str) -> Entry | None:
        raise ArtifactError("the file system is damaged")

    def names(self, path: str) -> list[str]:
        raise ArtifactError("the file system is damaged")


class Counting(Empty):
    """A tree that counts what it is asked."""

    asked = 0

    def entry(self, path: str) -> Entry | None:
        self.asked += 1
        return super().entry(path)


def check(run: object) -> OfflineCheck:
    return replace(CHECKS[0], run=run)  # type: ignore[arg-type]


def late(_: Image) -> Iterator[str]:
    yield "one"
    raise ZeroDivisionError("late")


def refuses(_: Image) -> Found:
    raise ArtifactError("cannot look", hint="a hint")


def endless(_: Image) -> Found:
    raise RecursionError


@pytest.mark.parametrize(
    ("run", "reason"), [(late, "ZeroDivisionError: late"), (refuses, "cannot look"), (endless, "RecursionError: ")]
)
def test_a_check_that_raises_has_not_run(run: object, reason: str) -> None:
    (result,) = run_offline(good_image(), [check(run)])
    assert (result.outcome, result.reason, result.found) == (Outcome.NOT_RUN, reason, ())
    assert not result.holds


def test_a_check_after_one_that_raises_runs() -> None:
    results = run_offline(good_image(), [check(refuses), check(lambda _: ["wrong"]), check(lambda _: [])])
    assert [result.outcome for result in results] == [Outcome.NOT_RUN, Outcome.FAILED, Outcome.PASSED]


def test_a_check_takes_the_time_that_the_clock_says() -> None:
    ticks = iter([1.0, 3.5])
    (result,) = run_offline(good_image(), [check(lambda _: [])], clock=lambda: next(ticks))
    assert result.seconds == 2.5


def test_what_is_found_is_limited() -> None:
    (result,) = run_offline(good_image(), [check(lambda _: [str(number) for number in range(1000)])])
    assert len(result.found) == FOUND_LINES + 1
    assert result.found[-1] == f"and {1000 - FOUND_LINES} more"


@pytest.mark.parametrize("family", ["debian", "redhat"])
def test_nothing_but_the_disk_passes_on_a_damaged_file_system(family: str) -> None:
    image = good_image(family)
    results = run_offline(replace(image, root=Broken(), esp=Broken()))
    assert {result.id for result in results if result.holds} == {"bios-code"}
    assert all(result.reason == "the file system is damaged" for result in results if not result.holds)


def test_an_image_with_nothing_in_it_fails_wherever_something_must_be() -> None:
    image = good_image()
    results = run_offline(replace(image, root=Empty(), esp=None))
    absences = {one.id for one in CHECKS if one.id.startswith("no-")} | {
        "setuid-known",
        "world-writable-known",
        "units-known",
    }
    passed = {result.id for result in results if result.holds}
    assert passed - absences == {"bios-code", "trust-is-public"}


def test_without_a_manifest_nothing_is_held_against_it() -> None:
    image = good_image()
    results = run_offline(replace(image, subject=replace(image.subject, manifest=None)))
    assert [result.id for result in results if not result.holds] == []
    assert "packages-as-stated" not in {result.id for result in results}


def test_a_manifest_that_lists_no_packages_proves_nothing() -> None:
    image = good_image()
    results = run_offline(replace(image, subject=replace(image.subject, manifest={"packages": []})))
    assert {one.id: one.outcome for one in results}["packages-as-stated"] is Outcome.NOT_RUN


def test_a_boot_file_system_of_its_own_is_not_passed_over() -> None:
    image = good_image()
    fstab = file(image.root.content("/etc/fstab", 9999) + b"UUID=1-2 /boot ext4 rw 0 2\n")
    results = run_offline(replace(image, root=Changed(image.root, {"/etc/fstab": fstab})))
    assert {result.id: result.outcome for result in results if not result.holds} == {
        "kernel-files": Outcome.NOT_RUN, "boot-menu": Outcome.NOT_RUN,
    }  # fmt: skip


def test_a_vagrant_user_is_wrong_in_every_other_image() -> None:
    image = good_image("debian", "vagrant-qemu")
    subject = good_image("debian", "qemu").subject
    results = run_offline(replace(image, subject=subject))
    assert {result.id for result in results if not result.holds} == {
        "no-build-user",
        "no-authorized-keys",
        "setuid-known",
    }


def test_another_key_of_the_vagrant_user_is_found() -> None:
    image = good_image("debian", "vagrant-qemu")
    keys = {f"/home/{VAGRANT}/.ssh/authorized_keys": file("ssh-ed25519 AAAA me\n")}
    results = run_offline(replace(image, root=Changed(image.root, keys)))
    assert {result.id for result in results if not result.holds} == {"no-authorized-keys"}


def test_checks_say_what_they_are() -> None:
    ids = [one.id for one in (*CHECKS, *BOOTED)]
    assert len(set(ids)) == len(ids), "a report and a waiver name a check by its id"
    for one in CHECKS:
        assert one.id == one.id.lower() and " " not in one.id
        assert one.link.startswith("https://"), one.id
        assert all(text.endswith(".") for text in (one.proves, one.why, one.fix)), one.id


def test_a_question_is_asked_once() -> None:
    tree = Counting()
    remembered = files.Remembered(tree)
    assert [remembered.entry("/x") for _ in range(9)] == [None] * 9
    assert tree.asked == 1


def test_a_file_system_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILES", 3)
    tree: Tree = files.Remembered(Empty())
    for number in range(3):
        tree.entry(f"/{number}")
    with pytest.raises(ArtifactError, match="more than 3 files"):
        tree.entry("/4")


def test_kernel_parameters_are_read_as_systemd_reads_them() -> None:
    tree = in_memory({
        "/usr/lib/sysctl.d/10-a.conf": file("a.b = 1\n-c/d.e = 2\nx.y =  1\t 2 \n; f.g = 3\nno value\n"),
        "/etc/sysctl.d/05-first.conf": file("a.b = 0\n"),
        "/usr/lib/sysctl.d/50-hidden.conf": file("a.b = 5\n"),
        "/etc/sysctl.d/50-hidden.conf": link("/dev/null"),
        "/etc/sysctl.d/99-x": file("a.b = 9\n"),
        "/etc/sysctl.conf": file("a.b = 7\n"),
    })  # fmt: skip
    assert kernel_settings(tree) == {"a.b": "1", "c.d/e": "2", "x.y": "1 2"}


def test_sshd_takes_the_first_value_and_knows_matches() -> None:
    tree = in_memory({
        "/etc/ssh/sshd_config": file("Include /etc/ssh/sshd_config.d/*.conf\nA no\nMatch User x\nB yes\n"),
        "/etc/ssh/sshd_config.d/10.conf": file("a=yes\nInclude 10.conf\nInclude /etc/ssh/sshd_config\n"),
    })  # fmt: skip
    found = list(ssh_settings(tree))
    assert found[0] == ("a", "yes")
    assert ("a", "no") in found
    assert "b" not in dict(found)


def test_a_units_settings_are_those_of_all_its_files() -> None:
    tree = in_memory({
        "/usr/lib/systemd/system/a.service": file("[Unit]\nAfter=x\n[Service]\nExecStart=/old\n"),
        "/usr/lib/systemd/system/a.service.d/10.conf": file("[Unit]\nAfter=hidden\n"),
        "/etc/systemd/system/a.service.d/10.conf": file(
            "[Unit]\nAfter=y\n[Service]\nExecStart=\nExecStart=/new -a=b\n"
        ),
    })  # fmt: skip
    assert unit_settings(tree, "a.service") == {"Unit.After": ["x", "y"], "Service.ExecStart": ["/new -a=b"]}
