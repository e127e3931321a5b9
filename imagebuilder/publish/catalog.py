"""A self-hosted catalog of Vagrant boxes: a folder of files, for any web server or none.

    catalog.json                    title and address
    index.html                      for people
    <user>/<name>.json              what Vagrant is given
    <user>/<name>/<version>/<provider>-<architecture>.box

All changes happen under a lock, and in an order that leaves a good catalog whenever they are cut short: files come
before what names them, and go after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.content import CHUNK, locked, sha256_file, write_atomic, writing
from imagebuilder.errors import ArtifactError, CatalogError, UsageError
from imagebuilder.gzips import OnProgress
from imagebuilder.publish.boxfile import read_box
from imagebuilder.publish.boxnames import ARCHITECTURES, check_name, check_url, check_version, version_key
from imagebuilder.publish.catalogfile import (
    STATE,
    BoxEntry,
    ProviderEntry,
    State,
    VersionEntry,
    file_path,
    file_url,
    in_order,
    newest_first,
    read_box_entry,
    read_json,
    write_json,
)
from imagebuilder.publish.page import render_page

LOCK = ".lock"
PAGE = "index.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class Added:
    """What an add did.

    Attributes:
        name, version, provider, arch: of the box.
        url: of the file that Vagrant is given.
        path: of the box file.
        unchanged: whether these very bytes were there already.
    """

    name: str
    version: str
    provider: str
    arch: str
    url: str
    path: Path
    unchanged: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """How a box is to be added. Empty values mean: from the box, or the next free one.

    Attributes:
        day: as yyyymmdd, for versions that are made up.
        sha256: what the box's bytes must have, when that is known.
        created_at: the time, for people.
    """

    name: str = ""
    version: str = ""
    arch: str = ""
    description: str = ""
    day: str = "20000101"
    sha256: str = ""
    created_at: str = ""


class Catalog:
    """A folder of boxes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, url: str, title: str = "") -> bool:
        """Make the catalog, or give one that is there another address or title.

        Returns:
            Whether it is new.

        Raises:
            UsageError: the address is none, or the folder holds something else.
            CatalogError: the catalog that is there is damaged.
        """
        check_url(url)
        new = not (self.folder / STATE).exists()
        if new and self.folder.is_dir() and any(path.name != LOCK for path in self.folder.iterdir()):
            raise UsageError(f"{self.folder} is neither empty nor a catalog", hint="--output with a new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / LOCK):
            old = None if new else self.state()
            boxes = self.boxes()
            state = State(url=check_url(url), title=title or (old.title if old else "Vagrant boxes"))
            write_json(self.folder / STATE, state)
            for box in boxes:
                self._write(box, state)
            self._write_page(state)
        return new

    def state(self) -> State:
        """Return title and address.

        Raises:
            CatalogError: the folder is no catalog, or it is damaged.
        """
        if not (self.folder / STATE).is_file():
            hint = f"imagebuilder box catalog --output {self.folder} --url https://..."
            raise CatalogError(f"{self.folder} is no catalog of boxes", hint=hint)
        return read_json(self.folder / STATE, State)

    def boxes(self) -> list[BoxEntry]:
        """Return all boxes, by name.

        Raises:
            CatalogError: one's file is damaged.
        """
        paths = sorted(self.folder.glob("[!.]*/[!.]*.json"))
        return [read_box_entry(path, f"{path.parent.name}/{path.stem}") for path in paths]

    def add(self, box: Path, wanted: Wanted, *, on_progress: OnProgress | None = None) -> Added:
        """Add a box; another add at the same time waits.

        Raises:
            ArtifactError: the file is no box, or changed while it was copied.
            UsageError: a name or version that Vagrant would refuse, or a version that is published with other bytes.
            CatalogError: the catalog is damaged; it is left as it is.
        """
        self.state()
        info = read_box(box)
        name = check_name(wanted.name or f"imagebuilder/{info.info.get('name', '')}")
        arch = info.arch or wanted.arch
        if arch not in ARCHITECTURES:
            raise UsageError(f"{box.name} does not say for which architecture it is", hint="--arch amd64")
        digest = sha256_file(box)
        if wanted.sha256 not in ("", digest):
            raise ArtifactError(f"{box} is not what its manifest says", hint="bake it again")
        with self._changing() as state:
            entry = self._box(name)
            version = self._version(entry, wanted, (info.provider, arch), digest)
            path = self.folder / file_path(name, version, info.provider, arch)
            file = ProviderEntry(
                name=info.provider, url="", checksum_type="sha256", checksum=digest, architecture=arch,
                size=box.stat().st_size, info=dict(info.info),
            )  # fmt: skip
            unchanged = self._same(entry, version, file) and path.is_file() and sha256_file(path) == digest
            if not unchanged:
                _copy(box, path, digest, on_progress)
                self._write(_with(entry, version, file, wanted), state)
        return Added(
            name=name, version=version, provider=info.provider, arch=arch, url=file_url(state.url, f"{name}.json"),
            path=path, unchanged=unchanged,
        )  # fmt: skip

    def prune(self, keep: int, name: str = "") -> list[tuple[str, str]]:
        """Remove all but the newest versions, and what a change that was cut short left behind.

        Args:
            keep: how many versions of each box stay, at least 1.
            name: the only box to prune; all of them by default.

        Returns:
            Name and version of what was removed.

        Raises:
            UsageError: there is no such box.
            CatalogError: the catalog is damaged; it is left as it is.
        """
        if keep < 1:
            raise UsageError("at least one version must stay", hint="--keep 1")
        with self._changing() as state:
            boxes = [box for box in self.boxes() if name in ("", box.name)]
            if name and not boxes:
                raise UsageError(f"there is no box {name} in {self.folder}", hint="imagebuilder box list")
            removed = []
            for box in boxes:
                versions = newest_first(box.versions)
                removed += [(box.name, version.version) for version in versions[keep:]]
                if versions[keep:]:
                    self._write(box.model_copy(update={"versions": versions[:keep]}), state)
            for box in boxes:
                self._sweep(self._box(box.name))
        return removed

    def check(self) -> list[str]:
        """Return what is wrong with the files of the catalog, one line each.

        Raises:
            CatalogError: a file that says what there is is damaged.
        """
        state, problems = self.state(), []
        for box in self.boxes():
            known = set()
            for version in box.versions:
                for file in version.providers:
                    place = file_path(box.name, version.version, *file.key)
                    known.add(self.folder / place)
                    problems += _problems(self.folder / place, place, file, file_url(state.url, place))
            stray = [path for path in self._files(box.name) if path not in known]
            problems += [f"{path.relative_to(self.folder)}: no version of the box names it" for path in stray]
        return problems

    @contextlib.contextmanager
    def _changing(self) -> Iterator[State]:
        """Hold the lock for a change, after which the page is written again."""
        self.state()
        with locked(self.folder / LOCK):
            state = self.state()
            self.boxes()  # a damaged catalog is refused before anything is changed
            yield state
            self._write_page(state)

    def _box(self, name: str) -> BoxEntry:
        path = self.folder / f"{name}.json"
        if path.exists():
            return read_box_entry(path, name)
        # On a file system or a web server that does not tell cases apart, the two would be one.
        other = next((box.name for box in self.boxes() if box.name.lower() == name.lower()), "")
        if other:
            raise UsageError(
                f"{name} differs from the box {other} only in upper and lower case", hint=f"--name {other}"
            )
        return BoxEntry(name=name, versions=[])

    def _version(self, box: BoxEntry, wanted: Wanted, key: tuple[str, str], digest: str) -> str:
        """Return the version to add; one that is made up is of today, unless the newest has just this box."""
        versions = newest_first(box.versions)
        if wanted.version:
            return _spelt(check_version(wanted.version), versions)
        for version in versions[:1]:
            if any(file.key == key and file.checksum == digest for file in version.providers):
                return version.version
        number = 0
        while any(
            version_key(version.version) == version_key(f"{wanted.day}.{number}")
            and any(file.key == key for file in version.providers)
            for version in versions
        ):
            number += 1
        return _spelt(f"{wanted.day}.{number}", versions)

    def _same(self, box: BoxEntry, version: str, file: ProviderEntry) -> bool:
        """Return whether the version has this file already.

        Raises:
            UsageError: it has another one in its place: what is published never changes.
        """
        found = (one for entry in box.versions if entry.version == version for one in entry.providers)
        old = next((one for one in found if one.key == file.key), None)
        if old is not None and old.checksum != file.checksum:
            raise UsageError(
                f"{box.name} {version} for {file.name} on {file.architecture} is published with other bytes",
                context=f"published sha256 {old.checksum}\nthis box  sha256 {file.checksum}",
                hint="give it a version of its own, or none, and one is made up: --version",
            )
        return old is not None

    def _write(self, box: BoxEntry, state: State) -> None:
        versions = []
        for version in newest_first(box.versions):
            files = [
                file.model_copy(update={"url": file_url(state.url, file_path(box.name, version.version, *file.key))})
                for file in version.providers
            ]
            versions.append(version.model_copy(update={"providers": in_order(files)}))
        write_json(self.folder / f"{box.name}.json", box.model_copy(update={"versions": versions}))

    def _write_page(self, state: State) -> None:
        write_atomic(self.folder / PAGE, render_page(state, self.boxes()))

    def _files(self, name: str) -> list[Path]:
        return sorted(path for path in (self.folder / name).glob("*/*") if path.is_file())

    def _sweep(self, box: BoxEntry) -> None:
        """Remove box files that no version names, and folders without any."""
        known = {
            file_path(box.name, version.version, *file.key) for version in box.versions for file in version.providers
        }
        for path in self._files(box.name):
            ours = path.suffix == ".box" or (path.name.startswith(".") and path.suffix == ".part")
            if ours and path.relative_to(self.folder).as_posix() not in known:
                path.unlink()
        for folder in sorted((self.folder / box.name).glob("*/")):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def _spelt(version: str, versions: list[VersionEntry]) -> str:
    """Return a version; one that is there in other words (1.0 and 1.0.0) would be one and the same to Vagrant.

    Raises:
        UsageError: that is so.
    """
    key = version_key(version)
    for known in versions:
        if known.version != version and version_key(known.version) == key:
            hint = f"--version {known.version}"
            raise UsageError(f"{version} is the same version to Vagrant as {known.version}, which is there", hint=hint)
    return version


def _with(box: BoxEntry, version: str, file: ProviderEntry, wanted: Wanted) -> BoxEntry:
    """Return the box with one more file."""
    old = next((entry for entry in box.versions if entry.version == version), None)
    entry = old or VersionEntry(version=version, created_at=wanted.created_at, providers=[])
    files = [one for one in entry.providers if one.key != file.key]
    entry = entry.model_copy(update={"providers": [*files, file]})
    others = [one for one in box.versions if one.version != version]
    description = wanted.description or box.description
    return box.model_copy(update={"versions": [*others, entry], "description": description})


def _copy(box: Path, path: Path, digest: str, on_progress: OnProgress | None) -> None:
    actual, done, total = hashlib.sha256(), 0, box.stat().st_size
    if shutil.disk_usage(_existing(path)).free < total:
        raise CatalogError(f"there is no room for {total >> 20} MiB in {path.parent}", hint="imagebuilder box prune")
    with box.open("rb") as source, writing(path) as stream:
        while chunk := source.read(CHUNK):
            actual.update(chunk)
            stream.write(chunk)
            done += len(chunk)
            if on_progress is not None:
                on_progress(done, total)
        if actual.hexdigest() != digest:
            raise ArtifactError(f"{box} changed while it was copied", hint="add it again")


def _existing(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.is_dir())


def _problems(path: Path, place: str, file: ProviderEntry, url: str) -> list[str]:
    if not path.is_file():
        return [f"{place}: missing"]
    problems = [] if file.url == url else [f"{place}: its address in the catalog is {file.url}, not {url}"]
    if sha256_file(path) != file.checksum:
        problems.append(f"{place}: its checksum is not the one in the catalog")
    return problems
