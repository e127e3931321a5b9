"""What the layers are made from: inputs of the steps, the site's files, and what changes a layer's id."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import resources
from imagebuilder.cells import plan_request
from imagebuilder.direct.jobs import folder_digest, installed_packages, layer_jobs, site_inputs
from imagebuilder.direct.layerjob import LayerJob
from imagebuilder.direct.sandbox import INSIDE, command
from imagebuilder.errors import UsageError
from imagebuilder.fetch import Archive, Materials
from imagebuilder.model import LAYERS, BuildRequest, LockedPackage
from imagebuilder.resolve import Lock, LockedImage, Taken
from imagebuilder.steps import Step, load_steps

PROVISION = resources.folder("provision")


def package(name: str, version: str = "1.0") -> LockedPackage:
    return LockedPackage(
        name=name,
        version=version,
        arch="amd64",
        filename=f"{name}.deb",
        uri="http://m/",
        sha256=f"{name}{version}",
        size=1,
    )


def lock(**changes: Any) -> Lock:
    image = LockedImage(reference="pause:1", kind="compose", source="pause.toml")
    made = Lock(
        epoch=1, apt_folder="tiny", pause=image, images=(), apt_sources="deb http://m trixie main\n",
        taken={
            "kubernetes": Taken(kind="packages", version="1.35.8", packages=("kubelet=1.35.8-*", "kubeadm", "kubectl")),
            "docker": Taken(kind="distro", packages=("docker.io", "containerd", "runc")),
            "cni": Taken(kind="go-modules", version="1.9.0", module="cni-plugins"),
            "crictl": Taken(kind="go-modules", version="1.35.0", module="crictl"),
        },
        packages={
            "base": (package("libc"),), "runtime": (package("docker.io"),), "initramfs": (),
            "guest": (package("cloud-init"),), "kubernetes": (package("kubelet", "1.35.8"),), "site": (),
            "tools": (package("mtools"),), "images": (),
        },
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def materials(tmp_path: Path, **changes: Any) -> Materials:
    pause = Archive(id="pause-1", path=tmp_path / "pause.tar", reference="pause:1")
    made = Materials(payloads={"cni": tmp_path / "cni-1", "crictl": tmp_path / "crictl-1"}, pause=pause, images=())
    return dataclasses.replace(made, **changes)


def jobs(tmp_path: Path, *, provision: Path = PROVISION, **changes: Any) -> dict[str, LayerJob]:
    given = {key: changes.pop(key) for key in ("lock", "materials") if key in changes}
    plan = plan_request(BuildRequest(**{"os": "debian", "target": "openstack", "initramfs": "stock", **changes}))
    made = layer_jobs(plan, given.get("lock", lock()), given.get("materials", materials(tmp_path)), provision)
    return {job.name: job for job in made}


def rebuilt(one: dict[str, LayerJob], other: dict[str, LayerJob]) -> list[str]:
    return [name for name in LAYERS if one[name].id != other[name].id]


def test_a_bare_image_has_no_agent(tmp_path: Path) -> None:
    made = jobs(tmp_path, bare=True, materials=materials(tmp_path, payloads={}, pause=None))
    assert list(made) == ["base", "initramfs", "guest", "site"]
    assert [name for name, job in made.items() if job.on_base] == ["initramfs"]
    assert not any("agent" in bind.target for job in made.values() for bind in job.binds)


def test_who_makes_the_base_layer_is_part_of_its_id(tmp_path: Path) -> None:
    default, named, other = (
        jobs(tmp_path, **more) for more in ({}, {"root_builder": "fast"}, {"root_builder": "mmdebstrap"})
    )
    assert rebuilt(default, named) == []
    assert rebuilt(default, other) == list(LAYERS)
    assert [job.fast for job in default.values()] == [True] * len(LAYERS)
    assert not any(job.fast for job in other.values())
    assert "root_builder" not in str(other["base"].info), "its id is that of layers from before there was a choice"


# --- the steps' inputs


@pytest.mark.parametrize("step", [pytest.param(step, id=step.key) for step in load_steps()])
def test_every_input_that_a_step_states_is_given(step: Step, tmp_path: Path) -> None:
    job = jobs(tmp_path)[step.layer]
    if f"{step.key}.sh" in job.steps:
        assert set(step.inputs) <= set(job.env)


def test_a_job_gets_the_inputs_of_its_own_steps_and_no_others(tmp_path: Path) -> None:
    made = jobs(tmp_path)
    for layer in LAYERS:
        stated = {name for step in load_steps() if f"{step.key}.sh" in made[layer].steps for name in step.inputs}
        assert set(made[layer].env) == stated | {"IB_FAMILY", "IB_INIT"}


def test_inputs_say_what_was_taken(tmp_path: Path) -> None:
    made = jobs(tmp_path, packages=("jq", "tmux"))
    assert made["runtime"].env["IB_RUNTIME_PACKAGES"] == "docker.io containerd runc"
    assert made["runtime"].env["IB_CNI_PAYLOAD"] == f"{INSIDE}/payload/cni"
    assert made["runtime"].env["IB_CNI_PACKAGES"] == ""
    assert made["kubernetes"].env["IB_KUBERNETES_PAYLOAD"] == ""
    assert made["kubernetes"].env["IB_KUBERNETES_PACKAGES"] == "kubelet kubeadm kubectl"
    assert made["kubernetes"].env["IB_KUBERNETES_VERSION"] == "1.35.8"
    assert made["site"].env["IB_SITE_PACKAGES"] == "jq tmux"


def test_payloads_are_bound_where_the_steps_look_for_them(tmp_path: Path) -> None:
    made = jobs(tmp_path)
    binds = {layer: {bind.target: bind.source for bind in made[layer].binds} for layer in LAYERS}
    assert binds["base"] == {}
    assert binds["runtime"] == {f"{INSIDE}/payload/cni": tmp_path / "cni-1"}
    assert binds["kubernetes"] == {
        f"{INSIDE}/payload/crictl": tmp_path / "crictl-1", f"{INSIDE}/pause.tar": tmp_path / "pause.tar",
        f"{INSIDE}/agent.py": resources.agent(),
    }  # fmt: skip
    assert not any(bind.writable for job in made.values() for bind in job.binds)


def test_what_must_be_installed_grows_with_the_layers(tmp_path: Path) -> None:
    made = jobs(tmp_path)
    assert made["base"].installed == {"libc": "1.0"}
    assert made["site"].installed == {"libc": "1.0", "docker.io": "1.0", "cloud-init": "1.0", "kubelet": "1.35.8"}
    assert [name for _, name in ((layer, p.name) for layer, p in installed_packages(lock()))] == [
        "cloud-init", "docker.io", "kubelet", "libc"
    ]  # fmt: skip


# --- what changes a layer


@pytest.mark.parametrize(
    ("changed", "layers"),
    [
        pytest.param({"base": (package("libc", "2"),)}, list(LAYERS), id="base"),
        pytest.param({"kubernetes": (package("kubelet", "2"),)}, ["kubernetes", "guest", "site"], id="kubernetes"),
        pytest.param({"site": (package("jq"),)}, ["site"], id="site"),
        pytest.param({"tools": (package("mtools", "2"),)}, [], id="tools"),
        pytest.param({"images": (package("catatonit", "2"),)}, [], id="images"),
    ],
)
def test_other_packages_rebuild_their_layer_and_those_above(tmp_path: Path, changed: Any, layers: list[str]) -> None:
    other = lock(packages={**lock().packages, **changed})
    assert rebuilt(jobs(tmp_path), jobs(tmp_path, lock=other)) == layers


def test_a_newer_kubelet_keeps_base_and_runtime(tmp_path: Path) -> None:
    newer = lock(taken={**lock().taken, "kubernetes": Taken(kind="go-modules", version="1.35.9", module="k")})
    payloads = {**materials(tmp_path).payloads, "kubernetes": tmp_path / "kubernetes-2"}
    other = jobs(tmp_path, lock=newer, materials=materials(tmp_path, payloads=payloads))
    assert rebuilt(jobs(tmp_path), other) == ["kubernetes", "guest", "site"]


def test_where_the_cache_is_changes_nothing(tmp_path: Path) -> None:
    assert rebuilt(jobs(tmp_path), jobs(tmp_path / "elsewhere")) == []


def test_notes_and_the_date_of_the_index_change_nothing(tmp_path: Path) -> None:
    assert rebuilt(jobs(tmp_path), jobs(tmp_path, lock=lock(notes=("given up",), epoch=2))) == []


def test_a_script_of_the_recipe_that_loses_its_x_bit_rebuilds(tmp_path: Path) -> None:
    copy = tmp_path / "provision"
    shutil.copytree(PROVISION, copy)
    start = copy / "services/kubelet/systemd/root/usr/libexec/imagebuilder/kubelet-start"
    before = jobs(tmp_path, provision=copy)
    assert rebuilt(jobs(tmp_path), before) == []
    start.chmod(0o644)
    assert rebuilt(before, jobs(tmp_path, provision=copy)) == ["kubernetes", "guest", "site"]


# --- the site's files


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """An overlay with everything that one can hold, spaces and other letters included."""
    folder = tmp_path / "my overlay"
    (folder / "etc/a b/empty").mkdir(parents=True)
    (folder / "etc/a b/fïle").write_text("content")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("etc/a b")
    (folder / "dangling").symlink_to("nowhere")
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)
    return folder


def test_the_digest_is_of_the_content_alone(overlay: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(overlay, copy, symlinks=True)
    first = folder_digest(overlay)
    assert folder_digest(copy) == first
    for path in copy.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
        if os.geteuid() == 0:
            os.chown(path, 1234, 1234, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o022)  # a checkout under umask 002
    copy.chmod(0o700)
    assert folder_digest(copy) == first


def retarget(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("etc/a")


def replace_link_by_folder(folder: Path) -> None:
    (folder / "dangling").unlink()
    (folder / "dangling").mkdir()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: (folder / "etc/a b/fïle").write_text("Content"), id="content"),
        pytest.param(lambda folder: (folder / "run.sh").chmod(0o644), id="x-bit"),
        pytest.param(lambda folder: (folder / "run.sh").chmod(0o4755), id="setuid"),
        pytest.param(lambda folder: (folder / "etc/a b/fïle").chmod(0o600), id="private"),
        pytest.param(lambda folder: (folder / "etc/a b/empty").chmod(0o700), id="folder-mode"),
        pytest.param(lambda folder: (folder / "etc/a b/empty").rmdir(), id="empty-folder"),
        pytest.param(lambda folder: (folder / "new").touch(), id="new-file"),
        pytest.param(lambda folder: (folder / "run.sh").rename(folder / "run2.sh"), id="name"),
        pytest.param(retarget, id="link-target"),
        pytest.param(replace_link_by_folder, id="link-to-folder"),
    ],
)
def test_what_the_node_would_see_changes_the_digest(overlay: Path, change: Callable[[Path], None]) -> None:
    first = folder_digest(overlay)
    change(overlay)
    assert folder_digest(overlay) != first


@pytest.mark.parametrize("option", ["overlays", "trust", "scripts"])
def test_a_path_that_is_gone_is_an_error(tmp_path: Path, option: str) -> None:
    """Else an image without it would be baked, and kept under the id of one that is empty."""
    plan = plan_request(BuildRequest(os="debian", target="qemu", **{option: (tmp_path / "gone",)}))
    with pytest.raises(UsageError, match=r"/gone: No such file") as caught:
        site_inputs(plan)
    assert caught.value.hint == "check the paths of --overlay, --trust and --script"


def test_overlays_and_scripts_keep_their_order(overlay: Path, tmp_path: Path) -> None:
    scripts = []
    for name in ("z last.sh", "a.sh"):
        (tmp_path / name).write_text(name)
        scripts.append(tmp_path / name)
    second = tmp_path / "second"
    second.mkdir()
    made = jobs(tmp_path, overlays=(overlay, second), scripts=tuple(scripts))["site"]
    assert [(bind.target, bind.source) for bind in made.binds] == [
        (f"{INSIDE}/overlays/00", overlay), (f"{INSIDE}/overlays/01", second),
        (f"{INSIDE}/scripts/00-z last.sh", scripts[0]), (f"{INSIDE}/scripts/01-a.sh", scripts[1]),
    ]  # fmt: skip
    words = command(tmp_path, made.binds, ["true"])
    assert [str(overlay), f"{INSIDE}/overlays/00"] in [words[i : i + 2] for i in range(len(words))]  # one word each
    turned = jobs(tmp_path, overlays=(second, overlay), scripts=tuple(scripts))
    other = jobs(tmp_path, overlays=(overlay, second), scripts=tuple(reversed(scripts)))
    assert len({made.id, turned["site"].id, other["site"].id}) == 3


def test_many_scripts_run_in_the_order_they_were_given(tmp_path: Path) -> None:
    """The shell sorts names: their numbers must have the same width."""
    scripts = []
    for number in range(120):
        path = tmp_path / f"{number}.sh"
        path.touch()
        scripts.append(path)
    targets = [bind.target for bind in jobs(tmp_path, scripts=tuple(scripts))["site"].binds]
    assert targets == sorted(targets)


def test_a_script_is_covered_by_name_and_content(tmp_path: Path) -> None:
    path = tmp_path / "a.sh"
    path.write_text("one")
    before = jobs(tmp_path, scripts=(path,))
    path.write_text("other")
    assert rebuilt(before, jobs(tmp_path, scripts=(path,))) == ["site"]


def test_images_are_covered_in_order(tmp_path: Path) -> None:
    one, other = (Archive(id=f"image-{name}", path=tmp_path / f"{name}.tar", reference=name) for name in "ab")
    first = jobs(tmp_path, materials=materials(tmp_path, images=(one, other)))
    assert [bind.target for bind in first["site"].binds] == [f"{INSIDE}/images/00.tar", f"{INSIDE}/images/01.tar"]
    assert rebuilt(first, jobs(tmp_path, materials=materials(tmp_path, images=(one,)))) == ["site"]
