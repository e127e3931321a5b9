"""``imagebuilder boot``: boots a throwaway copy of an image and times its stages."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imagebuilder.cli.output import json_option, print_json, table
from imagebuilder.cli.settings import Settings, cache_option

if TYPE_CHECKING:
    from imagebuilder.vm.boot import BootReport, RunningGuest
    from imagebuilder.vm.machine import FirmwareName

STAGES = ("login", "runtime", "kubelet", "pods")  # of imagebuilder.vm.boot, which --help must not wait for
POLL_SECONDS = 0.2
LAST_PORT = 65535
DATA_BYTES = 1 << 20  # more has no data package


def forward(value: str) -> tuple[int, int]:
    """Return the two TCP ports of HOST:GUEST; host port 0 means any free one."""
    host, _, guest = value.partition(":")
    good = all(part.isascii() and part.isdigit() and int(part) <= LAST_PORT for part in (host, guest))
    if not good or int(guest) == 0:
        raise click.BadParameter(f'"{value}" is not like 2222:22')
    return int(host), int(guest)


@click.command("boot")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--until", type=click.Choice(STAGES), default="login", show_default=True, help="The stage to wait for."
)  # fmt: skip
@click.option("--firmware", type=click.Choice(["bios", "uefi"]), default="bios", show_default=True)
@click.option(
    "--forward", "forwards", type=forward, multiple=True, metavar="HOST:GUEST",
    help="Lead a TCP port of this host's loopback to one of the guest; 0 means any free one; repeatable.",
)  # fmt: skip
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE", help="A data package for the node, or a pointer to one."
)  # fmt: skip
@click.option("--memory", type=click.IntRange(min=256), default=3072, show_default=True, metavar="MIB")
@click.option("--cpus", type=click.IntRange(min=1), default=2, show_default=True, metavar="N")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=600.0, show_default=True, metavar="SECONDS",
    help="From power-on to the stage.",
)  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep the guest running after that, until Ctrl-C.")
@json_option
@cache_option
@click.pass_obj
def command(
    settings: Settings, artifact: Path, until: str, firmware: FirmwareName, forwards: tuple[tuple[int, int], ...],
    data: Path | None, memory: int, cpus: int, timeout: float, keep: bool, as_json: bool,
) -> None:  # fmt: skip
    """Boot an image under QEMU and time its stages.

    ARTIFACT is a disk, or a folder that a bake wrote. The guest is thrown away; the image is only read.
    """
    from imagebuilder.cli.monitors import choose_monitor
    from imagebuilder.events import Progress
    from imagebuilder.process import RealRunner
    from imagebuilder.vm.artifact import find_artifact
    from imagebuilder.vm.boot import BootRequest, boot

    found = find_artifact(artifact)
    # Two guests with one console log would read each other's lines: the name has our process's id.
    log = settings.cache / "logs" / f"console-{found.name}-{firmware}-{os.getpid()}.log"
    request = BootRequest(
        disk=found.disk, disk_format=found.disk_format, console_log=log, firmware=firmware, until=until,
        forwards=forwards, data=read_data(data) if data else b"", memory_mib=memory, cpus=cpus, timeout=timeout,
    )  # fmt: skip
    progress = Progress(choose_monitor(as_json))
    with boot(request, runner=RealRunner(), progress=progress, cache_dir=settings.cache) as guest:
        report = guest.report
        print_json(as_data(report)) if as_json else click.echo(render(report))
        if keep:
            wait(guest, forwards)


def read_data(path: Path) -> bytes:
    """Return a data package's bytes; what is in it is the guest's to judge.

    Raises:
        UsageError: it cannot be read, or is larger than any package may be.
    """
    from imagebuilder.errors import UsageError

    try:
        with path.open("rb") as stream:
            data = stream.read(DATA_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--data {path} cannot be read: {error.strerror}", hint="imagebuilder data create") from error
    if not 0 < len(data) <= DATA_BYTES:
        raise UsageError(f"--data {path} is no data package: it has {'no' if not data else 'too many'} bytes")
    return data


def as_data(report: BootReport) -> dict[str, object]:
    """Return the last line of ``--json``."""
    return {
        "kind": "result",
        "firmware": report.firmware,
        "accelerator": report.accelerator,
        "stages": dict(report.stages),
        "console_log": str(report.console_log),
    }


def render(report: BootReport) -> str:
    """Return the stages with their seconds since power-on, and where the console's output is."""
    rows = [(name, f"{seconds:.1f} s") for name, seconds in report.stages.items()]
    return table(
        [*rows, ("firmware", f"{report.firmware}, {report.accelerator}"), ("console", str(report.console_log))]
    )


def wait(guest: RunningGuest, forwards: tuple[tuple[int, int], ...]) -> None:
    """Keep the guest until Ctrl-C, or until it switches itself off. What is said goes to standard error."""
    for _, port in forwards:
        click.echo(f"127.0.0.1:{guest.machine.host_port(port)} leads to port {port} of the guest", err=True)
    click.echo("the guest keeps running; Ctrl-C ends it", err=True)
    try:
        while guest.machine.alive:
            time.sleep(POLL_SECONDS)
        click.echo("the guest has switched itself off", err=True)
    except KeyboardInterrupt:
        click.echo("ending the guest", err=True)
