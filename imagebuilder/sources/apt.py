"""Asks a distribution's apt archive for exact packages, and fetches them.

An *apt folder* is a root tree with nothing but apt's sources and signed indexes in it. Where no mirror is named,
mmdebstrap makes it: the archive's address is its own default. Host configuration other than apt's proxy settings is
left out. Signatures and hashes are checked by apt itself; every file's hash is checked again here. Whose apt it is does
not matter (:mod:`imagebuilder.sources.asker`).
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagebuilder import process
from imagebuilder.content import aside, content_id, fsync_directory, write_atomic
from imagebuilder.errors import ToolMissingError, UnreachableError, UnresolvableError
from imagebuilder.events import Stage
from imagebuilder.model import LockedPackage
from imagebuilder.process import Runner
from imagebuilder.sources.aptdates import goes_back, newest_date, release_dates, seconds_of
from imagebuilder.sources.aptmessages import OUT_OF_REACH, explained
from imagebuilder.sources.apturis import parse_uris
from imagebuilder.sources.asker import Asker, HostApt, contained
from imagebuilder.sources.debs import check_package, present
from imagebuilder.sources.download import Downloader
from imagebuilder.sources.openpgp import keyring_of, require_key

KEYRINGS, TRUSTED = "etc/apt/keyrings", "etc/apt/trusted.gpg.d"
FOLDERS = (
    TRUSTED, "etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/sources.list.d", "var/lib/dpkg",
    "var/lib/apt/lists/partial", "var/cache/apt/archives/partial",
)  # fmt: skip
UPDATED, CONFIG, SOLVED = "imagebuilder-updated", "imagebuilder-apt.conf", "imagebuilder-solved"  # our files in it
PREPARED = "var/cache/apt/pkgcache.bin"  # apt's own cache of the indexes; good for the place where it was made
NOT_COPIED = shutil.ignore_patterns("dev", f"*{CONFIG}*", SOLVED, "*pkgcache.bin*")  # also half-written ones
CONNECT_SECONDS = 5  # then a mirror counts as out of reach
UPDATE_SECONDS = 300  # for all indexes: Debian's have 10 MB
CRAWL_SECONDS, SLOWEST = 120, 20_000  # for packages: seconds, and as many more as this many bytes a second take
SKEW_SECONDS = 3600.0  # an index from later than this was fetched while the clock was wrong
KEY_LIMIT = 1 << 20  # bytes of a signing key file; real ones have a few KiB
ASK_AGAIN = "run the command again with --refresh: it asks for versions anew"

PROXY_LINE = re.compile(r'Acquire::https?::(Proxy|ProxyAutoDetect|Proxy-Auto-Detect)\b.*".+"', re.IGNORECASE)
FIELD = re.compile(r"(?:Package|Version|Architecture|SHA256): .")  # of a stanza (deb822(5))


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A distribution's archive. Without ``mirror`` the bootstrap tool's own default serves.

    Attributes:
        name: the name that ``--mirror`` knows it by.
        keyring: path of the keyring on this host, or the name of one that comes with us.
    """

    name: str
    suite: str
    arch: str
    components: tuple[str, ...]
    keyring: str
    mirror: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtraRepository:
    """A repository outside the distribution, with the fingerprint that its key must have."""

    name: str
    uri: str
    suite: str
    components: tuple[str, ...]
    key_url: str
    fingerprint: str


class AptFolder:
    """An apt folder; see the module's docstring."""

    def __init__(self, path: Path, archive: Archive, runner: Runner, asker: Asker | None = None) -> None:
        self.path, self._archive, self._runner = path, archive, runner
        self._asker = asker or HostApt()

    def age(self) -> float:
        """Return the seconds since the indexes were fetched; infinite when they never were, or in the future."""
        try:
            age = time.time() - (self.path / UPDATED).stat().st_mtime
        except OSError:
            return math.inf
        return max(0.0, age) if age > -SKEW_SECONDS else math.inf

    def update(self, log: Path, downloader: Downloader | None = None) -> None:
        """Make the folder anew with fresh, verified indexes.

        Args:
            log: file for the output of programs.
            downloader: asks whether a mirror that was named answers, before apt waits for it twice.

        Raises:
            UnreachableError: the mirror does not answer.
            UntrustedError: an index's signature or hash is wrong, or it is older than the one before.
            UnresolvableError: the mirror does not have this release.
            ToolMissingError: the archive's keyring is not on this host, or no mirror is named and mmdebstrap is not.
        """
        archive, keyring = self._archive, keyring_of(self._archive.keyring)
        if not archive.mirror and not self._asker.knows_default:
            raise no_mirror(archive)
        self._probe(downloader or Downloader())
        who = archive.mirror or f"the default mirror of {archive.suite}"
        with aside(self.path) as work:
            work.chmod(0o755)  # apt fetches as a user of its own
            fresh = work / "root"
            with explained(who):
                self._make(fresh, work, keyring, log)
            if goes_back(release_dates(self.path), release_dates(fresh), explained(who).who):
                (self.path / UPDATED).touch()
                return
            (fresh / UPDATED).touch()
            shutil.rmtree(self.path, ignore_errors=True)
            fresh.rename(self.path)

    def _make(self, root: Path, work: Path, keyring: Path, log: Path) -> None:
        (scratch := work / "tmp").mkdir()
        scratch.chmod(0o1777)
        settings = ["pkgCacheFile::Generate=false"]  # the folder is renamed: it is not to be read for nothing
        if self._archive.mirror:  # not as _apt, to whom folders and the keyring in there may be closed
            laid = self._lay_out(root, keyring)
            keyring = keyring if self._asker.knows_default else laid  # a tree sees no other
        else:
            self._bootstrap(root, work, keyring, log)
            settings.insert(0, "APT::Sandbox::User=_apt")
        # The host's own file: Debian 12's gpgv opens none behind a colon, which the name of a cache folder may have.
        settings.insert(0, f"Dir::Etc::trusted={keyring}")
        argv = ["apt-get", "-q", *(word for setting in settings for word in ("-o", setting)), "update"]
        self._at(root)._apt(argv, network=True, scratch=scratch, log=log, timeout=UPDATE_SECONDS)
        (root / CONFIG).unlink()  # it names the folder

    def _lay_out(self, root: Path, keyring: Path) -> Path:
        """Make what mmdebstrap would make; return the keyring in it, which a tree of apt sees, too."""
        archive, keys = self._archive, keyring.read_bytes()
        for name in FOLDERS:
            (root / name).mkdir(parents=True)
        trusted = root / TRUSTED / f"archive.{'asc' if keys.startswith(b'-') else 'gpg'}"
        trusted.write_bytes(keys)
        (root / "var/lib/dpkg/status").touch()
        line = " ".join(["deb", archive.mirror, archive.suite, *archive.components])
        (root / "etc/apt/sources.list").write_text(f"{line}\n")
        return trusted

    def _at(self, path: Path) -> AptFolder:
        return AptFolder(path, self._archive, self._runner, self._asker)

    def _bootstrap(self, root: Path, work: Path, keyring: Path, log: Path) -> None:
        process.require("mmdebstrap", package="mmdebstrap")
        archive = self._archive
        argv = [
            *contained(), "mmdebstrap", "--variant=custom", "--mode=root", "--format=directory",
            "--skip=update,cleanup/apt,check/empty", f"--architectures={archive.arch}",
            f"--components={','.join(archive.components)}", f"--keyring={keyring}",
            *(f"--aptopt={line}" for line in self._network_settings()),
            archive.suite, str(root),
        ]  # fmt: skip
        # TMPDIR: what a killed mmdebstrap leaves in there is swept with the rest.
        self._runner.run(argv, env={"TMPDIR": str(work)}, log=log, timeout=UPDATE_SECONDS)

    def _probe(self, downloader: Downloader) -> None:
        """Give up within seconds when a mirror is silent; a proxy of apt's own may reach what we cannot."""
        mirror = self._archive.mirror
        if mirror.startswith(("http://", "https://")) and not self._proxies():
            try:
                downloader.probe(mirror)
            except UnreachableError as error:
                where = explained(mirror).who
                raise UnreachableError(f"{where} is out of reach", context=error.message, hint=OUT_OF_REACH) from error

    def adding(self, repository: ExtraRepository, downloader: Downloader, log: Path) -> AptFolder:
        """Return a copy of the folder that has one more repository, after its key proved to be the expected one.

        Raises:
            UnreachableError, UntrustedError: as in :meth:`update`.
        """
        key = downloader.get_bytes(repository.key_url, max_size=KEY_LIMIT).body
        name = f"{self.path.name}-{repository.name}-{content_id([repository.uri, repository.suite])[:12]}"
        copy = self._at(self.path.with_name(name))
        with aside(copy.path) as work:
            work.chmod(0o755)
            fresh = self._at(work / "root")
            shutil.copytree(self.path, fresh.path, symlinks=True, ignore=NOT_COPIED)
            fresh._add(repository, key, log)
            goes_back(release_dates(copy.path), release_dates(fresh.path), repository.uri)
            (fresh.path / CONFIG).unlink()
            shutil.rmtree(copy.path, ignore_errors=True)
            fresh.path.rename(copy.path)
            copy._list(repository)
        return copy

    def _add(self, repository: ExtraRepository, key: bytes, log: Path) -> None:
        require_key(key, repository.fingerprint, url=repository.key_url, name=repository.name)
        write_atomic(self.path / KEYRINGS / f"{repository.name}.asc", key)
        listed = self._list(repository)
        only = [
            "-o", f"Dir::Etc::sourcelist={listed.resolve()}", "-o", "Dir::Etc::sourceparts=-",
            "-o", "APT::Get::List-Cleanup=0", "-o", "APT::Update::Error-Mode=any",
        ]  # fmt: skip
        with explained(repository.uri):
            self._apt(["apt-get", *only, "update"], network=True, scratch=self.path.parent, log=log)

    def _list(self, repository: ExtraRepository) -> Path:
        """Write the line of an extra repository, which has the path of its key, and return the file."""
        keyring = self.path / KEYRINGS / f"{repository.name}.asc"
        line = " ".join(
            [f"deb [signed-by={keyring.resolve()}]", repository.uri, repository.suite, *repository.components]
        )
        listed = self.path / "etc/apt/sources.list.d" / f"{repository.name}.list"
        write_atomic(listed, line + "\n")
        return listed

    def solve(self, names: Sequence[str]) -> tuple[LockedPackage, ...]:
        """Return the exact packages that installing ``names`` into an empty root would bring, sorted by name.

        Raises:
            UnresolvableError: a name is unknown, or their dependencies contradict each other.
        """
        return self._asked(["-y", "install", *names])

    def find(self, names: Sequence[str]) -> tuple[LockedPackage, ...]:
        """Return the newest of each named package, without its dependencies.

        Raises:
            UnresolvableError: a name is unknown.
        """
        return self._asked(["download", *names])

    def prepare(self) -> None:
        """Let apt read the indexes once, for all questions: each that finds this undone does it for itself.

        Nothing is raised: a question says better what is wrong with them.
        """
        if not (self.path / PREPARED).exists():
            self._apt(["apt-cache", "-q", "gencaches"], capture=True, check=False)

    def _asked(self, words: Sequence[str]) -> tuple[LockedPackage, ...]:
        """Return what apt would fetch; an answer is as old as the indexes: :meth:`update` makes a new folder."""
        memory = self.path / SOLVED / content_id(list(words))
        if memory.is_file():
            return parse_uris(memory.read_text("utf-8"))
        said = self._print_uris(words)
        packages = parse_uris(said)
        write_atomic(memory, said)
        return packages

    def known(self, names: Iterable[str]) -> dict[tuple[str, str, str], set[str]]:
        """Return the sha256 that the indexes state for (name, version, architecture): every version that they have.

        A name that they do not have is left out.
        """
        said = self._apt(["apt-cache", "show", *sorted(set(names))], capture=True, check=False).stdout
        found: dict[tuple[str, str, str], set[str]] = {}
        for stanza in said.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if FIELD.match(line))
            key = (fields.get("Package", ""), fields.get("Version", ""), fields.get("Architecture", ""))
            found.setdefault(key, set()).add(fields.get("SHA256", ""))
        return found

    def fetch(self, packages: Iterable[LockedPackage], store: Path, stage: Stage, log: Path) -> None:
        """Bring packages into ``store``, under their file names, their hashes checked.

        Raises:
            UntrustedError: a file's hash is not the locked one; it is not kept.
            UnreachableError: the mirror does not answer.
            UnresolvableError: the mirror, or the index in the cache, no longer has a version.
        """
        store.mkdir(parents=True, exist_ok=True)
        missing = [package for package in packages if not present(store / package.filename, package.size)]
        if not missing:
            return
        if not self.path.is_dir():
            raise UnresolvableError(f"the cache no longer has the index of {self._archive.suite}", hint=ASK_AGAIN)
        seen = 0

        def count(line: str) -> None:
            nonlocal seen
            if line.startswith("Get:"):
                seen += 1
                stage.update(seen, len(missing), "packages")

        wanted = [f"{package.name}:{package.arch}={package.version}" for package in missing]
        wanted = [name.replace(":all=", "=") for name in wanted]
        argv = ["apt-get", "-q", "download", *wanted]
        seconds = CRAWL_SECONDS + sum(package.size for package in missing) / SLOWEST
        try:
            with aside(store / "incoming") as work:
                work.chmod(0o755)
                with explained(f"the archive of {self._archive.suite}"):
                    self._apt(argv, network=True, cwd=work, scratch=work, log=log, on_line=count, timeout=seconds)
                for package in missing:
                    check_package(work / package.filename, package)
                    (work / package.filename).rename(store / package.filename)
        except UnresolvableError as error:  # index or mirror have moved on since the versions were locked
            raise UnresolvableError(error.message, context=error.context, hint=ASK_AGAIN) from error
        fsync_directory(store)

    def date(self) -> str:
        """Return the date of the newest index, as the archive's Release files write it, or an empty string."""
        return newest_date(self.path)

    def default_sources(self) -> str:
        """Return the lines of sources.list that belong into the image: the distribution's own.

        A mirror that was only given for the build is not a node's business, so there are none then.
        """
        if self._archive.mirror:
            return "# Built from a mirror that is not for nodes. Name this node's mirror here.\n"
        return (self.path / "etc/apt/sources.list").read_text("utf-8")

    def epoch(self) -> int:
        """Return the newest index's date in seconds since 1970: the time that everything built from it gets."""
        return seconds_of(self.date())

    def _network_settings(self) -> list[str]:
        """Return apt's settings: give up soon, and what this host's apt says about proxies."""
        lines = [f'Acquire::{scheme}::Timeout "{CONNECT_SECONDS}"' for scheme in ("http", "https")]
        lines += ['Acquire::Retries "0"', 'Acquire::Languages "none"', 'APT::Update::Error-Mode "any"']
        return lines + self._proxies()

    def _proxies(self) -> list[str]:
        """Return what this host's apt says about proxies."""
        if not process.find("apt-config"):
            return []
        dump = self._runner.run(["apt-config", "dump", "Acquire"], capture=True, check=False).stdout
        return [line.rstrip(";") for line in dump.splitlines() if PROXY_LINE.match(line)]

    def _print_uris(self, words: Sequence[str]) -> str:
        """Ask apt in the folder, where no packages are: it names no file that its working directory already has."""
        with explained(f"the archive of {self._archive.suite}"):
            result = self._apt(["apt-get", "-q", "--print-uris", *words], cwd=self.path, capture=True, check=False)
            if result.returncode:  # which dependencies are unmet stands in its standard output
                raise process.command_error(replace(result, tail=(*result.stdout.splitlines(), *result.tail)))
        return result.stdout

    def _apt(
        self, argv: Sequence[str], *, network: bool = False, timeout: float = 1800, cwd: Path | None = None,
        scratch: Path | None = None, **options: Any,
    ) -> process.Result:  # fmt: skip
        config, root = self.path / CONFIG, self.path.resolve()
        place = f'Dir "{root}"'
        if not config.exists() or f"{place};" not in config.read_text("utf-8").splitlines():  # or the cache was moved
            settings = [
                place, f'Dir::State::status "{root}/var/lib/dpkg/status"',
                f'APT::Architecture "{self._archive.arch}"', f'APT::Architectures "{self._archive.arch}"',
                'APT::Install-Recommends "false"', 'APT::Sandbox::User "root"', 'Acquire::ForceHash "SHA256"',
                *self._network_settings(),
            ]  # fmt: skip
            write_atomic(config, "".join(f"{line};\n" for line in settings))
        # TMPDIR: what a killed apt leaves in there is swept with the rest.
        env = {"APT_CONFIG": str(config.resolve()), **({"TMPDIR": str(scratch)} if scratch else {})}
        with self._asker.asking(argv, self._archive, network=network, env=env, cwd=cwd) as command:
            return self._runner.run(command, env=env, cwd=cwd, timeout=timeout, **options)


def no_mirror(archive: Archive) -> ToolMissingError:
    """Return the error of a host that has no apt, where no mirror is named either."""
    return ToolMissingError(
        f"apt is not on this host, and no mirror of {archive.name} is named",
        hint=f"name one: --mirror {archive.name}=URL; apt itself is taken from there, too",
    )


def folder_key(archive: Archive) -> str:
    """Return a name for the apt folder of an archive."""
    return f"{archive.suite}-{archive.arch}-{content_id([archive.mirror, archive.components])[:12]}"


def by_layer(
    solved: Mapping[str, tuple[LockedPackage, ...]], below: Mapping[str, str]
) -> dict[str, tuple[LockedPackage, ...]]:
    """Take from each set what the set below it already has: ``below`` maps a layer to the one that it stands on."""
    there = {layer: frozenset(packages) for layer, packages in solved.items()}
    return {
        layer: tuple(package for package in packages if package not in there.get(below.get(layer, ""), ()))
        for layer, packages in solved.items()
    }
