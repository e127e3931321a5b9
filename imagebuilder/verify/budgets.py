"""Budgets: what an image may cost in bytes, seconds and parts, and what grew where it costs more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from imagebuilder.config import Budgets
from imagebuilder.errors import UsageError
from imagebuilder.publish.page import size
from imagebuilder.strict import did_you_mean, validate
from imagebuilder.verify.changes import MOST, Baseline, Changes, changes_since, grew_most
from imagebuilder.verify.model import Boot, Check, CheckResult, Inventory, Outcome, limited

HEALTHY = "kubelet"  # the stage of a boot at which kubelet is healthy
_LINK = "https://github.com/kubernetes-sigs/image-builder/issues/1554"  # a limit that fails nothing is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """A budget and what is spent of it: ``value`` is None where it could not be measured."""

    name: str
    limit: float
    value: float | None

    @property
    def left(self) -> float | None:
        """Return what is left; below zero where it is over."""
        return None if self.value is None else self.limit - self.value

    @property
    def id(self) -> str:
        """Return the id of its check."""
        return f"budget-{self.name.replace('_', '-')}"

    def words(self, amount: float) -> str:
        """Return an amount of this budget for people."""
        if self.name in _BYTES:
            return f"-{size(-round(amount))}" if amount < 0 else size(round(amount))
        return f"{amount:.2f}" if self.name == "boot_ratio" else f"{amount:.0f}"


_BYTES = ("image_size", "installed_size")


def _boot_ratio(_: Inventory, boots: Sequence[Boot]) -> float | None:
    """Return the slowest ratio of the boots that went as far as kubelet; None where there was none, or no reference."""
    far = [boot for boot in boots if HEALTHY in boot.stages]
    if not far or any(boot.reference <= 0 for boot in far):
        return None
    return max(boot.stages[HEALTHY] / boot.reference for boot in far)


_MEASURE: Mapping[str, Callable[[Inventory, Sequence[Boot]], float | None]] = {
    "image_size": lambda inventory, _: inventory.artifact_size,
    "installed_size": lambda inventory, _: inventory.installed_size,
    "boot_ratio": _boot_ratio,
    "boot_steps": lambda inventory, _: inventory.boot_steps,
    "enabled_units": lambda inventory, _: len(inventory.units),
    "packages": lambda inventory, _: len(inventory.packages),
    "open_ports": lambda inventory, boots: len(inventory.sockets) if boots else None,
}
_PROVES = {
    "image_size": ("The artifact is no larger than its budget.", "Every machine downloads or copies it."),
    "installed_size": (
        "The files are no larger than their budget.",
        "They are the smallest disk, and what is patched.",
    ),
    "boot_ratio": ("kubelet is healthy within its budget.", "An autoscaled node that boots slowly comes too late."),
    "boot_steps": ("No more is left for boot than its budget.", "What is done at boot can fail on each node."),
    "enabled_units": ("No more units are enabled than the budget.", "Each takes memory, and time to start."),
    "packages": ("No more packages are installed than the budget.", "Each one has to be patched."),
    "open_ports": ("No more sockets listen than the budget.", "What listens can be attacked."),
}
BUDGET_CHECKS: tuple[Check, ...] = tuple(
    Check(
        id=Spent(name=name, limit=0, value=None).id, proves=proves, why=why, link=_LINK,
        fix="Take out what grew, or raise the limit in [budgets] of imagebuilder.toml.",
    )
    for name, (proves, why) in _PROVES.items()
)  # fmt: skip


def parse_budget(words: Sequence[str], budgets: Budgets | None = None) -> Budgets:
    """Return the budgets of ``--budget`` options, over those of the file.

    Args:
        words: each like ``image_size=450MB``.
        budgets: from the user's file.

    Raises:
        UsageError: one is not of that form, or names no budget.
        DataError: a limit is not what the budget takes.
    """
    stated: dict[str, object] = (budgets or Budgets()).model_dump(exclude_none=True)
    for word in words:
        name, equals, limit = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in Budgets.model_fields:
            near = did_you_mean(name, Budgets.model_fields)
            raise UsageError(f'--budget "{word}": there is no such budget{near}', hint="--budget image_size=450MB")
        stated[name] = limit if name in _BYTES else _number(limit.strip())
    return validate(stated, Budgets, "--budget")


def _number(text: str) -> object:
    """Return a number where it is one; the model refuses the rest, and says so."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


def spending(budgets: Budgets, inventory: Inventory, boots: Sequence[Boot]) -> tuple[Spent, ...]:
    """Return what is spent of each budget that has a limit."""
    limits = budgets.model_dump(exclude_none=True)
    return tuple(
        Spent(name=name, limit=limits[name], value=measure(inventory, boots))
        for name, measure in _MEASURE.items()
        if name in limits
    )


def check_budgets(
    budgets: Budgets, inventory: Inventory, boots: Sequence[Boot], baseline: Baseline | None = None
) -> tuple[CheckResult, ...]:
    """Return a result for each budget that has a limit.

    Args:
        budgets: the limits.
        inventory: of the image.
        boots: of this run; without any, boot seconds and ports cannot be known, and that is a failure.
        baseline: what the image is compared with, to say what grew.
    """
    changes = changes_since(baseline, inventory, boots) if baseline else None
    return tuple(_result(spent, changes) for spent in spending(budgets, inventory, boots))


def _result(spent: Spent, changes: Changes | None) -> CheckResult:
    if spent.value is None:
        needs = "kubelet and the reference" if spent.name == "boot_ratio" else "the sockets"
        return CheckResult(
            id=spent.id, outcome=Outcome.NOT_RUN, reason=f"no boot of this run measured {needs}"
        )  # fmt: skip
    if spent.value <= spent.limit:
        return CheckResult(id=spent.id, outcome=Outcome.PASSED)
    over = spent.words(spent.value - spent.limit)
    first = f"{spent.words(spent.value)}, {over} over the limit of {spent.words(spent.limit)}"
    return CheckResult(id=spent.id, outcome=Outcome.FAILED, found=tuple(limited((first, *_grown(spent.name, changes)))))


def _grown(name: str, changes: Changes | None) -> list[str]:
    """Return what a budget's value grew by since the baseline, in lines."""
    if changes is None:
        return ["no baseline was given: what grew is not known"]
    if name == "enabled_units":
        return [f"new unit {unit}" for unit in changes.units_added]
    if name == "open_ports":
        return [f"new port {socket}" for socket in changes.sockets_added]
    if name == "packages":
        return [f"new package {change.name}" for change in changes.added]
    if name == "boot_ratio":
        slower = [change for change in changes.boots if change.after > change.before]
        return [f"{one.firmware}, {one.stage}: {one.before:.1f} s before, {one.after:.1f} s now" for one in slower]
    if name in _BYTES:
        grown = grew_most(changes, MOST)
        return [f"+{size(one.grown)} {one.name}{'' if one.before else ' (new)'}" for one in grown]
    return []
