"""Makes the data packages of a cluster: everything is rendered, signed and packed before the first file is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from imagebuilder.content import content_id, locked, sha256_bytes, write_atomic
from imagebuilder.datapackage.addons import FILES as ADDON_FILES
from imagebuilder.datapackage.addons import render_addons
from imagebuilder.datapackage.cluster import Cluster, Node
from imagebuilder.datapackage.crosswise import find_problems
from imagebuilder.datapackage.format import SUFFIX, Package, pack, unpack
from imagebuilder.datapackage.generations import Entry, Generations, read_generations
from imagebuilder.datapackage.manifest import (
    FileEntry,
    Manifest,
    Proxy,
    Requires,
    Selectors,
    Settings,
    VersionRange,
    format_time,
    parse_time,
)
from imagebuilder.datapackage.pkifiles import Pki
from imagebuilder.datapackage.render import File, render
from imagebuilder.datapackage.signing import (
    KEY_FILE,
    POINTER_SUFFIX,
    PrivateKey,
    key_id,
    load_private_key,
    make_pointer,
    sign,
    verify,
)
from imagebuilder.errors import DataError, PackageError, UsageError
from imagebuilder.strict import did_you_mean

STATE, LOCK, ADDONS = "generations.json", ".lock", "addons"
SKEW = timedelta(minutes=5)  # a node whose clock is a little slow takes a package that was made just now
SECRET = 0o600  # a package holds keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """How packages are to be made.

    Attributes:
        now: the time.
        nodes: the only nodes to make packages for; all of them by default.
        generation: to state in place of the next one.
        pointer_url: where the packages will be; ``{node}`` stands for the node's name.
    """

    now: datetime
    nodes: Sequence[str] = ()
    generation: int | None = None
    pointer_url: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Created:
    """A package that was made, or was there already.

    Attributes:
        size: bytes of the package file.
        pointer: the signed document that says where it is, if one was asked for.
        unchanged: whether the file is there as it would be made again.
    """

    node: str
    path: Path
    generation: int
    size: int
    sha256: str
    not_after: str
    pointer: Path | None
    unchanged: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Made:
    node: str
    entry: Entry
    data: bytes
    pointer: bytes
    unchanged: bool


def create(cluster: Cluster, pki_folder: Path, output: Path, wanted: Wanted) -> list[Created]:
    """Write one package per node, and what is for ``kubectl apply``.

    A package that says the same as the last one keeps its generation, while more than half of its time is left.

    Raises:
        UsageError: a node that is not in the cluster, a generation that was given away, or a folder of another cluster.
        DataError: a file that goes in is not what it must be.
        HostError: one is missing, or a key may be read by others.
        PackageError: a package would be refused: it is too large.
    """
    assert not find_problems(cluster)
    nodes = _chosen(cluster, wanted)
    pki = Pki(pki_folder)
    pki.check(cluster)
    key = load_private_key(pki_folder / KEY_FILE)
    rendered = [(node, render(cluster, node, pki)) for node in nodes]
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(output / LOCK):
        state = read_generations(output / STATE, cluster.name)
        made = [_make(cluster, node, files, key, output, state, wanted) for node, files in rendered]
        # The numbers first: one that was given away is never given to other content, wherever this is cut short.
        merged = Generations(cluster=cluster.name, nodes={**state.nodes, **{one.node: one.entry for one in made}})
        if merged != state:
            write_atomic(output / STATE, merged.to_bytes(), mode=SECRET)
        _write_addons(cluster, output / ADDONS)
        return [_write(one, output) for one in made]


def build_manifest(cluster: Cluster, node: Node, files: dict[str, File], named: str, entry: Entry) -> Manifest:
    """Return a node's manifest.

    Args:
        cluster: that the node belongs to.
        node: that the package is for.
        files: by path.
        named: id of the key that signs.
        entry: generation and time.

    Raises:
        DataError: something is longer than a manifest takes.
    """
    try:
        return _manifest(cluster, node, files, named, entry)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)]
        raise DataError(f"{node.name}: a manifest has no room for this", context="\n".join(lines)) from error


def _manifest(cluster: Cluster, node: Node, files: dict[str, File], named: str, entry: Entry) -> Manifest:
    selectors = {
        name: tuple(value.lower() for value in values) for name, values in dict(node.selectors).items() if values
    }
    settings = _settings(cluster, node)
    versions = VersionRange(min=cluster.kubernetes.minimum, below=cluster.kubernetes.below)
    # Only proxies need to know the init: they are drop-ins of systemd's units.
    requires = Requires(
        kubelet=versions, runtime="containerd", arch=node.arch, init="systemd" if settings.proxy else None
    )
    entries = tuple(
        FileEntry(path=path, sha256=sha256_bytes(file.data), size=len(file.data), mode=file.mode)  # type: ignore[arg-type]
        for path, file in sorted(files.items())
    )
    return Manifest(
        cluster=cluster.name, node=node.name, role=node.role, generation=entry.generation,
        not_before=entry.not_before, not_after=entry.not_after, key_id=named, selectors=Selectors(**selectors),
        requires=requires, settings=settings, files=entries,
    )  # fmt: skip


def _chosen(cluster: Cluster, wanted: Wanted) -> list[Node]:
    names = [node.name for node in cluster.nodes]
    for name in wanted.nodes:
        if name not in names:
            raise UsageError(f'the cluster has no node "{name}"{did_you_mean(name, names)}')
    nodes = [node for node in cluster.nodes if not wanted.nodes or node.name in wanted.nodes]
    if wanted.pointer_url and not wanted.pointer_url.startswith(("http://", "https://")):
        raise UsageError(f'"{wanted.pointer_url}" is not an address', hint="--pointer-url http(s)://...")
    if wanted.pointer_url and len(nodes) > 1 and "{node}" not in wanted.pointer_url:
        hint = "--pointer-url https://files.example/{node}.ibdata"
        raise UsageError("each node's package has an address of its own", hint=hint)
    return nodes


def _settings(cluster: Cluster, node: Node) -> Settings:
    proxy = None
    if cluster.proxy.http or cluster.proxy.https:
        own = ["localhost", "127.0.0.1", *cluster.pod_cidrs, *cluster.service_cidrs, f".{cluster.dns_domain}"]
        names = [*own, *([cluster.api_host] if cluster.api_host else []), *node.addresses, *cluster.proxy.no]
        proxy = Proxy(
            http=cluster.proxy.http or None, https=cluster.proxy.https or None, no=",".join(dict.fromkeys(names))
        )
    return Settings(hostname=node.name, ssh_authorized_keys=cluster.ssh_authorized_keys or None, proxy=proxy)


def _make(
    cluster: Cluster, node: Node, files: dict[str, File], key: PrivateKey, output: Path, state: Generations,
    wanted: Wanted,
) -> _Made:  # fmt: skip
    old = _existing(output / f"{node.name}{SUFFIX}", cluster.name, node.name)
    named = key_id(key.public_key())
    fresh = Entry(
        generation=1, content="", not_before=format_time(wanted.now - SKEW),
        not_after=format_time(wanted.now + timedelta(days=cluster.validity_days)),
    )  # fmt: skip
    content = _content(build_manifest(cluster, node, files, named, fresh), cluster.validity_days)
    fresh = fresh.model_copy(update={"content": content})
    seen = old.manifest.generation if old else 0
    entry = _entry(state.nodes.get(node.name), fresh, seen, node.name, wanted)
    manifest = build_manifest(cluster, node, files, named, entry)
    if old is not None and old.manifest_bytes == manifest.to_bytes() and _is_signed(old, key):
        data, unchanged = (output / f"{node.name}{SUFFIX}").read_bytes(), True
    else:
        signature = sign(key, manifest.to_bytes())
        data, unchanged = pack(manifest, {path: file.data for path, file in files.items()}, signature), False
    url = wanted.pointer_url.replace("{node}", node.name)
    pointer = make_pointer(key, data, url) if url else b""
    return _Made(node=node.name, entry=entry, data=data, pointer=pointer, unchanged=unchanged)


def _entry(last: Entry | None, fresh: Entry, seen: int, node: str, wanted: Wanted) -> Entry:
    """Return generation and time: those of the last package, or the next ones.

    Raises:
        UsageError: the generation that is asked for was given to something else.
    """
    highest = max(seen, last.generation if last else 0)
    same = last is not None and last.content == fresh.content and last.generation == highest
    asked = wanted.generation
    if last is not None and same and asked in (None, highest) and _lasts(last, wanted.now):
        return last
    if asked is not None and asked <= highest:
        hint = f"--generation {highest + 1}, or none at all"
        raise UsageError(f"{node}: generation {highest} was given away; {asked} would be refused", hint=hint)
    return fresh.model_copy(update={"generation": asked or highest + 1})


def _lasts(entry: Entry, now: datetime) -> bool:
    """Tell whether more than half of a package's time is left."""
    start, end = parse_time(entry.not_before), parse_time(entry.not_after)
    return end - now > (end - start) / 2


def _content(manifest: Manifest, days: int) -> str:
    """Return the id of what a package says, whatever its generation and time."""
    said = {
        name: value for name, value in manifest.as_data().items() if name not in ("generation", "notBefore", "notAfter")
    }
    return content_id({"manifest": said, "days": days})


def _existing(path: Path, cluster: str, node: str) -> Package | None:
    """Return the package that is there; a damaged one is none, and is replaced."""
    if not path.is_file():
        return None
    try:
        package = unpack(path.read_bytes())
    except PackageError:
        return None
    return package if (package.manifest.cluster, package.manifest.node) == (cluster, node) else None


def _is_signed(package: Package, key: PrivateKey) -> bool:
    try:
        verify(key.public_key(), package.manifest_bytes, package.signature, package.manifest.key_id)
    except PackageError:
        return False
    return True


def _write_addons(cluster: Cluster, folder: Path) -> None:
    files = render_addons(cluster)
    for name in ADDON_FILES:
        if name in files:
            write_atomic(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)


def _write(made: _Made, output: Path) -> Created:
    path, pointer = output / f"{made.node}{SUFFIX}", output / f"{made.node}{POINTER_SUFFIX}"
    if not made.unchanged:
        write_atomic(path, made.data, mode=SECRET)
    if made.pointer:
        write_atomic(pointer, made.pointer)
    elif not made.unchanged:
        pointer.unlink(missing_ok=True)  # it would be of the package before
    return Created(
        node=made.node, path=path, generation=made.entry.generation, size=len(made.data),
        sha256=sha256_bytes(made.data), not_after=made.entry.not_after, pointer=pointer if made.pointer else None,
        unchanged=made.unchanged,
    )  # fmt: skip
