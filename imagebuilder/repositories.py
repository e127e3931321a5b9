"""The apt folder that answers for a plan: the distribution's archive, and other repositories as they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagebuilder.errors import UsageError
from imagebuilder.plan import BuildPlan
from imagebuilder.process import Runner
from imagebuilder.sources import apt
from imagebuilder.sources.asker import Asker
from imagebuilder.sources.download import Downloader


def archive_of(plan: BuildPlan) -> apt.Archive:
    """Return the archive of the plan's distribution, or the mirror that was named for it."""
    profile = plan.profile
    return apt.Archive(
        name=profile.name, suite=profile.suite, arch=profile.arch, components=profile.archive.components,
        keyring=profile.archive.keyring, mirror=plan.request.mirrors.get(profile.name, ""),
    )  # fmt: skip


class Repositories:
    """What apt may ask for a plan.

    Attributes:
        folder: the apt folder with all that were added.
    """

    def __init__(
        self, plan: BuildPlan, *, cache: Path, runner: Runner, downloader: Downloader, log: Path,
        asker: Asker | None = None,
    ) -> None:  # fmt: skip
        self._plan, self._downloader, self._log = plan, downloader, log
        archive = archive_of(plan)
        self._own = apt.AptFolder(cache / "apt" / apt.folder_key(archive), archive, runner, asker)
        self._added: set[str] = set()
        self.folder = self._own

    def update(self) -> None:
        """Ask the distribution's archive anew; other repositories have to be added again.

        Raises:
            UnreachableError, UntrustedError, UnresolvableError, ToolMissingError: as :meth:`apt.AptFolder.update`.
        """
        self._own.update(self._log, self._downloader)
        self._added.clear()
        self.folder = self._own

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """Let apt read the distribution's indexes while the block asks others; after it, apt is asked."""
        with ThreadPoolExecutor(1, thread_name_prefix="apt") as beside:
            reading = beside.submit(self._own.prepare)
            yield
            reading.result()  # in here: when a Ctrl-C ends the waiting, leaving the block waits on

    def add(self, name: str) -> None:
        """Ask one more repository of the profile, or the mirror that was named for it.

        Raises:
            UsageError: the profile has no such repository.
            UnreachableError, UntrustedError: it does not answer, or its key is not the expected one.
        """
        if name in self._added:
            return
        repository = self._plan.repository(name)
        if repository is None:
            raise UsageError(f"{self._plan.profile.title} has no repository {name}")
        minor, mirror = self._plan.kubernetes_minor, self._plan.request.mirrors.get(name, "")
        uri, key_url = repository.uri_for(minor), repository.key_url_for(minor)
        if mirror:
            key_url = key_url.replace(uri.rstrip("/"), mirror.rstrip("/"), 1)
            uri = mirror
        extra = apt.ExtraRepository(
            name=name, uri=uri, suite=repository.suite, components=repository.components, key_url=key_url,
            fingerprint=self._plan.request.keys.get(name, repository.fingerprint),
        )  # fmt: skip
        self.folder = self.folder.adding(extra, self._downloader, self._log)
        self._added.add(name)
