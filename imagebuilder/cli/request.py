"""The options that say what to build, together with ``imagebuilder.toml``: both become one BuildRequest."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imagebuilder.cli.settings import Settings

if TYPE_CHECKING:
    from imagebuilder.config import Config
    from imagebuilder.model import BuildRequest

_Item = TypeVar("_Item")
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the command line asks for; empty where it says nothing. Paths are relative to where it was typed."""

    os: str = ""
    target: str = ""
    arch: str = ""
    kubernetes: str = ""
    engine: str = "auto"
    package: tuple[str, ...] = ()
    overlay: tuple[Path, ...] = ()
    script: tuple[Path, ...] = ()
    trust: tuple[Path, ...] = ()
    image: tuple[str, ...] = ()
    bare: bool = False
    root_builder: str = "fast"
    initramfs: str | None = None
    source: Pairs = ()
    mirror: Pairs = ()
    file: Path | None = None


def pair(value: str) -> tuple[str, str]:
    """Split NAME=VALUE; both halves must be there."""
    name, _, rest = value.partition("=")
    if not name or not rest:
        raise click.BadParameter(f'"{value}" is not like NAME=VALUE')
    return name, rest


def _path() -> click.Path:
    return click.Path(path_type=Path)


OPTIONS = (
    click.option("--os", default="", metavar="NAME[-RELEASE]", help="Operating system: debian, ubuntu-24.04, ..."),
    click.option("--target", default="", metavar="NAME", help="What the image is for: qemu, gce, aws, ..."),
    click.option("--arch", default="", metavar="NAME", help="Architecture.  [default: amd64]"),
    click.option(
        "--kubernetes", default="", metavar="VERSION",
        help="A minor (1.35) or an exact version (1.35.8).  [default: the newest that fits]",
    ),
    click.option("--engine", default="auto", metavar="NAME", show_default=True,
                 help="What builds it: auto, direct or packer."),
    click.option(
        "--root-builder", type=click.Choice(["fast", "mmdebstrap"]), default="fast", show_default=True,
        help="What the direct engine makes the base layer with: fast unpacks all packages at once,"
        " mmdebstrap one after the other.",
    ),
    click.option(
        "--initramfs", type=click.Choice(["small", "stock"]), default=None,
        help="Of the direct engine's disks: with the target's drivers alone, or the distribution's."
        "  [default: the profile's]",
    ),
    click.option("--package", multiple=True, metavar="NAME", help="One more package of the distribution; repeatable."),
    click.option("--overlay", multiple=True, metavar="DIR", type=_path(),
                 help="A folder to copy over the root tree; repeatable."),
    click.option("--script", multiple=True, metavar="FILE", type=_path(),
                 help="A script to run in the root tree, after the overlays; repeatable."),
    click.option("--trust", multiple=True, metavar="FILE", type=_path(),
                 help="A public key that may sign the node's data packages (pki/package-signing.pub); repeatable."),
    click.option("--image", multiple=True, metavar="FILE|REF",
                 help="A container image to preload: a reference, an OCI archive or an image's TOML file; repeatable."),
    click.option("--bare", is_flag=True,
                 help="Only the operating system, ssh and cloud-init: what Packer starts from elsewhere."),
    click.option("--source", multiple=True, metavar="COMPONENT=KIND", type=pair,
                 help="Take a component only from there, for instance kubernetes=go-modules; repeatable."),
    click.option("--mirror", multiple=True, metavar="NAME=URL", type=pair,
                 help="Another address for a repository or registry, for instance debian=http://...; repeatable."),
    click.option("--file", metavar="FILE", type=_path(),
                 help="A file with the same wishes; the command line wins.  [default: ./imagebuilder.toml, if any]"),
)  # fmt: skip


def request_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what to build; the function gets them as one ``request``."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        wishes = Wishes(**{item.name: kwargs.pop(item.name) for item in fields(Wishes)})
        click.get_current_context().ensure_object(Settings).file = wishes.file
        request = make_request(wishes, Path.cwd(), every=kwargs.get("every", False))
        return function(*args, request=request, **kwargs)

    for option in reversed(OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def make_request(wishes: Wishes, folder: Path, *, every: bool = False) -> BuildRequest:
    """Return the request: the command line over the file; lists are the file's and then the command line's.

    Args:
        wishes: the command line.
        folder: where it was typed.
        every: the request is for every cell: OS, target and architecture only narrow that down, and may be empty.

    Raises:
        UsageError: no OS or target is named, or a path that is named cannot be used.
        DataError: the file does not follow its schema.
    """
    from imagebuilder.cells import split_os
    from imagebuilder.config import absolute_source, image_is_path
    from imagebuilder.model import BuildRequest

    config = read_config(wishes.file, folder)
    asked, filed = split_os(wishes.os), split_os(config.os)
    name = asked[0] or filed[0]
    release = asked[1] or ((config.release or filed[1]) if filed[0] in ("", name) else "")
    target = wishes.target or config.target
    if not every:
        _named(name, target)
    images = (str(folder / image) if image_is_path(image) else image for image in wishes.image)
    sources = {component: absolute_source(kind, folder) for component, kind in wishes.source}
    mirrors = {key: mirror.url for key, mirror in config.mirror.items()} | dict(wishes.mirror)
    typed = {key for key, _ in wishes.mirror}  # an address of the command line is signed by upstream's own key
    request = BuildRequest(
        os=name, release=release, target=target,
        arch=wishes.arch or config.arch or ("" if every else "amd64"),
        kubernetes=wishes.kubernetes or config.kubernetes,
        engine=wishes.engine, packages=_joined(config.package, wishes.package),
        overlays=_joined(config.overlay, (folder / path for path in wishes.overlay)),
        scripts=_joined(config.script, (folder / path for path in wishes.script)),
        trust=_joined(config.trust, (folder / path for path in wishes.trust)),
        images=_joined(config.image, images), bare=wishes.bare, root_builder=wishes.root_builder,
        initramfs=wishes.initramfs or "",
        sources={**config.source, **sources}, mirrors=mirrors,
        keys={key: mirror.key.upper() for key, mirror in config.mirror.items() if mirror.key and key not in typed},
    )  # fmt: skip
    check_paths(request)
    return request


def _joined(one: Iterable[_Item], other: Iterable[_Item]) -> tuple[_Item, ...]:
    return (*one, *other)


def read_config(path: Path | None, folder: Path) -> Config:
    """Return the user's file: the one that is named, else the one in the folder, else one that says nothing.

    Raises:
        DataError: it cannot be read, or does not follow its schema.
    """
    from imagebuilder.config import FILE_NAME, Config, load_config

    if path is not None:
        return load_config(folder / path)
    found = folder / FILE_NAME
    return load_config(found) if found.is_file() else Config()


def _named(name: str, target: str) -> None:
    """Refuse a request without an operating system or target; the choices are named."""
    from imagebuilder.errors import UsageError
    from imagebuilder.profiles import profile_names
    from imagebuilder.targets import target_names

    choices: Mapping[str, tuple[str, ...]] = {
        option: known()
        for option, value, known in (("--os", name, profile_names), ("--target", target, target_names))
        if not value
    }
    if choices:
        raise UsageError(
            f"{' and '.join(choices)} must be given",
            context="\n".join(f"{option}: {', '.join(known)}" for option, known in choices.items()),
            hint=" ".join(f"{option} {known[0]}" for option, known in choices.items() if known),
        )


def check_paths(request: BuildRequest) -> None:
    """Refuse paths that cannot be used, before anything else happens.

    Raises:
        UsageError: one for all of them.
    """
    from imagebuilder.errors import UsageError

    problems = list(_bad_paths(request))
    if problems:
        message = problems[0] if len(problems) == 1 else f"{len(problems)} paths cannot be used"
        raise UsageError(message, context="\n".join(problems[1:] and problems), hint="check the names and permissions")


def _bad_paths(request: BuildRequest) -> Iterator[str]:
    from imagebuilder.config import image_is_path

    files = (kind.partition(":") for kind in request.sources.values())
    every = (
        *(("--overlay", path, True) for path in request.overlays),
        *(("--script", path, False) for path in request.scripts),
        *(("--trust", path, False) for path in request.trust),
        *(("--image", Path(image), False) for image in request.images if image_is_path(image)),
        *(("--source", Path(where), True) for kind, _, where in files if kind == "file" and where),
    )
    for option, path, folder in every:
        if not path.exists():
            yield f"{option} {path}: there is no such {'folder' if folder else 'file'}"
        elif path.is_dir() is not folder:
            yield f"{option} {path}: is {'not a' if folder else 'a'} folder"
        elif not os.access(path, os.R_OK | (os.X_OK if folder else 0)):
            yield f"{option} {path}: cannot be read"
        elif option == "--script" and not os.access(path, os.X_OK):
            yield f"{option} {path}: is not executable (chmod +x {path})"
