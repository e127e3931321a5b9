"""The direct engine: builds the layers that the cache does not have, and writes the disk. No VM, no host mounts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder.content import content_id, write_atomic
from imagebuilder.direct.bootstrap import DPKG_OPTIONS, bootstrap
from imagebuilder.direct.debcache import DebCache
from imagebuilder.direct.disk import VOLUMES
from imagebuilder.direct.elsewhere import Elsewhere
from imagebuilder.direct.fastroot import fast_root
from imagebuilder.direct.fulldisk import full_disk_named
from imagebuilder.direct.imagestore import settle
from imagebuilder.direct.layerjob import LayerJob
from imagebuilder.direct.layers import Layer, LayerStore, removed_afterwards
from imagebuilder.direct.sandbox import INSIDE, Bind, Mount, Overlay, Tmpfs, command
from imagebuilder.direct.storeddebs import store_packages
from imagebuilder.errors import CacheError, CommandError, DeadlineError, StepError
from imagebuilder.events import Progress, Stage
from imagebuilder.model import FORMAT_VERSION, LockedPackage
from imagebuilder.process import Runner

LAYER_SECONDS = 1800  # for all steps of a layer; a cold base takes 35 s on two cores
UNSTABLE = "/var/cache/ldconfig/aux-cache"  # ldconfig(8): times and numbers of inodes; it is made again where it lacks
APT_CONF = f"""\
Dir::Etc::sourcelist "{INSIDE}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "{INSIDE}/lists";
Dir::Cache "{INSIDE}/cache";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
"""


MakeRepository = Callable[[Sequence[LockedPackage], Path, Stage], Path]


@dataclass(kw_only=True)
class DirectEngine:
    """Builds layers into a store.

    Attributes:
        make_repository: writes a local repository of exactly these packages into a folder, and returns it.
        elsewhere: who may have a layer that the store does not have, in this order.
        provision: the ``provision`` folder.
        suite, arch: in the distribution's names.
        log: file for all output.
    """

    store: LayerStore
    runner: Runner
    progress: Progress
    provision: Path
    suite: str
    arch: str
    log: Path
    make_repository: MakeRepository = field(repr=False)
    elsewhere: Sequence[Elsewhere] = ()

    def build_upper(
        self, jobs: Sequence[LayerJob], base: Layer, tools: Sequence[LockedPackage],
        then: Callable[[Sequence[Layer]], None],
    ) -> tuple[list[Layer], list[Layer]]:  # fmt: skip
        """Return the layers of a stack and those of the tools tree, which is made beside all but the lowest of them.

        Args:
            jobs: of the layers above the base.
            base: the lowest layer.
            tools: packages of the tools tree.
            then: is told the tools tree as soon as it is there, while layers are still made.

        Raises:
            StepError, CommandError, HostError: as in :meth:`build`.
        """

        def beside() -> list[Layer]:
            made = self.tools(base, tools)
            then(made)
            return made

        with ThreadPoolExecutor(1, thread_name_prefix="tools") as pool:
            running = pool.submit(beside)
            return self.build(jobs, [base]), running.result()

    def build(self, jobs: Sequence[LayerJob], below: Sequence[Layer] = ()) -> list[Layer]:
        """Return the layers of a stack, the lowest first; those that the store has are not built.

        Args:
            jobs: of the layers that are wanted.
            below: layers that they stand on.

        Raises:
            StepError: a step failed; the layer is not kept.
            CommandError: bootstrapping failed.
            HostError: the disk is full.
        """
        layers = list(below)
        for job in jobs:
            with self.progress.stage(f"layer:{job.name}", f"Layer {job.name}") as stage:
                found = self._found(job.id, job.whole_info, stage)
                with full_disk_named(self.store.staging):
                    layers.append(found or self._used(self._build(job, layers[:1] if job.on_base else layers, stage)))
        return layers

    def tools(self, base: Layer, packages: Sequence[LockedPackage]) -> list[Layer]:
        """Return the tools tree: the base layer, and the disk-writing programs unpacked on top of it."""
        tools_id = content_id(
            {
                "format": FORMAT_VERSION, "name": "tools", "parent": base.id,
                "packages": [package.exact for package in packages],
            }
        )  # fmt: skip
        with self.progress.stage("layer:tools", "Programs that write the disk") as stage:
            info = {"name": "tools", "id": tools_id}
            found = self._found(tools_id, info, stage)
            if found is None:
                with full_disk_named(self.store.staging):
                    found = self._used(self._unpack_tools(info, base, packages, stage))
        return [base, found]

    def _found(self, layer_id: str, info: Mapping[str, object], stage: Stage) -> Layer | None:
        """Return a layer that is made already: the store's, or one from elsewhere."""
        found = self.store.use(layer_id, stage.note)
        taken = (place.take(layer_id, info, self.store, stage) for place in self.elsewhere if found is None)
        found = found or next((layer for layer in taken if layer), None)
        stage.cached = found is not None
        return found

    def _build(self, job: LayerJob, below: Sequence[Layer], stage: Stage) -> Layer:
        with self.store.building(job.id, stage.note) as folder:
            if folder is None:
                return self._finished(job.id)
            repository = self.make_repository(job.packages, folder / "repository", stage)
            if below:
                self._store_packages(repository, job.packages, folder)
            else:
                self._bootstrap(job, folder, repository, stage)
            for path, text in job.texts.items():
                write_atomic(folder / "root" / path.lstrip("/"), text)
            self._run_steps(job, below, folder, repository, stage)
            # The mount point that the sandbox made for it.
            (folder / "root/usr/sbin/policy-rc.d").unlink(missing_ok=True)
            self._check_installed(job, folder)
            settle(folder / "volumes/containerd")
            return self.store.commit(folder, job.whole_info)

    def _bootstrap(self, job: LayerJob, folder: Path, repository: Path, stage: Stage) -> None:
        root = folder / "root"
        if job.fast:
            fast_root(
                job.packages, repository=repository, unpacked=self.store.unpacked, scratch=folder, root=root,
                runner=self.runner, stage=stage, log=self.log,
            )  # fmt: skip
            return
        bootstrap(
            job.packages, repository=repository, suite=self.suite, arch=self.arch, root=root,
            runner=self.runner, stage=stage, log=self.log,
        )  # fmt: skip

    def _store_packages(self, repository: Path, packages: Sequence[LockedPackage], folder: Path) -> None:
        scratch = folder / "stored"
        scratch.mkdir()
        with removed_afterwards(scratch):
            store_packages(repository, packages, self.suite, DebCache(self.store.unpacked, scratch, self.runner))

    def _run_steps(self, job: LayerJob, below: Sequence[Layer], folder: Path, repository: Path, stage: Stage) -> None:
        current = ""

        def follow(line: str) -> None:
            nonlocal current
            if line.startswith("@@step "):
                current = line.removeprefix("@@step ")
                stage.note(current)

        self._volumes(folder, below)
        mounts = [*self._tree(folder, below), *self._inside(folder, repository), *job.binds]
        env = {"IB_PROVISION": f"{INSIDE}/provision", "APT_CONFIG": f"{INSIDE}/apt.conf", **job.env}
        run = f'/bin/sh {INSIDE}/provision/run-steps.sh "$@"; rm -f {UNSTABLE}'
        argv = ["/bin/sh", "-ec", run, "sh", *job.steps]
        root = folder / ("mnt" if below else "root")
        try:
            self.runner.run(command(root, mounts, argv, env), log=self.log, on_line=follow, timeout=LAYER_SECONDS)
        except CommandError as error:
            raise step_error(current, error, self.log) from error
        except DeadlineError as error:
            message = f"the step {current} was still running after {LAYER_SECONDS} s and was ended"
            raise DeadlineError(message, context=error.context, hint=error.hint) from error

    def _tree(self, folder: Path, below: Sequence[Layer]) -> list[Mount]:
        mounts: list[Mount] = []
        if below:
            for name in ("mnt", "work"):
                (folder / name).mkdir()
            lower = [layer.root for layer in reversed(below)]
            mounts.append(Overlay(lower=lower, upper=folder / "root", work=folder / "work"))
        mounts += [Tmpfs(target="/run"), Tmpfs(target=f"{INSIDE}/lists"), Tmpfs(target=f"{INSIDE}/cache")]
        for name, path in VOLUMES.items():
            if (folder / "volumes" / name).is_dir():
                mounts.append(Bind(source=folder / "volumes" / name, target=path, writable=True))
        return mounts

    def _inside(self, folder: Path, repository: Path) -> list[Mount]:
        options = "".join(f'DPkg::Options:: "--{option}";\n' for option in DPKG_OPTIONS)
        # No fsync: nobody reads them after a crash, and each would wait for the sync of the layer before.
        (folder / "apt.conf").write_text(APT_CONF + options)
        (folder / "sources.list").write_text(f"deb [trusted=yes] file:{INSIDE}/repository ./\n")
        (folder / "policy-rc.d").write_text("#!/bin/sh\nexit 101\n")  # no service starts in here
        (folder / "policy-rc.d").chmod(0o755)
        return [
            Bind(source=self.provision, target=f"{INSIDE}/provision"),
            Bind(source=repository, target=f"{INSIDE}/repository"),
            Bind(source=folder / "apt.conf", target=f"{INSIDE}/apt.conf"),
            Bind(source=folder / "sources.list", target=f"{INSIDE}/sources.list"),
            Bind(source=folder / "policy-rc.d", target="/usr/sbin/policy-rc.d"),
        ]

    def _volumes(self, folder: Path, below: Sequence[Layer]) -> None:
        """Give a layer above the runtime its own copy of the volumes below it: small, and whole."""
        if "runtime" not in [layer.info["name"] for layer in below]:
            return
        for name in VOLUMES:
            target = folder / "volumes" / name
            found = [layer.volumes / name for layer in below if (layer.volumes / name).is_dir()]
            if found:
                self.runner.run(["cp", "-a", "--reflink=auto", found[-1], target])
            else:
                target.mkdir(mode=0o711)

    def _check_installed(self, job: LayerJob, folder: Path) -> None:
        """Compare dpkg's database with the lock: a layer is what its id says, or it is not kept."""
        status = folder / "root/var/lib/dpkg/status"
        if not status.is_file():
            if job.packages:
                raise CacheError(f"layer {job.name} installed none of its {len(job.packages)} packages")
            return
        found = installed_versions(status.read_text("utf-8", "replace"))
        wrong = sorted(
            f"{name}: {found.get(name, 'not installed')} instead of {job.installed.get(name, 'nothing')}"
            for name in found.keys() | job.installed.keys()
            if found.get(name) != job.installed.get(name)
        )
        if wrong:
            raise StepError(
                f"layer {job.name} does not have the packages that were locked for it",
                context="\n".join(wrong[:10]), hint=f"the whole log is in {self.log}",
            )  # fmt: skip

    def _unpack_tools(
        self, info: Mapping[str, str], base: Layer, packages: Sequence[LockedPackage], stage: Stage
    ) -> Layer:
        with self.store.building(info["id"], stage.note) as folder:
            if folder is None:
                return self._finished(info["id"])
            repository = self.make_repository(packages, folder / "repository", stage)
            self._store_packages(repository, packages, folder)
            # Through the base's own links (/bin -> usr/bin), or the folders would hide them.
            unpack = (
                f"for deb in {INSIDE}/repository/*.deb; do"
                " dpkg-deb --fsys-tarfile $deb | tar -xpf - -C / --keep-directory-symlink --no-overwrite-dir; done"
            )
            mounts = [*self._tree(folder, [base]), Bind(source=repository, target=f"{INSIDE}/repository")]
            argv = command(folder / "mnt", mounts, ["/bin/sh", "-euc", unpack])
            self.runner.run(argv, log=self.log, timeout=600)
            return self.store.commit(folder, info)

    def _finished(self, layer_id: str) -> Layer:
        layer = self.store.get(layer_id)
        if layer is None:
            raise CacheError(f"layer {layer_id} vanished from the cache", hint="run the command again")
        return layer

    def _used(self, layer: Layer) -> Layer:
        """Keep others from removing a layer that was just made."""
        return self.store.use(layer.id) or self._finished(layer.id)


def installed_versions(status: str) -> dict[str, str]:
    """Return name and version of the installed packages that dpkg's status file lists (deb822(5))."""
    found = {}
    for stanza in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.split("\n") if not line.startswith(" ") and ": " in line)
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields["Version"]
    return found


def step_error(step: str, error: CommandError, log: Path) -> StepError:
    """Return the error of a failed step: which one, its last lines, where the log is."""
    lines = [line for line in error.context.splitlines() if not line.startswith(("@@", "command: "))]
    what = f"the step {step} failed" if step else "the sandbox could not be set up"
    return StepError(what, context="\n".join(lines) or error.message, hint=f"the whole log is in {log}")
