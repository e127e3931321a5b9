"""Boots an artifact once per firmware, gives it a data package of this run, and asks all that is to be proven.

What could not be asked has not run, with the reason: a guest that dies, hangs, floods or is never reached passes
nothing. The artifact is read only; the guest and all it wrote are thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from imagebuilder.errors import BootError, CommandError, DeadlineError, PackageError
from imagebuilder.events import Progress, Stage
from imagebuilder.process import Runner
from imagebuilder.verify.booted import CHECKS, EVERY_BOOT, timeline
from imagebuilder.verify.booted.access import open_sockets
from imagebuilder.verify.booted.answers import Answer, number
from imagebuilder.verify.booted.guest import Opener, Shell, Start, asked, opened
from imagebuilder.verify.booted.kubernetes import CONFIG, HEALTHZ, WANTED
from imagebuilder.verify.booted.package import TRUST_FILE, throwaway
from imagebuilder.verify.booted.runtime import KUBEADM_IMAGES
from imagebuilder.verify.model import Boot, BootedCheck, CheckResult, Outcome, Subject, limited

# Deadlines of the stages, in seconds: under emulation on a busy host each takes a tenth of it.
SETTLE_SECONDS, APPLY_SECONDS, POD_SECONDS, ASK_SECONDS = 400.0, 300.0, 300.0, 600.0
MARGIN_SECONDS = 60.0  # for a guest to say itself that a time is over
GUEST_FILE = "/run/imagebuilder-verify.ibdata"
PAUSE = f"{KUBEADM_IMAGES} | grep -m 1 /pause:"  # for an image of which no manifest tells
SOCKETS = "sockets-known"

SETTLE = "timeout {seconds:.0f} systemctl is-system-running --wait"
CONFIGURED = f"[ -e {CONFIG} ]"
TRUST = f"mkdir -p /etc/imagebuilder/trust.d && cat > {TRUST_FILE}"
APPLY = f"cat > {GUEST_FILE} && imagebuilder-agent apply {GUEST_FILE}"
# The pods of an image that brings its own configuration are given the same time; without any there are none.
WAIT = f"""command -v crictl > /dev/null && [ -e {CONFIG} ] || exit 0
end=$(($(cut -d. -f1 /proc/uptime) + {{seconds:.0f}}))
until {HEALTHZ} | grep -q ' 200 ' && crictl ps --state Running -o json | grep -q podSandboxId; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt $end ] || exit 0
    sleep 1
done"""
UPTIME = "cat /proc/uptime"


@dataclass(kw_only=True, slots=True)
class _Boot:
    """A boot as far as it has come."""

    firmware: str
    checks: tuple[BootedCheck, ...]
    results: dict[str, CheckResult] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    accelerator: str = ""
    kernel: float = 0.0
    said: Mapping[str, str] = field(default_factory=dict)
    sockets: tuple[str, ...] = ()
    reason: str = "it was not asked"

    def result(self, check: BootedCheck) -> CheckResult:
        """Return how a check ended; what was never asked has not run."""
        return self.results.get(check.id) or CheckResult(id=check.id, outcome=Outcome.NOT_RUN, reason=self.reason)


def verify_booted(
    subject: Subject, disk: Path, disk_format: str, *, runner: Runner, progress: Progress, cache_dir: Path,
    scratch: Path, timeout: float, kubernetes: str, opener: Opener | None = None,
) -> tuple[tuple[CheckResult, ...], tuple[Boot, ...], tuple[str, ...]]:  # fmt: skip
    """Return the results of the booted checks, the boots, and what listened on more than loopback.

    Args:
        subject: what is to be proven of what.
        disk: of the artifact, raw or qcow2; it is only read.
        disk_format: ``raw`` or ``qcow2``.
        runner: runs ssh and the accelerator's probe.
        progress: gets one stage per firmware, ``verify:bios`` or ``verify:uefi``.
        cache_dir: remembers which accelerator works.
        scratch: gets the consoles, ``console-bios.log`` and ``console-uefi.log``, which are kept.
        timeout: seconds from power-on to the prompt, and the most that a later stage gets.
        kubernetes: the version that was asked for, for a subject without a manifest; may be empty.
        opener: starts the guests; a test's own.

    Raises:
        UsageError: the disk cannot be booted here.
        ToolMissingError: QEMU, OVMF or OpenSSH is not installed.
    """
    start = Start(
        disk=disk, disk_format=disk_format, arch=subject.arch, cache_dir=cache_dir, scratch=scratch, timeout=timeout,
        runner=runner, progress=progress,
    )  # fmt: skip
    checks = tuple(check for check in CHECKS if check.applies(subject))
    boots = []
    for index, firmware in enumerate(subject.firmware):
        wanted = checks if index == 0 else tuple(check for check in checks if check.id in EVERY_BOOT)
        state = _Boot(firmware=firmware, checks=wanted)
        session = Session(
            subject=replace(subject, firmware=(firmware,)), scratch=scratch, timeout=timeout, kubernetes=kubernetes
        )
        with progress.stage(f"verify:{firmware}", f"Verify a boot under {firmware}") as stage:
            _boot(session, state, opener or partial(opened, start), stage, whole=index == 0)
        boots.append(state)
    results = tuple(
        merged(check.id, [(one.firmware, one.result(check)) for one in boots if check in one.checks])
        for check in checks
    )
    return results, tuple(_described(one) for one in boots), boots[0].sockets if boots else ()


def merged(name: str, results: list[tuple[str, CheckResult]]) -> CheckResult:
    """Return one result of those of each firmware: the worst, with the firmware said where there are several."""
    if not results:
        return CheckResult(id=name, outcome=Outcome.NOT_RUN, reason="the target has no firmware to boot under")
    if len(results) == 1:
        return results[0][1]
    worst = [Outcome.FAILED, Outcome.NOT_RUN]
    bad = [(firmware, one) for firmware, one in results if one.outcome in worst]
    outcome = min((one.outcome for _, one in bad), key=worst.index) if bad else Outcome.PASSED
    return CheckResult(
        id=name, outcome=outcome,
        found=tuple(f"{firmware}: {line}" for firmware, one in bad for line in one.found),
        reason="; ".join(f"{firmware}: {one.reason}" for firmware, one in bad if one.reason),
        seconds=round(sum(one.seconds for _, one in results), 2),
    )  # fmt: skip


def judged(check: BootedCheck, answer: Answer | None, subject: Subject) -> CheckResult:
    """Return how a check ended with an answer; without a whole one, or with a judge that fails, it has not run."""
    if answer is None:
        return CheckResult(id=check.id, outcome=Outcome.NOT_RUN, reason="the guest did not answer")
    if answer.unusable:
        return CheckResult(id=check.id, outcome=Outcome.NOT_RUN, reason=answer.unusable, seconds=answer.seconds)
    try:
        found = tuple(limited(check.judge(answer.text, subject)))
    except Exception as error:  # what it said is not what anything says that we know: nothing is proven
        reason = f"its answer cannot be read: {type(error).__name__}: {error}"[:300]
        return CheckResult(id=check.id, outcome=Outcome.NOT_RUN, reason=reason, seconds=answer.seconds)
    if found and answer.said:
        found = (*found, f"it said: {answer.said}")
    outcome = Outcome.FAILED if found else Outcome.PASSED
    return CheckResult(id=check.id, outcome=outcome, found=found, seconds=answer.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """What is done with a guest that is up.

    Attributes:
        subject: with the one firmware that the guest runs under.
        scratch: a folder for files.
        timeout: the most that a stage gets, in seconds.
        kubernetes: the version that was asked for.
    """

    subject: Subject
    scratch: Path
    timeout: float
    kubernetes: str

    def ask(self, guest: Shell, checks: Iterable[BootedCheck]) -> dict[str, tuple[CheckResult, Answer | None]]:
        """Return how checks end, with what the guest said, by id.

        Raises:
            BootError: the guest is gone.
            DeadlineError: all of them together took too long.
        """
        wanted = list(checks)
        commands = {check.id: check.command for check in wanted}
        variables = {WANTED: self.kubernetes}
        said = asked(guest, commands, variables, min(ASK_SECONDS, self.timeout)) if commands else {}
        return {check.id: (judged(check, said.get(check.id), self.subject), said.get(check.id)) for check in wanted}

    def settle(self, guest: Shell) -> None:
        """Wait until systemd has started everything; whether it has is for a check to say."""
        seconds = min(SETTLE_SECONDS, self.timeout)
        guest.run(SETTLE.format(seconds=seconds), timeout=seconds + MARGIN_SECONDS)

    def configure(self, guest: Shell) -> str:
        """Apply a data package of this run; return what was wrong with that, or nothing.

        An image that brings a configuration of its own keeps it: kubelet runs already.
        """
        timeout = min(APPLY_SECONDS, self.timeout)
        if guest.run(CONFIGURED, timeout=timeout).returncode == 0:
            return ""
        image = str(self.subject.capability("pauseImage") or guest.run(PAUSE, timeout=timeout).stdout.strip())
        if not image:
            return "no data package was made: nobody tells which pause image is on the node"
        made = throwaway(self.scratch, image=image, family=self.subject.family, now=datetime.now(UTC))
        for command, data in ((TRUST, made.public), (APPLY, made.data)):
            result = guest.run(command, timeout=timeout, stdin=data)
            if result.returncode:
                return f"the data package was not applied: {' '.join(result.tail[-3:])} ({result.returncode})"
        return ""

    def wait(self, guest: Shell) -> None:
        """Wait until a pod runs, or cannot; whether it does is for a check to say."""
        seconds = min(POD_SECONDS, self.timeout)
        guest.run(WAIT.format(seconds=seconds), timeout=seconds + MARGIN_SECONDS)


def _boot(session: Session, state: _Boot, opener: Opener, stage: Stage, *, whole: bool) -> None:
    """Boot and ask; what stops it is the reason of all that has not run."""
    try:
        with opener(state.firmware) as guest:
            state.accelerator = guest.report.accelerator
            state.stages.update(guest.report.stages)
            _examine(session, state, guest, stage, whole=whole)
    except (BootError, DeadlineError, CommandError, PackageError) as error:
        state.reason = error.message
        stage.note(f"{state.firmware}: {error.message}")
        for line in error.context.splitlines():
            stage.log(line)
    bad = [check.id for check in state.checks if not state.result(check).holds]
    stage.summary = f"{state.firmware}: {len(state.checks) - len(bad)} of {len(state.checks)} booted checks hold"


def _examine(session: Session, state: _Boot, guest: Shell, stage: Stage, *, whole: bool) -> None:
    up = number(guest.run(UPTIME, timeout=session.timeout).stdout)
    state.kernel = max(0.0, guest.seconds - up)
    session.settle(guest)
    state.stages["settled"] = round(guest.seconds, 1)
    before = [check for check in state.checks if check.before]
    state.results |= {name: result for name, (result, _) in session.ask(guest, before).items()}
    if whole:
        state.stages["apply"] = round(guest.seconds, 1)
        if said := session.configure(guest):
            stage.note(said)
        state.stages["applied"] = round(guest.seconds, 1)
        session.wait(guest)
        state.stages["pods"] = round(guest.seconds, 1)
    seen = session.ask(guest, [check for check in state.checks if not check.before])
    state.results |= {name: result for name, (result, _) in seen.items()}
    if SOCKETS in seen and (answer := seen[SOCKETS][1]):
        state.sockets = open_sockets(answer.text)
    facts = asked(guest, timeline.COMMANDS, {}, min(ASK_SECONDS, session.timeout))
    state.said = {name: answer.text for name, answer in facts.items()}


def _described(state: _Boot) -> Boot:
    spans = timeline.timeline(state.kernel, state.said, state.stages) if state.said else ()
    healthy = timeline.healthy_after(spans)
    return Boot(
        firmware=state.firmware, accelerator=state.accelerator, spans=spans,
        stages=state.stages | ({} if healthy is None else {"kubelet": healthy}),
        reference=timeline.duration(state.said.get("reference", "")),
    )  # fmt: skip
