"""The plan: pure, the same for the same request, and its layer ids cover what the layers are made from."""

from __future__ import annotations

import builtins
import dataclasses
import io
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from imagebuilder import resources
from imagebuilder.cells import all_cells, plan_request, split_os
from imagebuilder.compat import load_compat
from imagebuilder.content import content_id, sha256_file
from imagebuilder.errors import IncompatibleError, UsageError
from imagebuilder.model import LAYERS, BuildRequest, Cell
from imagebuilder.plan import ENGINES, BuildPlan, layer_ids, plan, used_files, why_not
from imagebuilder.profiles import load_profile
from imagebuilder.steps import Step, load_steps
from imagebuilder.targets import load_target

GOLDEN = Path(__file__).parents[1] / "golden/plan"
PROVISION = resources.folder("provision")
CELLS = [cell for cell, reasons in all_cells() if "" in reasons.values()]
NOTHING: Mapping[str, Any] = {name: {} for name in LAYERS}


def wanted(**changes: Any) -> BuildPlan:
    return plan_request(BuildRequest(**{"os": "debian", "target": "qemu", **changes}))


# In full: one per family and engine, and what differs most. All others: a line each, with a hash.
IN_FULL = (
    "debian-12-amd64-qemu", "debian-13-amd64-qemu", "debian-13-amd64-raw", "ubuntu-24.04-arm64-aws",
    "centos-10-amd64-gce", "rhel-9-amd64-qemu", "fedora-44-arm64-kubevirt", "rocky-10-amd64-vsphere",
)  # fmt: skip


def of_cell(cell: Cell) -> BuildPlan:
    return wanted(os=cell.os, release=cell.release, arch=cell.arch, target=cell.target)


def golden(path: Path, text: str) -> str:
    """Return a golden file; one that is missing is written, and fails. To accept a change, remove the file and look."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        pytest.fail(f"{path.name} was missing and is written now: look at it and commit it")
    return path.read_text()


@pytest.mark.parametrize("name", IN_FULL)
def test_the_plan_of_a_cell_is_the_golden_one(name: str) -> None:
    made = of_cell(next(cell for cell in CELLS if str(cell) == name))
    text = json.dumps(made.as_data(), indent=2, ensure_ascii=False) + "\n"
    known = golden(GOLDEN / f"{made.id}.json", text)
    assert json.loads(known) == made.as_data()
    assert known == text


def test_the_plans_of_all_cells_are_the_golden_ones() -> None:
    """Every cell with the engine that takes it, and a hash of its whole plan; or why nobody can make it."""
    lines = []
    for cell, reasons in all_cells():
        if "" in reasons.values():
            made = of_cell(cell)
            lines.append(f"{made.id} {made.engine} {content_id(made.as_data())[:16]}")
        else:
            why = dict.fromkeys(reasons[name] for name in load_target(cell.target).engines)
            lines.append(f"{cell} none: {'; '.join(why)}")
    assert golden(GOLDEN.parent / "cells.txt", "\n".join(lines) + "\n").splitlines() == lines


def test_there_is_no_other_golden_file() -> None:
    ids = {of_cell(cell).id for cell in CELLS if str(cell) in IN_FULL}
    assert len(ids) == len(IN_FULL)
    assert ids == {path.stem for path in GOLDEN.glob("*")}


def test_engines_are_taken_in_the_targets_order() -> None:
    assert (wanted().engine, wanted(target="gce").engine, wanted(os="ubuntu").engine) == ("direct", "packer", "packer")
    assert wanted(engine="packer").engine_reason == "asked for"
    assert wanted(target="vagrant-libvirt").engine in load_target("vagrant-libvirt").engines
    for cell in CELLS:
        target, reasons = load_target(cell.target), dict(all_cells())[cell]
        assert of_cell(cell).engine == next(name for name in target.engines if not reasons[name])


def test_a_plan_names_what_packer_begins_with() -> None:
    assert wanted().as_data()["source_image"] is None
    made = wanted(os="centos", target="gce")
    assert made.as_data()["source_image"] == {
        "ssh_user": "packer", "project": "centos-cloud", "family": "centos-stream-10",
    }  # fmt: skip
    assert (made.disk.format, made.disk.extension, made.kubernetes) == ("none", "", "1.37")


def test_arm64_has_no_bios() -> None:
    assert wanted(arch="arm64").disk.firmware == ("uefi",)
    assert wanted(engine="packer").disk.firmware == ("bios", "uefi")


def test_facts_choose_the_steps() -> None:
    step = next(step for step in load_steps() if step.layer == "site")
    facts = {"cloud_init": "aws", "vagrant": "vagrant-libvirt", "vm_build": "gce", "repositories": "gce"}
    for fact, target in facts.items():
        for name in ("qemu", target):
            profile, goal = load_profile("debian", release="13", arch="amd64", target=name), load_target(name)
            request = BuildRequest(os="debian", target=name)
            only = dataclasses.replace(step, when=(fact,))
            made = plan(request, profile=profile, target=goal, compat=load_compat(), steps=[only])
            assert made.layer("site").steps == ((only,) if name == target else ()), fact


@pytest.mark.parametrize(("target", "off"), [("qemu", True), ("aws", False)])
def test_a_cloud_init_is_switched_off_where_it_is_not_wanted(target: str, off: bool) -> None:
    steps = {step.key for step in wanted(target=target, engine="packer").layer("site").steps}
    assert ("site/89-cloud-init" in steps) is off


def test_the_default_kubernetes_is_the_newest_that_the_containerd_carries() -> None:
    assert wanted().kubernetes == "1.35"
    assert (wanted().containerd, wanted(release="12").containerd) == ("1.7.24", "1.6.20")
    newer = wanted(sources={"docker": "docker-ce"})
    assert (newer.kubernetes_minor, newer.containerd) == (load_compat().minors()[-1], "2.2.0")
    assert newer.id == f"debian-13-amd64-qemu-k{newer.kubernetes_minor}"
    assert newer.layer("runtime").packages == ("docker-ce", "docker-ce-cli", "containerd.io")


@pytest.mark.parametrize("version", ["1.36", "1.37", "1.37.2"])
def test_docker_ce_makes_newer_minors_plannable(version: str) -> None:
    made = wanted(kubernetes=version, sources={"docker": "docker-ce"})
    assert (made.kubernetes, made.kubernetes_minor) == (version, version[:4])
    assert made.id == f"debian-13-amd64-qemu-k{version[:4]}"


def test_a_kubelet_that_the_containerd_cannot_carry() -> None:
    with pytest.raises(IncompatibleError, match=r"Kubernetes 1\.36 needs containerd >= 2\.0.*this image has") as caught:
        wanted(kubernetes="1.36")
    assert "--kubernetes 1.35 runs with containerd 1.7.24" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        pytest.param({"os": "debain"}, '"debain" (did you mean "debian"?)', "debian", id="os"),
        pytest.param({"release": "14"}, 'no release "14"', "release: 12, 13", id="release"),
        pytest.param({"arch": "amd46"}, '"amd46" (did you mean "amd64"?)', "arch: amd64", id="arch"),
        pytest.param({"target": "qmeu"}, '"qmeu" (did you mean "qemu"?)', "target: ", id="target"),
        pytest.param({"engine": "dirct"}, '"dirct" (did you mean "direct"?)', "--engine auto", id="engine"),
        pytest.param({"kubernetes": "1.34"}, '"1.34" is not known (did you mean "1.35"?)', "1.36", id="minor"),
        pytest.param({"kubernetes": "latest"}, '"latest" is not a version', "like 1.35", id="version"),
        pytest.param(
            {"sources": {"kubernets": "x"}}, '"kubernets" (did you mean "kubernetes"?)', "NAME=KIND", id="component",
        ),
        pytest.param(
            {"sources": {"docker": "docker-cee"}}, '"docker-cee" (did you mean "docker-ce"?)',
            "--source docker=distro|docker-ce", id="source",
        ),
        pytest.param(
            {"sources": {"kubernetes": "go-module"}}, '(did you mean "go-modules"?)',
            "--source kubernetes=packages|binaries|go-modules|file", id="source-with-file",
        ),
        pytest.param({"sources": {"docker": "file:/opt"}}, 'docker has no source "file"', "distro", id="no-programs"),
        pytest.param(
            {"sources": {"kubernetes": "file:"}}, "names no folder", "--source kubernetes=file:DIR", id="no-folder"
        ),
        pytest.param({"sources": {"cni": "file"}}, "names no folder", "--source cni=file:DIR", id="no-colon"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused_and_the_nearest_named(changes: Any, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        wanted(**changes)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message", "reasons", "near"),
    [
        pytest.param(
            {"arch": "arm64", "engine": "direct"}, "Debian 13 arm64 for QEMU",
            "direct: the direct engine cannot run programs of the architecture arm64 yet (amd64)",
            "--os debian-13 --arch amd64 --target qemu", id="architecture",
        ),
        pytest.param(
            {"os": "rocky", "engine": "direct"}, "Rocky Linux 10 amd64 for QEMU",
            "direct: the direct engine does not know the family redhat yet (debian)",
            "--os debian-13 --arch amd64 --target qemu", id="family",
        ),
        pytest.param(
            {"os": "ubuntu", "engine": "direct"}, "Ubuntu 24.04 amd64 for QEMU",
            "direct: Ubuntu does not say yet how the direct engine begins ([bootstrap])",
            "--os debian-13 --arch amd64 --target qemu", id="bootstrap",
        ),
        pytest.param(
            {"target": "gce", "engine": "direct"}, "Debian 13 amd64 for Google Compute Engine",
            "direct: the target gce is not made by the direct engine",
            "--os debian-13 --arch amd64 --target kubevirt", id="engine",
        ),
        pytest.param(
            {"os": "fedora", "target": "azure"}, "Fedora 44 amd64 for Microsoft Azure",
            "packer: Fedora publishes to a community gallery there, not to the Azure Marketplace",
            "--os fedora-44 --arch amd64 --target aws", id="image",
        ),
        pytest.param(
            {"target": "digitalocean", "arch": "arm64"}, "Debian 13 arm64 for DigitalOcean",
            "packer: DigitalOcean has no arm64 machines (amd64)",
            "--os debian-13 --arch amd64 --target digitalocean", id="no-such-machines",
        ),
    ],
)  # fmt: skip
def test_a_cell_that_no_engine_can_make(changes: Any, message: str, reasons: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"no engine can make {message}") as caught:
        wanted(**changes)
    assert caught.value.context == reasons
    assert caught.value.hint == f"the nearest that can be made: {near}; all: imagebuilder list cells"


def test_a_format_that_an_engine_does_not_write() -> None:
    target = load_target("qemu").model_copy(update={"format": "vmdk"})
    engine = dataclasses.replace(ENGINES["direct"], formats=frozenset({"raw"}))
    profile = load_profile("debian", release="13", arch="amd64", target="qemu")
    assert why_not(engine, profile, target) == "the direct engine does not write the format vmdk yet (raw)"


def test_an_image_that_is_nowhere_stated() -> None:
    profile = load_profile("fedora", release="44", arch="amd64", target="azure").model_copy(
        update={"missing_images": {}}
    )
    said = why_not(ENGINES["packer"], profile, load_target("azure"))
    assert said == "Fedora states no source image of the kind azure"


def test_forced_sources_stand_alone() -> None:
    free, forced = wanted(), wanted(sources={"kubernetes": "file:/opt/k8s", "cni": "distro"})
    assert free.sources["kubernetes"][0] == "packages"
    assert len(free.sources["kubernetes"]) > 1
    assert forced.sources == {**free.sources, "kubernetes": ("file:/opt/k8s",), "cni": ("distro",)}


def test_packages_go_where_they_belong() -> None:
    made = wanted(packages=("jq", "tmux"))
    assert made.layer("site").packages == ("jq", "tmux")
    assert "linux-image-cloud-amd64" in made.layer("base").packages
    assert "linux-image-amd64" in wanted(target="raw").layer("base").packages
    assert made.layer("kubernetes").packages == ()
    assert [layer.name for layer in made.layers] == ["base", "runtime", "kubernetes", "site"], "qemu wants nothing"
    guest = wanted(target="proxmox", packages=("jq",), initramfs="stock")
    assert [layer.name for layer in guest.layers] == list(LAYERS)
    assert guest.layer("guest").packages == ("cloud-init", "qemu-guest-agent")
    assert guest.layer("site").packages == ("jq",)
    bare = wanted(target="proxmox", bare=True)
    assert [layer.name for layer in bare.layers] == ["base", "initramfs", "guest", "site"]


def test_the_root_builder_changes_nothing_of_the_plan() -> None:
    assert wanted(root_builder="mmdebstrap").as_data() == wanted().as_data()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"root_builder": "slow"}, id="unknown"),
        pytest.param({"root_builder": "mmdebstrap", "os": "rocky"}, id="made-by-packer"),
    ],
)
def test_who_cannot_make_the_base_layer_is_told(changes: Any) -> None:
    with pytest.raises(UsageError, match="--root-builder is for the direct engine, and knows fast and mmdebstrap"):
        wanted(**changes)


def test_a_bare_image_has_the_base_of_a_node_and_neither_runtime_nor_kubernetes() -> None:
    bare, whole = wanted(bare=True, packages=("tmux",)), wanted(initramfs="stock")
    assert bare.id == "debian-13-amd64-qemu-bare"
    assert [layer.name for layer in bare.layers] == ["base", "initramfs", "site"]
    assert bare.layers[0] == whole.layers[0]
    assert bare.layer("site").packages == ("tmux", "cloud-init", "sudo")
    assert bare.sources == {}
    assert bare.layer("kubernetes").steps == ()


@pytest.mark.parametrize(
    ("changes", "small"),
    [
        pytest.param({}, True, id="a-node"),
        pytest.param({"release": "12"}, True, id="of-the-release-before"),
        pytest.param({"initramfs": "small"}, True, id="asked-for"),
        pytest.param({"initramfs": "stock"}, False, id="not-wanted"),
        pytest.param({"bare": True}, False, id="bare"),
        pytest.param({"engine": "packer"}, False, id="made-by-packer"),
        pytest.param({"target": "raw"}, False, id="any-hardware"),
    ],
)
def test_who_gets_the_small_initramfs(changes: Any, small: bool) -> None:
    made = wanted(**changes)
    steps = {step.key for layer in made.layers for step in layer.steps}
    assert ("site/12-initramfs" in steps, "initramfs/10-initramfs" in steps) == (small, not small)
    assert made.disk.drivers == (made.target.initramfs_modules if small else ())


def test_targets_with_other_drivers_share_the_layers_below_the_guest() -> None:
    def ids(target: str) -> list[str]:
        found = layer_ids(wanted(target=target), NOTHING, hashes())
        return [found[name] for name in ("base", "kubernetes", "site")]

    assert wanted(target="vsphere").disk.drivers != wanted(target="virtualbox").disk.drivers
    assert ids("vsphere")[:2] == ids("virtualbox")[:2]
    assert ids("vsphere")[2] != ids("virtualbox")[2]
    assert ids("raw")[:2] == ids("vsphere")[:2], "the stock initramfs is a layer of its own"


@pytest.mark.parametrize("changes", [{"bare": True}, {"engine": "packer"}, {"target": "raw"}], ids=str)
def test_who_cannot_have_the_small_initramfs_is_told(changes: Any) -> None:
    with pytest.raises(UsageError, match="--initramfs small is for nodes that the direct engine makes"):
        wanted(initramfs="small", **changes)


@pytest.mark.parametrize("changes", [{"engine": "packer"}, {"images": ("nginx",)}, {"os": "centos"}], ids=str)
def test_what_cannot_be_bare(changes: Any) -> None:
    with pytest.raises(UsageError, match="--bare is for the direct engine"):
        wanted(bare=True, **changes)


def test_os_and_release_are_split() -> None:
    assert split_os("debian-13") == ("debian", "13")
    assert split_os("debian") == ("debian", "")


def test_plan_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No disk, network, program, clock or environment; also with empty caches of our own."""
    request = BuildRequest(
        os="debian", target="qemu", sources={"docker": "docker-ce"}, overlays=(Path("/nonexistent"),)
    )
    profile = load_profile("debian", release="13", arch="amd64", target="qemu")
    target, compat, steps = load_target("qemu"), load_compat(), load_steps()
    expected = plan(request, profile=profile, target=target, compat=compat, steps=steps).as_data()

    def refuse(*args: Any, **_: Any) -> NoReturn:
        raise AssertionError(f"plan() is not pure: {args}")

    for module, names in (
        (builtins, ("open",)),
        (io, ("open",)),
        (os, ("open", "stat", "lstat", "listdir", "scandir", "getcwd", "getenv", "urandom")),
        (socket, ("socket", "create_connection", "getaddrinfo")),
        (subprocess, ("Popen", "run")),
        (time, ("time", "monotonic", "time_ns", "sleep")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(os, "environ", type("Guard", (), {"__getattr__": refuse, "__getitem__": refuse})())
    monkeypatch.setattr("imagebuilder.compat._load", refuse)  # it is given what it needs
    try:
        made = plan(request, profile=profile, target=target, compat=compat, steps=steps).as_data()
    finally:
        monkeypatch.undo()
    assert made == expected


def test_plan_uses_the_table_that_it_is_given() -> None:
    profile = load_profile("debian", release="13", arch="amd64", target="qemu")
    table = load_compat()
    small = table.model_copy(update={"kubernetes": {"1.36": table.kubernetes["1.36"]}})
    request = BuildRequest(os="debian", target="qemu")
    with pytest.raises(IncompatibleError, match=r"no known Kubernetes runs with containerd 1\.7\.24"):
        plan(request, profile=profile, target=load_target("qemu"), compat=small, steps=load_steps())


# --- layer ids


def hashes() -> dict[str, str]:
    files = (path for path in sorted(PROVISION.rglob("*")) if path.is_file())
    return {path.relative_to(PROVISION).as_posix(): sha256_file(path) for path in files}


def every(**changes: Any) -> BuildPlan:
    """Return the plan of a target that has every layer."""
    return wanted(target="openstack", initramfs="stock", **changes)


def changed(made: BuildPlan, other: BuildPlan | None = None, inputs: Any = NOTHING, files: Any = None) -> list[str]:
    """Return the layers whose ids change."""
    before = layer_ids(made, NOTHING, hashes())
    after = layer_ids(other or made, inputs, {**hashes(), **(files or {})})
    return [name for name in LAYERS if before[name] != after[name]]


def test_layer_ids_are_stable_and_differ() -> None:
    made = every()
    ids = layer_ids(made, NOTHING, hashes())
    assert list(ids) == list(LAYERS)
    assert len(set(ids.values())) == len(LAYERS)
    assert changed(made) == []
    assert changed(made, every()) == []


@pytest.mark.parametrize(
    ("path", "layers"),
    [
        pytest.param("steps/kubernetes/10-kubernetes.sh", ["kubernetes", "guest", "site"], id="step"),
        pytest.param(
            "services/kubelet/systemd/root/etc/systemd/system/kubelet.service",
            ["kubernetes", "guest", "site"],
            id="service",
        ),
        pytest.param("files/crictl.yaml", ["kubernetes", "guest", "site"], id="file"),
        pytest.param("steps/site/90-clean.sh", ["site"], id="site"),
        pytest.param("steps/runtime/10-packages.sh", ["runtime", "kubernetes", "guest", "site"], id="runtime"),
        pytest.param("steps/initramfs/10-initramfs.sh", ["initramfs", "guest", "site"], id="initramfs"),
        pytest.param("steps/guest/10-packages.sh", ["guest", "site"], id="guest"),
        pytest.param("lib.sh", list(LAYERS), id="library"),
        pytest.param("run-steps.sh", list(LAYERS), id="runner"),
        pytest.param("family/debian.sh", list(LAYERS), id="family"),
        pytest.param("family/debian/system.sh", list(LAYERS), id="folder-of-the-family"),
        pytest.param("services/ssh/systemd/debian/enable", list(LAYERS), id="service-of-the-family"),
        pytest.param("init/systemd.sh", list(LAYERS), id="init"),
        pytest.param("boot.toml", [], id="documentation"),
        pytest.param("family/redhat.sh", [], id="another-family"),
        pytest.param("family/redhat/system.sh", [], id="folder-of-another-family"),
        pytest.param("vm/shutdown.sh", [], id="of-machines"),
        pytest.param("services/kubelet/sysvinit/root/etc/init.d/kubelet", [], id="another-init"),
    ],
)
def test_a_changed_file_rebuilds_what_is_made_from_it(path: str, layers: list[str]) -> None:
    assert changed(every(), files={path: "changed"}) == layers


@pytest.mark.parametrize("name", LAYERS)
def test_changed_inputs_rebuild_their_layer_and_those_above(name: str) -> None:
    inputs = {**NOTHING, name: {"payloads": {"kubernetes": "other"}}}
    above = list(LAYERS[LAYERS.index(name) :])
    if name in ("runtime", "kubernetes"):
        above.remove("initramfs")  # made on the base alone
    assert changed(every(), inputs=inputs) == above


@pytest.mark.parametrize(
    ("setting", "layers"),
    [
        pytest.param("IB_MASKED_SERVICES", list(LAYERS), id="base"),
        pytest.param("IB_PAUSE_IMAGE", ["kubernetes", "guest", "site"], id="kubernetes"),
        pytest.param("IB_HOLD_PACKAGES", ["kubernetes", "guest", "site"], id="hold"),
        pytest.param("IB_NOBODY_WANTS_THIS", [], id="unused"),
    ],
)
def test_a_setting_rebuilds_the_layers_whose_steps_want_it(setting: str, layers: list[str]) -> None:
    made = every()
    other = dataclasses.replace(made, settings={**made.settings, setting: "changed"})
    assert changed(made, other) == layers


def test_another_kubernetes_keeps_base_and_runtime() -> None:
    one, other = (every(kubernetes=version, sources={"docker": "docker-ce"}) for version in ("1.36", "1.35"))
    assert changed(one, other) == ["kubernetes", "guest", "site"]


def test_every_layer_is_made_from_its_own_steps() -> None:
    made = wanted()
    files = {layer.name: used_files(layer, made.profile, hashes()) for layer in made.layers}
    steps = [path for paths in files.values() for path in paths if path.startswith("steps/")]
    assert len(steps) == len(set(steps))
    assert set(steps) == {f"steps/{step.key}.sh" for layer in made.layers for step in layer.steps}


# --- what a step uses is what its header says: else a change would not rebuild it

USED = {
    "services": re.compile(r"\bservice_install ([a-z0-9-]+)"),
    "render": re.compile(r'\brender "?([A-Za-z0-9/._$-]+)"?'),
    "files": re.compile(r"\$\{?IB_PROVISION\}?/files/([A-Za-z0-9/._-]+)"),
}
# words of the families that put services in place
WORDS = {"grow_root_install": {"services/grow-root", "services/grow-part"}}


def uses_of(text: str) -> set[str]:
    """Return what a script's code reads below provision/, as ``uses:`` names it; ``$format`` stands for any text."""
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = {f"services/{name}" for name in USED["services"].findall(code)}
    names = {name.strip('"') for name in (*USED["render"].findall(code), *USED["files"].findall(code))}
    for name in names:
        pattern = "*".join(re.split(r"\$[a-z_]+", name))
        found |= {path.relative_to(PROVISION).as_posix() for path in (PROVISION / "files").glob(pattern)} or {name}
    for path in [path for path in found if path.endswith(".sh")]:  # words that a step reads after lib.sh
        found |= uses_of((PROVISION / path).read_text())
    for word, services in WORDS.items():
        if re.search(rf"\b{word}\b", code):
            found |= services
    return found


@pytest.mark.parametrize("step", [pytest.param(step, id=step.key) for step in load_steps()])
def test_a_step_states_what_it_uses(step: Step) -> None:
    assert set(step.uses) == uses_of(step.path.read_text())


def test_the_library_renders_only_what_its_callers_state() -> None:
    """Whoever makes a word of lib.sh or of a family read a file must say so in uses_of and WORDS, above."""
    code = [line for line in (PROVISION / "lib.sh").read_text().splitlines() if not line.lstrip().startswith("#")]
    assert USED["render"].findall("\n".join(code)) == []
    for path in (*PROVISION.glob("family/**/*.sh"), *PROVISION.glob("init/*.sh")):
        assert not USED["render"].search(path.read_text())
        assert not USED["files"].search(path.read_text())
    family = "\n".join(path.read_text() for path in PROVISION.glob("family/**/*.sh"))
    assert {f"services/{name}" for name in USED["services"].findall(family)} == set().union(*WORDS.values())


def test_nothing_is_in_provision_that_nobody_uses() -> None:
    made = {use for step in load_steps() for use in step.uses}
    services = {f"services/{path.name}" for path in (PROVISION / "services").iterdir()}
    files = {path.relative_to(PROVISION).as_posix() for path in (PROVISION / "files").rglob("*") if path.is_file()}
    assert services | files == made
