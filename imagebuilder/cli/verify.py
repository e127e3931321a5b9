"""``imagebuilder verify``: proves a finished artifact, offline and booted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imagebuilder.cli.output import json_option, print_json, table
from imagebuilder.cli.settings import Settings, cache_option

if TYPE_CHECKING:
    from imagebuilder.verify.budgets import Spent
    from imagebuilder.verify.model import Report
    from imagebuilder.verify.run import VerifyRequest
    from imagebuilder.vm.machine import FirmwareName

SECONDS = 900.0  # of imagebuilder.verify.run, which --help must not wait for


@click.command("verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--os", default="", metavar="NAME[-RELEASE]", help="What OS it is of, where no manifest says so.")
@click.option("--target", default="", metavar="NAME", help="What target it is for, likewise.")
@click.option("--arch", default="", metavar="NAME", help="Its architecture, likewise.")
@click.option("--boot/--no-boot", default=True, help="Boot it too, in throwaway guests.  [default: boot]")
@click.option(
    "--firmware", type=click.Choice(["bios", "uefi"]), multiple=True,
    help="Boot it under this one only; repeatable: all checks run under the first.  [default: what it is for]",
)  # fmt: skip
@click.option(
    "--budget", "limits", multiple=True, metavar="NAME=LIMIT",
    help="What it may cost, such as image_size=450MB or packages=300; repeatable.",
)  # fmt: skip
@click.option(
    "--baseline", type=click.Path(path_type=Path), metavar="PATH",
    help="An earlier image's folder, verify.json or manifest.json: what changed is told.",
)  # fmt: skip
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write a JUnit report.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a page to look at.")
@click.option(
    "--file", type=click.Path(path_type=Path), metavar="FILE",
    help="A file with [budgets] and [waivers].  [default: ./imagebuilder.toml, if any]",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=SECONDS, show_default=True, metavar="SECONDS",
    help="For each guest, from power-on.",
)  # fmt: skip
@json_option
@cache_option
@click.pass_obj
def command(
    settings: Settings, artifact: Path, os: str, target: str, arch: str, boot: bool,
    firmware: tuple[FirmwareName, ...], limits: tuple[str, ...], baseline: Path | None, junit: Path | None,
    html: Path | None, file: Path | None, timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Prove that a finished image is right, or say what is wrong with it.

    ARTIFACT is a folder that a bake wrote, or any disk: raw, qcow2, VMDK, VHD, a Compute Engine tar.gz, a .box or
    .ova. It is only read; what boots is thrown away. Exits with 0 when every check holds and with 1 when one does
    not; a check that could not run does not hold.
    """
    from imagebuilder.cli.request import read_config
    from imagebuilder.verify.budgets import parse_budget
    from imagebuilder.verify.report.document import read_baseline
    from imagebuilder.verify.run import VerifyRequest
    from imagebuilder.verify.subject import Said

    config = read_config(file, Path.cwd())
    said = Said(os=os, target=target, arch=arch, firmware=firmware)
    request = VerifyRequest(
        path=artifact, said=said, boot=boot,
        budgets=parse_budget(limits, config.budgets), waivers=config.waivers,
        baseline=read_baseline(baseline) if baseline else None, timeout=timeout,
    )  # fmt: skip
    # A bake takes a report that is kept for the whole proof: one under another firmware, or as another OS, is none.
    keep_in = artifact if artifact.is_dir() and said == Said() else None
    run(settings, request, as_json=as_json, junit=junit, html=html, keep_in=keep_in)


def run(
    settings: Settings, request: VerifyRequest, *, as_json: bool, junit: Path | None = None, html: Path | None = None,
    keep_in: Path | None = None,
) -> Report:  # fmt: skip
    """Verify, show what was found, and write what was asked for.

    Args:
        settings: the cache.
        request: what to verify, and how.
        as_json: print the report as JSON.
        junit: where the JUnit report goes.
        html: where the page goes.
        keep_in: the folder of the bake: it keeps the report too.

    Raises:
        CheckFailedError: it does not hold.
    """
    from imagebuilder.cli.monitors import choose_monitor
    from imagebuilder.content import write_atomic
    from imagebuilder.events import Progress
    from imagebuilder.process import RealRunner
    from imagebuilder.verify.budgets import spending
    from imagebuilder.verify.kept import keep, key
    from imagebuilder.verify.report.document import as_json as as_document
    from imagebuilder.verify.report.junit import as_junit
    from imagebuilder.verify.report.page import as_html
    from imagebuilder.verify.run import CHECKS, verify

    report = verify(request, runner=RealRunner(), progress=Progress(choose_monitor(as_json)), cache=settings.cache)
    spent = spending(request.budgets, report.inventory, report.boots)
    document = as_document(report, CHECKS, spent)
    page = as_html(report, CHECKS, request.baseline, spent)
    if keep_in:
        asked = key(boot=request.boot, budgets=request.budgets, waivers=request.waivers)
        keep(keep_in, document, page, asked)
    if html:
        write_atomic(html, page)
    if junit:
        write_atomic(junit, as_junit(report, CHECKS))
    if as_json:
        print_json(document)
    else:
        show(report, spent)
    fail(report, keep_in)
    return report


def show(report: Report, spent: Sequence[Spent]) -> None:
    """Print the tables of a report; those that fail come last, where they are seen."""
    from imagebuilder.verify.report.text import as_text
    from imagebuilder.verify.run import CHECKS

    text = as_text(report, CHECKS, spent)
    for part in (text.boots, text.budgets, text.checks):
        if part.rows:
            click.echo(table(part.rows, part.headings) + "\n")
    click.echo(text.verdict)


def fail(report: Report, folder: Path | None) -> None:
    """Raise when a report does not hold.

    Raises:
        CheckFailedError: what is in the way, and what to do.
    """
    from imagebuilder.errors import CheckFailedError
    from imagebuilder.verify.report.document import passed
    from imagebuilder.verify.run import CHECKS

    if passed(report):
        return
    fixes = {check.id: check.fix for check in CHECKS}
    context = [f"{result.id}: {fixes.get(result.id, '')}" for result in report.failures]
    where = f"{folder}/verify.html has the whole report; " if folder else ""
    raise CheckFailedError(
        f"{report.name}: {len(report.failures)} of {len(report.results)} checks do not hold",
        context="\n".join(context), hint=f"{where}a failure that is accepted gets a reason in [waivers]",
    )  # fmt: skip
