"""Regenerates a wrapper module: ``python components/update.py kubernetes 1.35.8``.

A wrapper is a Go module without code of its own: it names the programs as tools, requires upstream's module
at one exact version, and repeats what Go takes from the main module alone: ``replace``, ``go``, ``godebug``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.content import write_atomic
from imagebuilder.errors import ImagebuilderError, UsageError
from imagebuilder.process import RealRunner, Runner, inherited

HERE = Path(__file__).resolve().parent
GO_VARIABLES = ("GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOPROXY", "GOPRIVATE", "GOMODCACHE", "GOCACHE")
CNI = "github.com/containernetworking/plugins"
CNI_PLUGINS = (
    "ipam/dhcp", "ipam/host-local", "ipam/static",
    "main/bridge", "main/dummy", "main/host-device", "main/ipvlan", "main/loopback", "main/macvlan",
    "main/ptp", "main/tap", "main/vlan",
    "meta/bandwidth", "meta/firewall", "meta/portmap", "meta/sbr", "meta/tuning", "meta/vrf",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Where a component comes from.

    Attributes:
        folder: name under ``components/``; ``{minor}`` is replaced.
        module: upstream's module path.
        programs: package paths below the module; empty for the module's own.
        stamp: ``-X`` variables; ``{version}``, ``{major}`` and ``{minor_number}`` are replaced.
    """

    folder: str
    module: str
    programs: tuple[str, ...]
    stamp: Mapping[str, str]

    @property
    def packages(self) -> tuple[str, ...]:
        """Return the programs as Go package paths."""
        return tuple(f"{self.module}/{program}".rstrip("/") for program in sorted(self.programs))


KUBERNETES_STAMP = {
    f"{package}.{name}": value
    for package in ("k8s.io/client-go/pkg/version", "k8s.io/component-base/version")
    for name, value in (
        ("gitMajor", "{major}"),
        ("gitMinor", "{minor_number}"),
        ("gitTreeState", "clean"),
        ("gitVersion", "v{version}"),
    )
}
UPSTREAMS = {
    "kubernetes": Upstream(
        folder="kubernetes-{minor}",
        module="k8s.io/kubernetes",
        programs=("cmd/kubeadm", "cmd/kubectl", "cmd/kubelet"),
        stamp=KUBERNETES_STAMP,
    ),
    "controlplane": Upstream(
        folder="controlplane-{minor}",
        module="k8s.io/kubernetes",
        programs=("cmd/kube-apiserver", "cmd/kube-controller-manager", "cmd/kube-scheduler"),
        stamp=KUBERNETES_STAMP,
    ),
    "crictl": Upstream(
        folder="crictl",
        module="sigs.k8s.io/cri-tools",
        programs=("cmd/crictl",),
        stamp={"sigs.k8s.io/cri-tools/pkg/version.Version": "v{version}"},
    ),
    "cni-plugins": Upstream(
        folder="cni-plugins",
        module=CNI,
        programs=tuple(f"plugins/{plugin}" for plugin in CNI_PLUGINS),
        stamp={f"{CNI}/pkg/utils/buildversion.BuildVersion": "v{version}"},
    ),
    "etcd": Upstream(folder="etcd", module="go.etcd.io/etcd/server/v3", programs=("",), stamp={}),
}


def replacements(go_mod: str, version: str) -> list[str]:
    """Return upstream's replace lines as another main module must write them.

    ``k8s.io/api => ./staging/src/k8s.io/api`` of k8s.io/kubernetes 1.35.8 is published as k8s.io/api v0.35.8.
    ``go.etcd.io/etcd/api/v3 => ../api`` of etcd 3.6.8 is published as the v3.6.8 that its go.mod requires.

    Raises:
        UsageError: a replacement is a local folder of another kind, which no other module can follow.
    """
    found, required = [], dict(re.findall(r"^\s+(\S+) (v\S+)", go_mod, re.MULTILINE))
    for old, new in re.findall(r"^(?:replace)?\s+(\S+(?: v\S+)?) => (.+?)(?:\s*//.*)?$", go_mod, re.MULTILINE):
        if new.startswith("./staging/src/"):
            new = f"{old} v0.{version.split('.', 1)[1]}"
        elif new.startswith(".") and required.get(old) in (None, f"v{version}"):
            continue  # nothing asks for it, or it is published under the very version that is asked for
        elif new.startswith("."):
            raise UsageError(f"upstream replaces {old} by its own folder {new}")
        found.append(f"{old} => {new}")
    return found


def wrapper(name: str, upstream: Upstream, version: str, go_mod: str) -> str:
    """Return the go.mod to start from; ``go mod tidy`` adds the indirect requirements."""
    lines = [f"module imagebuilder.invalid/{name}", ""]
    lines += re.findall(r"^go \S+$", go_mod, re.MULTILINE)
    lines += ["", *re.findall(r"^godebug .*$", go_mod, re.MULTILINE)]
    lines += ["tool (", *(f"\t{package}" for package in upstream.packages), ")"]
    lines += [f"require {upstream.module} v{version}"]
    if replaced := replacements(go_mod, version):
        lines += ["replace (", *(f"\t{line}" for line in replaced), ")"]
    return "\n".join(lines) + "\n"


def description(upstream: Upstream, version: str) -> str:
    """Return the component.toml."""
    major, minor_number = version.split(".")[:2]
    programs = "".join(f'    "{package}",\n' for package in upstream.packages)
    values = {"version": version, "major": major, "minor_number": minor_number}
    stamp = "".join(f'"{key}" = "{value.format_map(values)}"\n' for key, value in upstream.stamp.items())
    return f'version = "{version}"\nprograms = [\n{programs}]\n' + (f"\n[stamp]\n{stamp}" if stamp else "")


def update(name: str, version: str, runner: Runner) -> Path:
    """Write the wrapper of one component and return its folder."""
    if name not in UPSTREAMS or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise UsageError(f"no component {name} {version}", hint=f"one of {', '.join(UPSTREAMS)}; and 1.2.3")
    upstream = UPSTREAMS[name]
    folder = HERE / upstream.folder.format(minor=version.rpartition(".")[0])
    env = inherited(*GO_VARIABLES) | {"GOTOOLCHAIN": "local", "GOWORK": "off"}
    wanted = f"{upstream.module}@v{version}"
    answer = runner.run(["go", "mod", "download", "-json", wanted], env=env, capture=True)
    go_mod = Path(json.loads(answer.stdout)["GoMod"]).read_text(encoding="utf-8")
    write_atomic(folder / "go.mod", wrapper(folder.name, upstream, version, go_mod))
    (folder / "go.sum").unlink(missing_ok=True)
    runner.run(["go", "mod", "tidy"], cwd=folder, env=env)
    write_atomic(folder / "component.toml", description(upstream, version))
    return folder


def main(arguments: list[str]) -> int:
    """Update what the command line names."""
    try:
        if len(arguments) != 2:
            raise UsageError("two arguments are needed", hint="python components/update.py kubernetes 1.35.8")
        update(arguments[0], arguments[1], RealRunner())
    except ImagebuilderError as error:
        sys.stderr.write("\n".join(filter(None, (error.message, error.context, error.hint))) + "\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
