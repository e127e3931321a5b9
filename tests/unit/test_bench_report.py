"""The bench's page: tables and charts of what was measured, put between its marks."""

from __future__ import annotations

import json
from pathlib import Path

from bench.measure import Measured
from bench.report import BEGIN, END, Results, as_markdown, write


def results(**changes: object) -> Results:
    cold = Measured("cold", seconds=20, peak_mib=300, largest_mib=100, size_mb=335, stages={"base": 12.34, "x": 0.01})
    whole = {
        "ours": [cold, Measured("nothing changed", seconds=0.25)],
        "peers": [Measured("mkosi", seconds=80, note="no kubelet"), Measured("diskimage-builder", seconds=160)],
        "versions": {"mkosi": "25.3-8", "diskimage-builder": "3.43.0"},
        "boots": {"kubelet, baked": 20.0, "kubelet, installed at first boot": 160.0},
        "cells": {1: 20.0, 2: 24.5}, "packages": {300: 20.0, 340: 24.0},
    }  # fmt: skip
    return Results(date="2026-11-28", cores=2, load=0.5, **{**whole, **changes})  # type: ignore[arg-type]


def test_ratios_are_to_the_cold_bake_and_to_installing() -> None:
    text = as_markdown(results())
    assert "| cold | 20.00 | 1.00 | 300 | 100 | 335 |  |" in text
    assert "| mkosi | 80.00 | 4.00 | 0 | 0 |  | no kubelet |" in text
    assert "| kubelet, baked | 20.0 | 0.12 |" in text
    assert "| cold | 20.0 | 12.3 |" in text, "a stage that is never long is left out"


def test_curves_are_drawn() -> None:
    text = as_markdown(results())
    assert 'x-axis ["1", "2"]\n    y-axis "seconds" 0 --> 24\n    line [20.0, 24.5]' in text
    assert text.count("```mermaid") == 3


def test_each_cell_is_there_with_its_stages() -> None:
    text = as_markdown(results(each=[Measured("raw", seconds=31, stages={"base": 17.0, "pack": 0.82})]))
    assert "| Bake | all | base | pack |" in text
    assert "| raw | 31.0 | 17.0 | 0.8 |" in text


def test_every_peer_is_in_the_chart_and_with_its_version_below() -> None:
    text = as_markdown(results())
    assert 'x-axis ["cold", "mkosi", "diskimage-builder"]\n    y-axis "seconds" 0 --> 160\n' in text
    assert "bar [20.0, 80.0, 160.0]" in text
    assert "Versions: mkosi 25.3-8, diskimage-builder 3.43.0." in text


def test_what_was_not_measured_is_said_and_has_no_table() -> None:
    text = as_markdown(results(peers=[], boots={}, missing=["mkosi: it failed"]))
    assert "Not measured: mkosi: it failed" in text
    assert "Peers" not in text
    assert "power-on" not in text


def test_only_what_is_between_the_marks_is_written(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "bench").mkdir()
    page = tmp_path / "docs/performance.md"
    page.write_text(f"head\n{BEGIN}old\n{END}rest\n")
    write(results(), tmp_path)
    assert page.read_text() == f"head\n{BEGIN}{as_markdown(results())}{END}rest\n"
    assert json.loads((tmp_path / "bench/results/2026-11-28.json").read_text())["ours"][0]["seconds"] == 20
