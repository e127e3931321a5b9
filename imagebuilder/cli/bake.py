"""``imagebuilder bake``: builds an image."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from imagebuilder.cli.output import json_option, print_json, size, table
from imagebuilder.cli.request import request_options
from imagebuilder.cli.settings import Settings, cache_option
from imagebuilder.cli.sharing import sharing_options

if TYPE_CHECKING:
    from imagebuilder.bake import BakeResult
    from imagebuilder.direct.elsewhere import Sharing
    from imagebuilder.model import BuildRequest

Level = Literal["full", "offline", "none"]
PROVEN: Mapping[Level, str] = {
    "full": "its files, and a boot under each firmware: {folder}/verify.html",
    "offline": "its files: {folder}/verify.html",
    "none": "",
}

# What to type next, by the format of the artifact: the words around its folder. Other formats are for other programs.
NEXT = {
    "qcow2": ("boot", "--until", "login"),
    "raw": ("boot", "--until", "login"),
    "box": ("box add", "--catalog", "boxes"),
}


@click.command("bake")
@request_options
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default="out", metavar="DIR", show_default=True,
    help="Where the folder of the image goes.",
)  # fmt: skip
@click.option("--refresh", is_flag=True, help="Ask the mirrors for versions again.")
@click.option("--offline", is_flag=True, help="Take everything from the cache; use no network.")
@click.option(
    "--locked", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="Take exactly what this file of \"imagebuilder lock\" names, or nothing.",
)  # fmt: skip
@click.option(
    "--jobs", type=click.IntRange(min=1), default=None, metavar="N",
    help="How many cores compress and hash at most.  [default: all]",
)  # fmt: skip
@click.option(
    "--var-file", "var_files", multiple=True, metavar="FILE", type=click.Path(path_type=Path, exists=True),
    help="For the packer engine: a file with values of its variables; repeatable. Mode 0600, if one is secret.",
)  # fmt: skip
@click.option(
    "--verify", "level", type=click.Choice(["full", "offline", "none"]), default=None,
    help="What is proven of the image: its files and how it boots, its files alone, or nothing. One that is not right"
    " fails the bake.  [default: full, where a guest can run]",
)  # fmt: skip
@sharing_options
@json_option
@cache_option
@click.pass_obj
def command(
    settings: Settings, request: BuildRequest, sharing: Sharing, output: Path, refresh: bool, offline: bool,
    locked: Path | None, jobs: int | None, var_files: tuple[Path, ...], level: Level | None, as_json: bool,
) -> None:  # fmt: skip
    """Build a machine image.

    OUTPUT/<build identifier>/ gets the disk, manifest.json, SHA256SUMS, and verify.json and verify.html, which say
    what was proven. What has not changed since an earlier bake comes from the cache. The direct engine needs root,
    or an ordinary user with subordinate ids; the packer engine needs packer; see "imagebuilder doctor".
    """
    from imagebuilder.bake import BakeOptions, bake
    from imagebuilder.cells import plan_request
    from imagebuilder.cli.monitors import choose_monitor
    from imagebuilder.errors import UsageError
    from imagebuilder.events import Progress
    from imagebuilder.process import RealRunner
    from imagebuilder.userns import enter

    if refresh and offline:
        raise UsageError("--refresh asks the mirrors, --offline asks nobody", hint="give one of them")
    if refresh and locked:
        raise UsageError("--refresh asks for new versions, --locked takes the old ones", hint="give one of them")
    options = BakeOptions(
        output=output, cache=settings.cache, refresh=refresh, offline=offline, locked=locked, jobs=jobs,
        sharing=sharing, var_files=var_files,
    )  # fmt: skip
    start = time.monotonic()
    plan = plan_request(request)
    if plan.engine == "direct":
        enter()
    result = bake(
        plan,
        options=options,
        runner=RealRunner(),
        progress=Progress(choose_monitor(as_json)),
    )
    seconds = time.monotonic() - start
    proven = prove(settings, request, result, level, as_json=as_json)
    if as_json:
        print_json(as_data(result, seconds, proven))
    else:
        click.echo(render(result, seconds, proven))


def prove(
    settings: Settings, request: BuildRequest, result: BakeResult, level: Level | None, *, as_json: bool
) -> Level:  # fmt: skip
    """Verify what was baked, unless this very artifact has passed already; return what is proven of it.

    Raises:
        CheckFailedError: it is not right.
    """
    if result.artifact is None or request.bare or level == "none":
        return "none"  # it is in a cloud; or only the half of a node; or nobody wants to know
    from imagebuilder.cli.request import read_config
    from imagebuilder.verify.kept import key, passed_before
    from imagebuilder.vm.accel import can_boot

    config = read_config(settings.file, Path.cwd())
    boot = level == "full" or (level is None and can_boot(request.arch))
    proven: Level = "full" if boot else "offline"
    asked = key(boot=boot, budgets=config.budgets, waivers=config.waivers)
    if result.unchanged and passed_before(result.folder, result.manifest["artifact"]["sha256"], asked):
        return proven
    from imagebuilder.cli.verify import run
    from imagebuilder.verify.run import VerifyRequest

    if not boot and level is None:
        click.echo("no guest can run here: only the files are checked (imagebuilder doctor)", err=True)
    run(
        settings, VerifyRequest(path=result.folder, boot=boot, budgets=config.budgets, waivers=config.waivers),
        as_json=as_json, keep_in=result.folder,
    )  # fmt: skip
    return proven


def as_data(result: BakeResult, seconds: float, proven: Level) -> dict[str, object]:
    """Return the last line of ``--json``."""
    return {
        "kind": "result",
        "folder": str(result.folder),
        "artifact": str(result.artifact) if result.artifact else None,
        "size": result.artifact.stat().st_size if result.artifact else None,
        "images": result.manifest["artifact"].get("images", []),
        "kubernetes": result.manifest["capabilities"]["kubelet"],
        "unchanged": result.unchanged,
        "proven": proven,
        "seconds": round(seconds, 3),
    }


def render(result: BakeResult, seconds: float, proven: Level) -> str:
    """Return what a person wants to know at the end: what there is, and what to type next."""
    folder = os.path.relpath(result.folder)
    rows = [("image", f"{image['builder']}: {image['id']}") for image in result.manifest["artifact"].get("images", [])]
    if result.artifact:
        rows += [("artifact", os.path.relpath(result.artifact)), ("size", size(result.artifact.stat().st_size))]
    if version := result.manifest["capabilities"]["kubelet"]:
        rows.append(("kubernetes", str(version)))
    if said := PROVEN[proven]:
        rows.append(("proven", said.format(folder=folder)))
    rows += [
        ("time", f"{seconds:.1f} s{' (unchanged)' if result.unchanged else ''}"),
    ]
    if following := NEXT.get(result.manifest["artifact"]["format"]):
        rows.append(("next", shlex.join(["imagebuilder", *following[0].split(), folder, *following[1:]])))
    return table(rows)
