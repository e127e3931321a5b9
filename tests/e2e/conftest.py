"""Bakes real images once per session, and boots them. Needs root, the package registries and QEMU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import process
from imagebuilder.bake import BakeOptions, BakeResult, bake
from imagebuilder.cells import plan_request
from imagebuilder.cli.settings import default_cache
from imagebuilder.config import load_config
from imagebuilder.content import write_atomic
from imagebuilder.events import Progress, Tape
from imagebuilder.model import BuildRequest
from imagebuilder.process import RealRunner
from imagebuilder.verify.booted.guest import LiveGuest, Opener, Shell
from imagebuilder.verify.budgets import spending
from imagebuilder.verify.model import CheckResult, Report
from imagebuilder.verify.report.page import as_html
from imagebuilder.verify.run import CHECKS, VerifyRequest, verify
from imagebuilder.vm.boot import BootRequest, RunningGuest, boot

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/standalone/imagebuilder.toml"
PAGES = ROOT / "out/verify"
BOOT_SECONDS = 600  # under TCG, with other tests beside; an idle machine takes one
CONSOLE_CHARACTERS = 8000  # shown when a test with a guest fails
Bake = Callable[..., BakeResult]
Boot = Callable[..., AbstractContextManager[RunningGuest]]
Prove = Callable[..., tuple[Report, dict[str, CheckResult]]]

needs_bake = pytest.mark.skipif(
    os.geteuid() != 0 or process.find("mmdebstrap") is None, reason="baking needs root and mmdebstrap"
)
needs_qemu = pytest.mark.skipif(process.find("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")


@pytest.fixture(scope="session")
def cache() -> Path:
    """The user's cache: packages and built programs are shared with ``make demo``."""
    return default_cache(os.environ, Path.home())


@pytest.fixture(scope="session")
def baked(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    """Bakes a cell, once per session: with the standalone example unless ``plain``; ``bare`` is no node at all."""
    done: dict[Any, BakeResult] = {}
    config = load_config(EXAMPLE)

    def get(
        os_name: str = "debian", *, release: str = "13", target: str = "qemu", plain: bool = False,
        trust: tuple[Path, ...] = (), overlays: tuple[Path, ...] = config.overlay, bare: bool = False,
    ) -> BakeResult:  # fmt: skip
        key = (os_name, release, target, plain, trust, overlays, bare)
        if key not in done:
            site: dict[str, Any] = {} if plain else {"overlays": overlays, "images": () if bare else config.image}
            plan = plan_request(
                BuildRequest(os=os_name, release=release, target=target, trust=trust, bare=bare, **site)
            )
            options = BakeOptions(output=tmp_path_factory.mktemp("out"), cache=cache)
            done[key] = bake(plan, options=options, runner=RealRunner(), progress=Progress())
        return done[key]

    return get


@pytest.fixture
def booted(cache: Path, tmp_path: Path) -> Boot:
    """Boots an artifact until a stage, with SSH by a key of this run."""

    @contextmanager
    def start(result: BakeResult, *, until: str, firmware: str = "bios", **options: Any) -> Iterator[RunningGuest]:
        request = BootRequest(
            disk=result.artifact, disk_format=result.manifest["artifact"]["format"], until=until, firmware=firmware,
            console_log=tmp_path / "console.log", timeout=BOOT_SECONDS, ssh=True, **options,
        )  # fmt: skip
        with boot(request, runner=RealRunner(), progress=Progress(), cache_dir=cache) as guest:
            assert guest.ssh is not None
            try:
                guest.ssh.wait(BOOT_SECONDS)
                yield guest
            except BaseException:
                sys.stdout.write(guest.report.console_log.read_text("utf-8", "replace")[-CONSOLE_CHARACTERS:])
                raise

    return start


def telling(start: Boot, ask: Callable[[RunningGuest], Iterable[str]], said: list[str]) -> Opener:
    """Return what starts the guests of ``verify``; once all checks are over, a guest says what it is asked here."""

    @contextmanager
    def opened(firmware: str) -> Iterator[Shell]:
        with start(firmware=firmware) as guest:
            assert guest.ssh is not None
            yield LiveGuest(guest.report, guest.machine, guest.ssh)
            said.extend(ask(guest))

    return opened


@pytest.fixture
def proven(cache: Path) -> Prove:
    """Verifies an artifact as ``imagebuilder verify`` does; all that does not hold, by id. CI keeps the pages."""

    def get(
        path: Path, tape: Tape | None = None, opener: Opener | None = None, **how: Any
    ) -> tuple[Report, dict[str, CheckResult]]:
        request = VerifyRequest(path=path, **how)
        report = verify(request, runner=RealRunner(), progress=Progress(tape), cache=cache, opener=opener)
        page = as_html(report, CHECKS, None, spending(request.budgets, report.inventory, report.boots))
        write_atomic(PAGES / f"{path.parent.name}-{path.name}.html", page)
        return report, {result.id: result for result in report.failures}

    return get
