"""The page of the documentation that lists all checks, made from the checks themselves."""

from __future__ import annotations

from collections.abc import Sequence

from imagebuilder.verify.budgets import BUDGET_CHECKS
from imagebuilder.verify.model import Check

HEAD = """\
# The checks of `imagebuilder verify`

Each check has an id, which stays the same in every report. A check that fails, or that could not run, fails the
verification, unless `[waivers]` of `imagebuilder.toml` has its id with a reason. This page is made by
`imagebuilder docs checks`.
"""
_PARTS = {
    "Offline": "They read the files of the artifact: no guest, no mount, no root.",
    "Booted": "They ask a throwaway guest that runs from the artifact; the artifact itself is never written.",
    "Budgets": "They hold when what is measured is within `[budgets]` of `imagebuilder.toml`, or within `--budget`.",
}


def render_markdown(offline: Sequence[Check], booted: Sequence[Check]) -> str:
    """Return ``docs/checks.md``.

    Args:
        offline: the checks of files, in their order.
        booted: the checks of a guest, in their order.
    """
    parts = [HEAD]
    for (title, head), checks in zip(_PARTS.items(), (offline, booted, BUDGET_CHECKS), strict=True):
        rows = "\n".join(map(_row, checks))
        table = "| Check | Proves | Why | Applies to | When it fails |\n|---|---|---|---|---|\n"
        parts.append(f"## {title}\n\n{head}\n\n{table}{rows}\n")
    return "\n".join(parts) + f"\n{len(offline)} offline, {len(booted)} booted, {len(BUDGET_CHECKS)} budgets.\n"


def _row(check: Check) -> str:
    cells = (f"`{check.id}`", check.proves, f"{check.why} ([more]({check.link}))", _applies(check), check.fix)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _applies(check: Check) -> str:
    whom = [", ".join(sorted(names)) for names in (check.families, check.targets) if names]
    return "; ".join([*whom, *(["with a manifest"] if check.stated else [])]) or "all"
