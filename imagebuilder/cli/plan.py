"""``imagebuilder plan``: the decisions of a bake, without doing anything."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imagebuilder.cli.output import json_option, print_json, size, table
from imagebuilder.cli.request import request_options

if TYPE_CHECKING:
    from imagebuilder.diskplan import DiskPlan
    from imagebuilder.model import BuildRequest
    from imagebuilder.plan import BuildPlan, LayerPlan

WIDTH = 110  # columns of the lists of packages


@click.command("plan")
@request_options
@json_option
def command(request: BuildRequest, as_json: bool) -> None:
    """Show what bake would do; needs no root and no network.

    The same options as of bake: what is printed is what bake decides before it asks for versions.
    """
    from imagebuilder.cells import plan_request

    plan = plan_request(request)
    if as_json:
        print_json(plan.as_data())
    else:
        click.echo("\n".join(render(plan)))


def render(plan: BuildPlan) -> Iterator[str]:
    """Yield the lines of a plan, for people."""
    profile, disk = plan.profile, plan.disk
    yield plan.id
    facts = [
        ("os", f"{profile.title} {profile.release} ({profile.suite}), {profile.arch}"),
        ("target", plan.target.title),
        ("engine", f"{plan.engine}: {plan.engine_reason}"),
        ("kubernetes", _kubernetes(plan)),
        ("containerd", f"{plan.containerd} or newer"),
        ("pause image", plan.pause_image),
        ("disk", f"{_format(disk)}, {size(disk.size)}, boots with {' and '.join(disk.firmware)}"),
        ("kernel", " ".join(disk.kernel_arguments) or "no arguments"),
        ("initramfs", f"{disk.initramfs}{': ' if disk.drivers else ''}{' '.join(disk.drivers)}"),
    ]
    if plan.engine == "packer" and plan.source_image:
        words = (f"{name} {value}" for name, value in plan.source_image if value not in ("", False))
        facts.append(("starts from", f"{plan.target.source_kind}: {', '.join(words)}"))
    yield table(facts, indent="  ")
    yield "\nsources, in the order in which they are tried"
    yield table([(name, ", ".join(kinds)) for name, kinds in plan.sources.items()], indent="  ")
    for layer in plan.layers:
        yield from _layer(layer)
    yield from _site(plan.request)


def _kubernetes(plan: BuildPlan) -> str:
    if plan.kubernetes != plan.kubernetes_minor:
        return plan.kubernetes
    return f"{plan.kubernetes}, the newest patch that its source has (known: {plan.known_patch})"


def _format(disk: DiskPlan) -> str:
    return "an image in the cloud" if disk.format == "none" else disk.format


def _layer(layer: LayerPlan) -> Iterator[str]:
    yield f"\nlayer {layer.name}"
    if layer.packages:
        words = f"{len(layer.packages)} packages: {' '.join(layer.packages)}"
        yield textwrap.fill(words, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    if layer.steps:
        yield table([(f"{step.order:02d}", step.title) for step in layer.steps], indent="  ")


def _site(request: BuildRequest) -> Iterator[str]:
    wishes = (
        ("overlay", request.overlays), ("script", request.scripts), ("trust", request.trust), ("image", request.images)
    )  # fmt: skip
    rows = [(name, str(item)) for name, items in wishes for item in items]
    rows += [("mirror", f"{name} = {address}") for name, address in request.mirrors.items()]
    if rows:
        yield "\nyour own"
        yield table(rows, indent="  ")
