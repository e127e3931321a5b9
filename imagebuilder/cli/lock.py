"""``imagebuilder lock``: writes down exactly what a bake takes from outside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from imagebuilder.cli.output import json_option, print_json, table
from imagebuilder.cli.request import request_options
from imagebuilder.cli.settings import Settings, cache_option

if TYPE_CHECKING:
    from imagebuilder.lockfile import LockFile
    from imagebuilder.model import BuildRequest


@click.command("lock")
@request_options
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), default="imagebuilder.lock", metavar="FILE",
    show_default=True, help="Where the lock file goes.",
)  # fmt: skip
@click.option("--refresh", is_flag=True, help="Ask the mirrors for versions again.")
@click.option("--offline", is_flag=True, help="Take what was found before; use no network.")
@json_option
@cache_option
@click.pass_obj
def command(
    settings: Settings, request: BuildRequest, output: Path, refresh: bool, offline: bool, as_json: bool
) -> None:  # fmt: skip
    """Write down exactly what a bake takes from outside.

    Names, versions, sha256 and sizes of packages, programs, Go modules and container images; no addresses. The same
    options are then of "imagebuilder bake --locked FILE". Overlays, scripts and keys are yours, and not a part of it.
    """
    from imagebuilder.bake import asker_for, new_log
    from imagebuilder.cells import plan_request
    from imagebuilder.cli.monitors import choose_monitor
    from imagebuilder.content import require_writable, write_atomic
    from imagebuilder.errors import HostError, UsageError
    from imagebuilder.events import Progress
    from imagebuilder.locked import make_lock
    from imagebuilder.lockfile import text_of
    from imagebuilder.process import RealRunner
    from imagebuilder.resolve import Resolver
    from imagebuilder.userns import enter

    if refresh and offline:
        raise UsageError("--refresh asks the mirrors, --offline asks nobody", hint="give one of them")
    plan = plan_request(request)
    enter()
    require_writable(settings.cache, "take what the mirrors say")
    runner, progress = RealRunner(), Progress(choose_monitor(as_json))
    resolver = Resolver(
        cache=settings.cache, runner=runner, progress=progress,
        log=new_log(settings.cache / "logs", f"lock-{plan.id}"), refresh=refresh, offline=offline,
        asker=asker_for(plan, cache=settings.cache, runner=runner, progress=progress),
    )  # fmt: skip
    lock = make_lock(plan, resolver)
    try:
        write_atomic(output, text_of(lock))
    except OSError as error:
        raise HostError(f"{output} cannot be written: {error.strerror}", hint="another --output") from error
    if as_json:
        print_json({"kind": "result", "file": str(output), **counts(lock)})
    else:
        click.echo(table([("lock file", str(output)), *((name, str(count)) for name, count in counts(lock).items())]))


def counts(lock: LockFile) -> dict[str, int]:
    """Return how much of what a lock file names."""
    return {
        "packages": sum(map(len, lock.packages.values())),
        "modules": sum(bool(source.module) for source in lock.sources.values()),
        "programs": sum(len(source.programs) for source in lock.sources.values()),
        "images": len(lock.images) + (lock.pause is not None),
    }
