"""The programs of a control plane, built from their Go modules into the user's cache, once for each content."""

from __future__ import annotations

import os
from pathlib import Path

from imagebuilder import resources
from imagebuilder.cli.settings import default_cache
from imagebuilder.events import Progress
from imagebuilder.process import RealRunner
from imagebuilder.sources.gomodules import build, load_module

MINOR = "1.35"


def build_programs(minor: str = MINOR) -> dict[str, Path]:
    """Return where etcd, kube-apiserver, kube-controller-manager and kube-scheduler are.

    Cold, that takes some six minutes on two cores.

    Args:
        minor: of Kubernetes.
    """
    components, cache = resources.folder("components"), default_cache(os.environ, Path.home())
    found = {}
    for name in (f"controlplane-{minor}", "etcd"):
        folder = build(
            load_module(components, name), components_dir=components, cache_dir=cache, runner=RealRunner(),
            progress=Progress(), arch="amd64",
        )  # fmt: skip
        found |= {path.name: path for path in folder.iterdir() if not path.suffix}
    found["etcd"] = found.pop("server")  # Go calls a program like the folder of its package
    return found
