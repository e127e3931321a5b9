"""The recipe's steps, read from the headers of the scripts that do them.

A step is ``provision/steps/<layer>/NN-name.sh``. Its leading comment block says what it does and why, and
for which cells; the list of steps in the documentation is made from these headers alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field

from imagebuilder import resources
from imagebuilder.content import sha256_bytes
from imagebuilder.errors import DataError
from imagebuilder.model import LAYERS
from imagebuilder.strict import Strict, did_you_mean, label, read_toml, validate, wrong

ANY = "*"
FAMILIES = ("debian", "redhat")
INITS = ("systemd", "sysvinit")
PHASES = ("build",)  # what happens at boot is in provision/boot.toml
FACTS = (  # the closed set of yes-or-no facts of a cell that ``when`` may name
    "cloud_init",
    "guest_packages",  # the target wants packages in its guests
    "no_cloud_init",
    "repositories",  # there are package repositories from outside the distribution to set up
    "small_initramfs",  # the engine makes one of its own
    "stock_initramfs",
    "subscription",  # the distribution gives its packages to registered machines only
    "vagrant",  # the target is a box
    "vm_build",  # the image is built in a machine that runs, not in a root tree
)
GIVEN = ("IB_PROVISION",)  # variables that every step has, without stating them as inputs
STARTS = ("set -eu", '. "${IB_PROVISION:?}/lib.sh"')  # the first line of code; lib.sh begins with set -eu

_CLOSED = {"families": FAMILIES, "inits": INITS, "phase": PHASES, "when": FACTS}
_REQUIRED = ("title", "why", "families", "phase")
_KEYS = (*_REQUIRED, "targets", "inits", "when", "requires", "inputs", "uses")
_NAME = re.compile(r"^(\d{2})-([a-z0-9]+(?:-[a-z0-9]+)*)\.sh$")
_LINE = re.compile(r"^# ([A-Za-z_]+):\s*(.*?)\s*$")
_USE = re.compile(r"^(files|services)(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+$")
_INPUT = re.compile(r"^IB_[A-Z0-9_]+$")
_EVERYWHERE = ((), (ANY,), FAMILIES, INITS)
_BOUND = re.compile(r"\$\{(IB_[A-Z0-9_]+):[?-]")  # wanted, or with a default


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the recipe.

    Attributes:
        layer: the layer that it changes, one of ``model.LAYERS``.
        name: the file's name without number and extension.
        order: the number in the file's name: the order within the layer.
        path: the script.
        title: what it does, in the imperative.
        why: what goes wrong without it.
        families, inits: where it runs, all of them named.
        targets: where it runs; ``*`` stands for all.
        phase: ``build``.
        when: facts of the cell that must all be true.
        requires: programs that must be in the root tree.
        inputs: environment variables that it wants.
        uses: files and folders below ``provision/`` that it reads: what a change of them must rebuild.
        sha256: of the script's bytes.
    """

    layer: str
    name: str
    order: int
    path: Path
    title: str
    why: str
    families: tuple[str, ...]
    targets: tuple[str, ...]
    inits: tuple[str, ...]
    phase: str
    when: tuple[str, ...]
    requires: tuple[str, ...]
    inputs: tuple[str, ...]
    uses: tuple[str, ...]
    sha256: str

    @property
    def key(self) -> str:
        """Return the step's unique name, for instance ``base/30-kernel-modules``."""
        return f"{self.layer}/{self.order:02d}-{self.name}"


class BootStep(Strict):
    """One thing that a node still does at boot."""

    title: str = Field(description="What happens.", min_length=1)
    why: str = Field(description="Why it cannot be done at build time.", min_length=1)


class _Boot(Strict):
    """The file ``provision/boot.toml``."""

    step: list[BootStep] = Field(description="The steps, in their order.", min_length=1)


def load_steps(folder: Path | None = None) -> tuple[Step, ...]:
    """Return all steps, by layer and number.

    Args:
        folder: the ``provision`` folder; the project's own by default.

    Raises:
        DataError: headers, names or numbers are wrong; the context has a line for each.
    """
    return _load(folder or resources.folder("provision"))


def load_boot_steps(folder: Path | None = None) -> tuple[BootStep, ...]:
    """Return what happens at boot, in order.

    Raises:
        DataError: the file does not follow the schema.
    """
    return _load_boot(folder or resources.folder("provision"))


@cache
def _load_boot(folder: Path) -> tuple[BootStep, ...]:
    path = folder / "boot.toml"
    return tuple(validate(read_toml(path), _Boot, label(path)).step)


@cache
def _load(folder: Path) -> tuple[Step, ...]:
    steps: list[Step] = []
    problems: list[str] = []
    for path in sorted((folder / "steps").glob("*/*.sh")):
        try:
            steps.append(parse_step(path, path.read_bytes()))
        except DataError as error:
            problems += error.context.splitlines()
    taken: dict[tuple[str, int], Step] = {}
    for step in steps:
        first = taken.setdefault((step.layer, step.order), step)
        if first is not step:
            problems.append(f"{label(step.path)}: number {step.order:02d} is also that of {first.path.name}")
        lost = [use for use in step.uses if not (folder / use).exists()]
        problems += [f'{label(step.path)}: uses: there is no "{use}" in {label(folder)}' for use in lost]
    if problems:
        raise wrong(label(folder / "steps"), problems)
    return tuple(sorted(steps, key=lambda step: (LAYERS.index(step.layer), step.order)))


def parse_step(path: Path, data: bytes) -> Step:
    """Return the step that a script's header describes. Reads nothing: ``data`` is the script.

    Raises:
        DataError: one for everything that is wrong with the header and the file's name.
    """
    where = label(path)
    problems: list[str] = []
    named = _NAME.match(path.name)
    if not named:
        problems.append("the name must be like 10-load-modules.sh")
    if path.parent.name not in LAYERS:
        problems.append(f'"{path.parent.name}" is not a layer{did_you_mean(path.parent.name, LAYERS)}')
    lines = data.decode(errors="replace").splitlines()
    header, body = _header(lines, problems)
    problems += [f"{key}: missing" for key in _REQUIRED if not header.get(key)]
    words = {key: tuple(header.get(key, "").split()) for key in _KEYS}
    problems += _bad_words(words)
    problems += _bad_inputs(words["inputs"], body)
    if problems or not named:
        raise wrong(where, [f"{where}: {problem}" for problem in problems])
    return Step(
        layer=path.parent.name,
        name=named[2],
        order=int(named[1]),
        path=path,
        title=header["title"],
        why=header["why"],
        families=_all(words["families"], FAMILIES),
        targets=words["targets"] or (ANY,),
        inits=_all(words["inits"], INITS),
        phase=header["phase"],
        when=words["when"],
        requires=words["requires"],
        inputs=words["inputs"],
        uses=words["uses"],
        sha256=sha256_bytes(data),
    )


def _all(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    return known if not names or ANY in names else names


def _header(lines: Sequence[str], problems: list[str]) -> tuple[dict[str, str], str]:
    """Return the header's keys and the code below it."""
    if not lines or lines[0] != "#!/bin/sh":
        problems.append("line 1: must be #!/bin/sh")
    header: dict[str, str] = {}
    end = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
    for number, line in enumerate(lines[1:end], start=2):
        found = _LINE.match(line)
        if line.startswith("# shellcheck "):
            continue
        if not found:
            problems.append(f'line {number}: not of the form "# key: value"')
        elif found[1] not in _KEYS:
            problems.append(f"line {number}: {found[1]}: unknown key{did_you_mean(found[1], _KEYS)}")
        elif found[1] in header:
            problems.append(f"line {number}: {found[1]}: stated twice")
        else:
            header[found[1]] = found[2]
    code = [line for line in lines[end:] if line and not line.startswith("#")]
    if not code or code[0] not in STARTS:
        problems.append(f"the first line of code must be one of: {'   '.join(STARTS)}")
    return header, "\n".join(lines[end:])


def _bad_words(words: Mapping[str, tuple[str, ...]]) -> list[str]:
    problems = [
        f'{key}: "{word}" is not known{did_you_mean(word, known)}'
        for key, known in _CLOSED.items()
        for word in words[key]
        if word not in known and not (word == ANY and key in ("families", "inits"))
    ]
    problems += [f'uses: "{use}" must be like files/sysctl.conf' for use in words["uses"] if not _USE.match(use)]
    if len(words["phase"]) > 1:
        problems.append("phase: takes one word")
    return problems


def _bad_inputs(inputs: Sequence[str], body: str) -> list[str]:
    bound = set(_BOUND.findall(body))
    problems = [f'inputs: "{name}" must be like IB_PAUSE_IMAGE' for name in inputs if not _INPUT.match(name)]
    good = [name for name in inputs if _INPUT.match(name)]
    problems += [
        f"inputs: {name} is never bound with ${{{name}:?}} or ${{{name}:-}}" for name in good if name not in bound
    ]
    missing = sorted(bound - {*inputs, *GIVEN})
    return problems + [f"inputs: {name} is bound in the script, but not stated" for name in missing]


def select(
    steps: Iterable[Step], family: str, target: str, facts: Collection[str], *, init: str = "systemd"
) -> tuple[Step, ...]:
    """Return the steps that run for a family, a target, an init, and the cell's facts, in order.

    Args:
        steps: from ``load_steps``.
        family: package family of the profile.
        target: name of the target.
        facts: those of ``FACTS`` that are true of the cell.
        init: init of the profile.
    """
    return tuple(
        step
        for step in steps
        if family in step.families
        and (target in step.targets or ANY in step.targets)
        and init in step.inits
        and set(step.when) <= set(facts)
    )


def render_text(steps: Sequence[Step], boot_steps: Sequence[BootStep]) -> str:
    """Return the list of steps for a terminal."""
    lines: list[str] = []
    for layer in LAYERS:
        inside = [step for step in steps if step.layer == layer]
        if inside:
            lines += [
                f"{layer} (at build time)",
                *(f"  {step.order:02d}  {step.title}" for step in inside),
                "",
            ]
    if boot_steps:
        lines += ["at boot", *(f"  {at:2d}  {step.title}" for at, step in enumerate(boot_steps, start=1)), ""]
    lines.append(f"{len(steps)} steps at build time, {len(boot_steps)} at boot")
    return "\n".join(lines) + "\n"


def render_markdown(steps: Sequence[Step], boot_steps: Sequence[BootStep]) -> str:
    """Return the list of steps as Markdown tables, one per layer and one for boot."""
    lines: list[str] = []
    for layer in LAYERS:
        inside = [step for step in steps if step.layer == layer]
        if inside:
            lines += [f"## Layer `{layer}`, at build time", ""]
            lines += ["| Step | What | Why | Where |", "|---|---|---|---|"]
            lines += [_row(f"`{step.order:02d}-{step.name}`", step.title, step.why, _where(step)) for step in inside]
            lines.append("")
    if boot_steps:
        lines += ["## At boot", "", "| Step | What | Why |", "|---|---|---|"]
        lines += [_row(str(at), step.title, step.why) for at, step in enumerate(boot_steps, start=1)]
        lines.append("")
    lines.append(f"{len(steps)} steps at build time, {len(boot_steps)} at boot.")
    return "\n".join(lines) + "\n"


def _where(step: Step) -> str:
    parts = [words for words in (step.families, step.targets, step.inits, step.when) if words not in _EVERYWHERE]
    return "; ".join(", ".join(words) for words in parts) or "everywhere"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def render_json(steps: Sequence[Step], boot_steps: Sequence[BootStep]) -> str:
    """Return the list of steps as JSON: ``build`` and ``boot``, in order."""
    build = [
        {
            "layer": step.layer,
            "order": step.order,
            "name": step.name,
            "title": step.title,
            "why": step.why,
            "families": step.families,
            "targets": step.targets,
            "inits": step.inits,
            "phase": step.phase,
            "when": step.when,
            "requires": step.requires,
            "inputs": step.inputs,
            "uses": step.uses,
            "sha256": step.sha256,
        }
        for step in steps
    ]
    boot = [
        {"order": at, "phase": "boot", "title": step.title, "why": step.why}
        for at, step in enumerate(boot_steps, start=1)
    ]
    return json.dumps({"build": build, "boot": boot}, indent=2, ensure_ascii=False) + "\n"
