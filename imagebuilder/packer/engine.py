"""The Packer engine: runs packer in a rendered folder, shows its progress, and says in our terms what went wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagebuilder.errors import (
    CheckFailedError,
    CommandError,
    ImagebuilderError,
    StepError,
    ToolMissingError,
    UsageError,
)
from imagebuilder.events import Progress, Stage
from imagebuilder.packer.machine_readable import Artifact, Output, diagnostics
from imagebuilder.packer.render import OLD
from imagebuilder.process import Result, Runner, command_error, inherited

OLDEST, WITH_PLUGINS = (1, 6, 6), (1, 7, 0)  # older ones lack sensitive variables; since 1.7 builders are plugins
BUILD_SECONDS = 3 * 3600.0  # without KVM an installation takes more than an hour
SHORT_SECONDS = 300.0  # validate may read a list of checksums
INIT_SECONDS = 900.0  # plugins are tens of megabytes
PATIENCE = 300.0  # for packer's own clean-up: it deletes machines, disks and keys in a cloud
MANIFEST = "packer-manifest.json"
# Where builders look for credentials; what they hold goes to packer's environment, and nowhere else.
CREDENTIALS = (
    "PKR_VAR_", "PACKER_PLUGIN_PATH", "PACKER_CONFIG", "PACKER_GITHUB_API_TOKEN", "AWS_", "GOOGLE_", "CLOUDSDK_",
    "ARM_", "AZURE_", "OS_", "VSPHERE_", "PROXMOX_", "PM_", "DIGITALOCEAN_", "HCLOUD_", "VBOX_",
)  # fmt: skip
SECRET = re.compile(r"PASS|SECRET|TOKEN|KEY|CREDENTIAL|ACTIVATION|PKR_VAR_", re.I)
SHORTEST = 6  # characters of a value that is masked: shorter ones are words of every log
# Packer's words around the message of a variable's own validation rule.
REFUSED_VALUE = re.compile(r"Invalid value for.*?\)\s*\n(.*?)\n\s*This was checked by the validation rule", re.S)
INSTALL = "apt-get install packer, or Packer from its publisher"


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What a build left: the folder that packer ran in, its artifacts, and packer's version."""

    folder: Path
    artifacts: tuple[Artifact, ...]
    packer: str


@dataclass(kw_only=True)
class PackerEngine:
    """Runs packer.

    Attributes:
        log: file for what packer prints; its own debug log goes beside it.
        downloads: folder for the images and installers that packer downloads.
        environment: credentials; by default those that this process was given.
        timeout: seconds for the whole build.
    """

    runner: Runner
    progress: Progress
    log: Path
    downloads: Path
    environment: Mapping[str, str] = field(default_factory=lambda: inherited(*CREDENTIALS), repr=False)
    timeout: float = BUILD_SECONDS

    def build(self, folder: Path, *, plugin: str, var_files: Sequence[Path] = ()) -> Built:
        """Build what a rendered folder says.

        Args:
            folder: as :func:`imagebuilder.packer.render.render_folder` made it.
            plugin: source address of the builder's plugin.
            var_files: files with values of variables, credentials among them.

        Raises:
            ToolMissingError: packer or a plugin is missing, or packer is too old.
            UsageError: a variable has no value.
            CheckFailedError: packer does not take the folder.
            StepError: a step of the recipe failed in the machine.
            CommandError, DeadlineError: packer failed otherwise, was killed, or took too long.
        """
        with self.progress.stage("packer:check", "Packer: version, plugins, validation") as stage:
            version = self.version()
            text = ".".join(map(str, version))
            work = self._prepare(folder, version, plugin, stage)
            values = [f"-var-file={path.absolute()}" for path in var_files]
            self._validate(work, values)
            stage.summary = f"Packer {text} takes the folder"
        with self.progress.stage("packer:build", f"Packer {text} builds") as stage:
            (work / MANIFEST).unlink(missing_ok=True)
            output = Output()
            argv = ["packer", "build", "-machine-readable", "-color=false", "-on-error=cleanup", *values, "."]
            result = self._run(argv, work, output, stage, timeout=self.timeout)
            if result.returncode or output.failed or not output.artifacts:
                raise self._failure(result, output)
        return Built(folder=work, artifacts=output.artifacts, packer=text)

    def version(self) -> tuple[int, ...]:
        """Return packer's version.

        Raises:
            ToolMissingError: it is missing, is not what we know by that name, or is too old.
        """
        try:
            said = self.runner.run(
                ["packer", "version"], env={"CHECKPOINT_DISABLE": "1"}, capture=True, check=False, timeout=SHORT_SECONDS
            )
        except ToolMissingError as error:
            raise ToolMissingError("packer is not installed", hint=INSTALL) from error
        found = re.search(r"\bv(\d+)\.(\d+)\.(\d+)", said.stdout)
        if found is None:  # cracklib of the Red Hat family brings another program of this name
            raise ToolMissingError(
                "the packer on the PATH is another program", context=said.stdout[:200], hint=f"{INSTALL}, first in PATH"
            )
        version = tuple(map(int, found.groups()))
        if version < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise ToolMissingError(f"packer {found[0][1:]} is too old: {wanted} or newer is needed", hint=INSTALL)
        return version

    def _prepare(self, folder: Path, version: tuple[int, ...], plugin: str, stage: Stage) -> Path:
        """Return the folder to run in: for old Packers a copy, for others this one, once the plugin is there."""
        if version < WITH_PLUGINS:
            work = folder.with_name(f"{folder.name}-{OLD}")
            self._run(["sh", f"{OLD}/prepare.sh", work], folder, Output(), stage, check=True)
            return work
        installed = self._run(["packer", "plugins", "installed"], folder, None, stage, capture=True).stdout
        if f"/{plugin}/" not in installed:
            output = Output()
            result = self._run(
                ["packer", "init", "-machine-readable", "."], folder, output, stage, timeout=INIT_SECONDS
            )
            if result.returncode or output.errors:
                raise ToolMissingError(
                    f"the plugin {plugin} is not installed, and packer could not fetch it",
                    context="\n".join(output.errors or result.tail), hint=f"packer plugins install {plugin}",
                )  # fmt: skip
        return folder

    def _validate(self, work: Path, values: Sequence[str]) -> None:
        output = Output()
        argv = ["packer", "validate", "-machine-readable", *values, "."]
        result = self._run(argv, work, output, None, timeout=SHORT_SECONDS)
        # Packer 1.6 exits with 0 after some errors, and takes a value of no variable for a mere warning.
        undefined = [line for line in output.said if "Undefined variable" in line]
        if result.returncode < 0:
            raise command_error(result, self.log)
        if not (result.returncode or output.errors or undefined):
            return
        found = diagnostics(output.errors or undefined or result.tail)
        context = "\n".join(item.text for item in found)[:4000]
        unset = re.findall(r'(?:Unset variable|required variable)[^"]*"?([a-z][\w-]*)', context)
        if unset:
            hint = " ".join(f"export PKR_VAR_{name}=..." for name in dict.fromkeys(unset))
            raise UsageError(f"a variable has no value: {', '.join(dict.fromkeys(unset))}", context=context, hint=hint)
        if refused := REFUSED_VALUE.search(context):
            message = f"a variable has no usable value: {' '.join(refused[1].split())}"
            raise UsageError(message, hint="--var-file FILE, or export PKR_VAR_<name>=...")
        first = found[0].short if found else "packer says nothing more"
        hint = "imagebuilder template writes the same folder, to look at and to validate by hand"
        raise CheckFailedError(f"packer does not take the folder: {first}", context=context, hint=hint)

    def _failure(self, result: Result, output: Output) -> ImagebuilderError:
        """Return the error of a failed build: the step where there is one, else what packer says."""
        if result.returncode < 0:
            return command_error(result, self.log)
        context = "\n".join([*output.said, *(f"packer: {error}" for error in output.errors[-5:])])
        hint = f"the whole log is in {self.log}, packer's own in {self.debug_log}"
        if output.step:
            return StepError(f"the step {output.step} failed", context=context, hint=hint)
        found = diagnostics(output.errors)
        first = found[0].short if found else "it names no error and no artifact"
        return CommandError(f"packer build failed: {first}", context=context, hint=hint)

    @property
    def debug_log(self) -> Path:
        """Return where packer's own log goes."""
        return self.log.with_suffix(".packer.log")

    def _env(self) -> dict[str, str]:
        return {
            **self.environment, "CHECKPOINT_DISABLE": "1", "PACKER_NO_COLOR": "1", "PACKER_LOG": "1",
            "PACKER_LOG_PATH": str(self.debug_log), "PACKER_CACHE_DIR": str(self.downloads),
        }  # fmt: skip

    def _run(
        self, argv: Sequence[str | Path], cwd: Path, output: Output | None, stage: Stage | None,
        *, check: bool = False, capture: bool = False, timeout: float = SHORT_SECONDS,
    ) -> Result:  # fmt: skip
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.downloads.mkdir(parents=True, exist_ok=True)
        for path in (self.debug_log, self.log):  # nobody else's business, whatever a plugin may write
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        with self.log.open("a", encoding="utf-8") as log:

            def follow(line: str) -> None:
                line = redact(line, self.environment)
                log.write(f"{line}\n")
                for kind, text in output.take(line) if output else ():
                    if stage and kind in ("note", "step"):
                        stage.note(text)
                    elif stage:
                        stage.log(text)

            return self.runner.run(
                argv, env=self._env(), cwd=cwd, capture=capture, check=check, on_line=follow, timeout=timeout,
                patience=PATIENCE,
            )  # fmt: skip


def redact(text: str, environment: Mapping[str, str]) -> str:
    """Return text without the values of secret variables."""
    for name, value in environment.items():
        if len(value) >= SHORTEST and SECRET.search(name):
            text = text.replace(value, "<secret>")
    return text


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Return the builds that packer's manifest post-processor listed for the last run.

    Raises:
        CommandError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
        last = data["last_run_uuid"]
        return [build for build in data["builds"] if build["packer_run_uuid"] == last]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"packer left no usable {MANIFEST}: {error}", hint=f"ls -l {folder}") from error
