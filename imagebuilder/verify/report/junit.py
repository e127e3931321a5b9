"""A report as JUnit XML, as Jenkins and GitLab read it: a suite for each kind of check, a case for each check.

https://github.com/testmoapp/junitxml has the elements that are common to their readers: ``failure`` is a check that
failed, ``error`` one that could not run, ``skipped`` one that is waived.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from imagebuilder.verify.model import Check, Outcome, Report
from imagebuilder.verify.report.words import KINDS, Line, clean, lines_of, said

_ELEMENTS = {Outcome.FAILED: "failure", Outcome.NOT_RUN: "error", Outcome.WAIVED: "skipped"}


def as_junit(report: Report, checks: Sequence[Check]) -> bytes:
    """Return the XML document, UTF-8. The same report gives the same bytes.

    Args:
        report: what was found.
        checks: their words.
    """
    lines = lines_of(report, checks)
    root = ET.Element("testsuites", {"name": clean(report.name), **_numbers(lines), "time": _time(lines)})
    for kind in KINDS:
        inside = [line for line in lines if line.kind == kind]
        if inside:
            suite = ET.SubElement(root, "testsuite", {"name": kind, **_numbers(inside), "time": _time(inside)})
            for line in inside:
                _case(suite, line)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _case(suite: ET.Element, line: Line) -> None:
    result = line.result
    words = {"classname": f"verify.{line.kind}", "name": clean(result.id), "time": f"{result.seconds:.3f}"}
    case = ET.SubElement(suite, "testcase", words)
    if result.outcome in _ELEMENTS:
        inner = ET.SubElement(case, _ELEMENTS[result.outcome], {"message": said(result) or result.outcome.value})
        parts = list(result.found)
        if line.check:
            parts += [f"It proves: {line.check.proves}", f"Why: {line.check.why} {line.check.link}"]
            parts += [f"To do: {line.check.fix}"]
        inner.text = clean("\n".join(parts))


def _numbers(lines: Sequence[Line]) -> dict[str, str]:
    def count(outcome: Outcome) -> str:
        return str(sum(line.result.outcome is outcome for line in lines))

    return {
        "tests": str(len(lines)),
        "failures": count(Outcome.FAILED),
        "errors": count(Outcome.NOT_RUN),
        "skipped": count(Outcome.WAIVED),
    }


def _time(lines: Sequence[Line]) -> str:
    return f"{sum(line.result.seconds for line in lines):.3f}"
