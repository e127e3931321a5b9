"""A report with one of everything, for the tests of its forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imagebuilder.config import Budgets
from imagebuilder.verify.budgets import BUDGET_CHECKS, Spent, spending
from imagebuilder.verify.changes import Baseline
from imagebuilder.verify.model import (
    Boot,
    BootedCheck,
    Check,
    CheckResult,
    Expected,
    Inventory,
    OfflineCheck,
    Outcome,
    Package,
    Report,
    Span,
    Subject,
)

WORDS: dict[str, Any] = {
    "why": "kubelet refuses to start, or pods end without a trace.",
    "link": "https://kubernetes.io/docs/concepts/cluster-administration/swap-memory-management/",
    "fix": "Run the step base/50-no-swap, and look at /etc/fstab.",
}
CHECKS: tuple[Check, ...] = (
    OfflineCheck(id="no-swap", proves="The image has no swap.", run=lambda image: (), **WORDS),
    OfflineCheck(id="no-host-key", proves="The image has no SSH host key.", run=lambda image: (), **WORDS),
    BootedCheck(id="cgroup-v2", proves="cgroup v2 is mounted.", command="stat", judge=lambda *_: (), **WORDS),
    BootedCheck(id="journal", proves="The journal has no errors.", command="j", judge=lambda *_: (), **WORDS),
    *BUDGET_CHECKS,
)
LAYERS = {"base-files": "base", "linux-image": "base", "containerd": "runtime", "docker.io": "runtime", "jq": "site"}
PACKAGES = (
    Package(name="base-files", version="13.8", arch="amd64", size=340 << 10),
    Package(name="containerd", version="1.7.24~ds1-6", arch="amd64", size=130 << 20),
    Package(name="docker.io", version="26.1.5", arch="amd64", size=98 << 20),
    Package(name="jq", version="1.7.1", arch="amd64", size=90 << 10),
    Package(name="linux-image", version="6.12.57-1", arch="amd64", size=103 << 20),
)
RESULTS = (
    CheckResult(id="no-host-key", outcome=Outcome.PASSED, seconds=0.01),
    CheckResult(
        id="no-swap", outcome=Outcome.FAILED, seconds=0.02,
        found=("/etc/fstab:3: /swapfile <none> swap & more", "/swapfile is 1024 MiB"),
    ),
    CheckResult(id="cgroup-v2", outcome=Outcome.NOT_RUN, reason="the guest did not answer within 30 s"),
    CheckResult(id="journal", outcome=Outcome.WAIVED, found=("kernel: \x1b[31mred",), reason="the driver is known"),
    CheckResult(id="budget-image-size", outcome=Outcome.PASSED),
)  # fmt: skip
BOOTS = tuple(
    Boot(
        firmware=firmware, accelerator="tcg", reference=5.0, stages={"runtime": 30.0, "kubelet": 41.5 + late},
        spans=(
            Span(name="firmware", start=0, end=3.5 + late), Span(name="kernel", start=3.5 + late, end=9),
            Span(name="services", start=9, end=30), Span(name="kubelet", start=30, end=41.5 + late),
        ),
    )
    for firmware, late in (("bios", 0.0), ("uefi", 4.0))
)  # fmt: skip
INVENTORY = Inventory(
    artifact_size=320 << 20, installed_size=600 << 20, packages=PACKAGES, units=("containerd.service", "ssh.service"),
    boot_steps=6, sockets=("tcp/22", "tcp/10250"),
)  # fmt: skip
SUBJECT = Subject(
    path=Path("debian-13.qcow2"), name="debian-13-amd64-qemu-k1.35", family="debian", os="debian", release="13",
    target="qemu", arch="amd64", firmware=("bios", "uefi"), expected=Expected(),
    manifest={
        "tool": {"version": "0.1.0"}, "capabilities": {"kubelet": "1.35.8"},
        "packages": [{"name": name, "layer": layer} for name, layer in LAYERS.items()],
    },
)  # fmt: skip
BASELINE = Baseline(
    name="debian-13-amd64-qemu-k1.34", sha256="1" * 64,
    inventory=Inventory(
        artifact_size=300 << 20, installed_size=610 << 20, units=("cron.service", "ssh.service"), boot_steps=6,
        packages=(
            *PACKAGES[2:4], Package(name="containerd", version="1.7.20", arch="amd64", size=100 << 20),
            Package(name="cron", version="3.0", arch="amd64", size=300 << 10), PACKAGES[0],
        ),
        sockets=("tcp/22",),
    ),
    boots=(Boot(firmware="bios", accelerator="tcg", spans=(), stages={"kubelet": 39.0}, reference=5.0),),
)  # fmt: skip
BUDGETS = Budgets(image_size=300 << 20, boot_ratio=20, packages=5)


def report(**changes: Any) -> Report:
    """Return the report, with other fields where they are given."""
    fields: dict[str, Any] = {
        "name": SUBJECT.name, "path": Path("out/debian-13.qcow2"), "sha256": "0" * 64, "subject": SUBJECT,
        "results": RESULTS, "boots": BOOTS, "inventory": INVENTORY, "seconds": 71.25,
    }  # fmt: skip
    return Report(**{**fields, **changes})


def spent() -> tuple[Spent, ...]:
    """Return what is spent of the budgets."""
    return spending(BUDGETS, INVENTORY, BOOTS)
