"""What the engine makes of programs' output: dpkg's status, a failed step. Building is in the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuilder.direct.engine import installed_versions, step_error
from imagebuilder.errors import CommandError, StepError

STATUS = """\
Package: base-files
Essential: yes
Status: install ok installed
Priority: required
Architecture: amd64
Version: 13.8+deb13u1
Replaces: base, dpkg (<= 1.15.0), miscutils
Conffiles:
 /etc/debian_version 5af1e6ac4abbd77cbca6d3a2cbc6d2f8
 /etc/issue 2d3d4bf8a9d5c9ee5ee0e0bd9cdd3d7e obsolete
Description: Debian base system miscellaneous files
 This package contains: the basic filesystem hierarchy
 Version: 0 is not a field here
 .
 Package: neither

Package: held
Status: hold ok installed
Version: 1:2.0~rc1-3

Package: removed
Status: deinstall ok config-files
Version: 1.0

Package: half
Status: install ok half-configured
Version: 1.0

Package: never
Status: unknown ok not-installed
"""


def test_installed_packages_are_those_that_dpkg_says_are_whole() -> None:
    assert installed_versions(STATUS) == {"base-files": "13.8+deb13u1", "held": "1:2.0~rc1-3"}
    assert installed_versions(STATUS.replace(" .\n", " .\x85Version: 0\n")) == installed_versions(STATUS)
    assert installed_versions("") == installed_versions("\n\n\n") == {}


NAMES = st.from_regex(r"[a-z0-9][a-z0-9+.-]+", fullmatch=True)
VERSIONS = st.from_regex(r"([0-9]:)?[0-9][A-Za-z0-9.+~-]*", fullmatch=True)
WORDS = st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)))  # what a line can hold


@given(st.dictionaries(NAMES, st.tuples(VERSIONS, st.booleans(), WORDS), max_size=5))
def test_whatever_a_description_says_it_is_no_field(packages: dict[str, tuple[str, bool, str]]) -> None:
    text = "\n".join(
        f"Package: {name}\nStatus: install ok {'' if there else 'un'}installed\nVersion: {version}\n"
        f"Maintainer: {words}\nDescription: {words}\n {words}\n .\n Status: {words}\n"
        for name, (version, there, words) in packages.items()
    )
    assert installed_versions(text) == {name: version for name, (version, there, _) in packages.items() if there}


LOG = Path("/cache/logs/plan.log")


def test_a_failed_step_is_named_with_its_last_lines_and_the_log() -> None:
    context = "@@step base/20-packages\nE: Unable to correct problems\nerror: no\ncommand: unshare --mount -- /bin/sh"
    error = step_error("base/20-packages", CommandError("sh ended with exit code 100", context=context), LOG)
    assert type(error) is StepError
    assert error.message == "the step base/20-packages failed"
    assert error.context == "E: Unable to correct problems\nerror: no"
    assert error.hint == f"the whole log is in {LOG}"


@pytest.mark.parametrize("context", ["", "mount: wrong fs type\ncommand: unshare"], ids=["silent", "mount"])
def test_a_sandbox_that_does_not_start_is_no_steps_fault(context: str) -> None:
    error = step_error("", CommandError("unshare ended with exit code 1", context=context), LOG)
    assert error.message == "the sandbox could not be set up"
    assert error.context == (context.partition("command:")[0].strip() or "unshare ended with exit code 1")


def test_a_step_that_says_nothing_still_says_how_it_ended() -> None:
    context = "@@step site/50-scripts\ncommand: unshare --mount -- /bin/sh"
    error = step_error("site/50-scripts", CommandError("unshare ended with exit code 3", context=context), LOG)
    assert "exit code 3" in error.context
