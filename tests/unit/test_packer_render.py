"""The rendered folder: the same bytes for the same cell, only what the cell needs, and nothing that Packer refuses."""

from __future__ import annotations

import io
import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder import resources
from imagebuilder.cells import plan_cells, plan_request
from imagebuilder.content import content_id
from imagebuilder.errors import DataError, UsageError
from imagebuilder.model import LAYERS, BuildRequest
from imagebuilder.packer.checks import check_folder, problems
from imagebuilder.packer.folder import digest
from imagebuilder.packer.hcl import format_hcl
from imagebuilder.packer.render import GUEST, PACKERS, PROVISION, Item, Supplies, hcl_of, render_folder
from imagebuilder.plan import BuildPlan

GOLDEN = Path(__file__).resolve().parents[1] / "golden/packer"
PARTS = resources.folder("packer")
PLANS = list(plan_cells(BuildRequest(os="", target="", arch=""), engine="packer"))
WHOLE = ("debian-13-amd64-qemu", "centos-10-amd64-gce", "ubuntu-24.04-arm64-aws", "rhel-9-amd64-azure")


def wanted(**changes: object) -> BuildPlan:
    return plan_request(BuildRequest(**{"os": "debian", "target": "qemu", "engine": "packer", **changes}))  # type: ignore[arg-type]


def text(item: Item) -> str:
    assert isinstance(item.data, bytes)
    return item.data.decode()


def recipe(files: dict[str, Item]) -> dict[str, str]:
    assert isinstance(files[PROVISION].data, bytes)
    with tarfile.open(fileobj=io.BytesIO(files[PROVISION].data)) as tar:
        return {member.name: tar.extractfile(member).read().decode() for member in tar}  # type: ignore[union-attr]


def test_the_folder_has_what_it_should() -> None:
    files = render_folder(wanted())
    assert {
        "plugins.pkr.hcl", "variables.pkr.hcl", "locals.pkr.hcl", "sources.pkr.hcl", "build.pkr.hcl",
        "imagebuilder.auto.pkrvars.hcl", "README.md", "scripts/10-base.sh", "scripts/50-site.sh", PROVISION,
        "packer-1.6/sources.pkr.hcl", "packer-1.6/build.pkr.hcl", "packer-1.6/prepare.sh",
    } <= set(files)  # fmt: skip
    assert all(item.mode == 0o755 for path, item in files.items() if path.endswith(".sh"))


@pytest.mark.parametrize("packer", list(PACKERS))
def test_every_cell_passes_the_checks(packer: str) -> None:
    bad = {plan.id: list(problems(hcl_of(render_folder(plan), packer), parse=False)) for plan in PLANS}
    assert {name: lines for name, lines in bad.items() if lines} == {}


@pytest.mark.parametrize("target", sorted({plan.cell.target for plan in PLANS}))
def test_python_hcl2_reads_a_cell_of_each_target(target: str) -> None:
    plan = next(plan for plan in PLANS if plan.cell.target == target)
    for packer in PACKERS:
        check_folder(hcl_of(render_folder(plan), packer))


def test_all_hcl_is_laid_out() -> None:
    for plan in PLANS:
        for packer in PACKERS:
            for name, hcl in hcl_of(render_folder(plan), packer).items():
                assert format_hcl(hcl) == hcl, f"{plan.id}: {name}"


def test_the_same_plan_gives_the_same_bytes() -> None:
    assert render_folder(wanted()) == render_folder(wanted())


def test_no_path_and_no_user_of_this_machine_is_in_a_folder() -> None:
    for item in render_folder(wanted()).values():
        assert str(PARTS.parent).encode() not in item.data  # type: ignore[operator]


def test_goldens_of_all_cells() -> None:
    """One hash for each cell; what changed is seen in the whole texts below, and with imagebuilder template."""
    path = GOLDEN / "cells.json"
    made = {
        plan.id: content_id(
            {
                name: digest(item)
                for name, item in render_folder(plan).items()
                if name not in (PROVISION, "files/agent.py")
            }
        )
        for plan in PLANS
    }
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
        pytest.fail(f"{path.name} was missing and is written now: look at it, and run again")
    known = json.loads(path.read_text())
    changed = sorted(name for name in made.keys() | known.keys() if made.get(name) != known.get(name))
    assert changed == [], "remove cells.json to take the new ones"


@pytest.mark.parametrize("cell", WHOLE)
def test_golden_text(cell: str) -> None:
    plan = next(plan for plan in PLANS if str(plan.cell) == cell)
    path = GOLDEN / f"{cell}.txt"
    files = {name: item for name, item in render_folder(plan).items() if name not in (PROVISION, "files/agent.py")}
    made = "".join(f"=== {name} {item.mode:o}\n{text(item)}" for name, item in files.items())
    if not path.exists():
        path.write_text(made)
        pytest.fail(f"{path.name} was missing and is written now: look at it, and run again")
    assert made == path.read_text()


# --- what is in it


def test_the_recipe_is_the_one_of_the_plan() -> None:
    plan = wanted(target="openstack")
    files = render_folder(plan)
    inside = recipe(files)
    provision = resources.folder("provision")
    for path, content in inside.items():
        assert content == (provision.parent / path).read_text()
    for name, number in zip(LAYERS, ("10", "30", "40", "15", "45", "50"), strict=True):
        script = text(files[f"scripts/{number}-{name}.sh"])
        steps = re.findall(rf"^    ({name}/\S+\.sh)", script, re.M)
        assert steps == [f"{step.key}.sh" for step in plan.layer(name).steps]
        assert {f"provision/steps/{step}" for step in steps} <= set(inside)


def test_steps_get_their_inputs_quoted() -> None:
    script = text(render_folder(wanted(packages=("jq", "it's; $(rm)")))["scripts/50-site.sh"])
    assert """export IB_SITE_PACKAGES='jq it'"'"'s; $(rm)'""" in script


def test_packages_come_from_repositories_whose_key_is_known() -> None:
    plan = wanted(sources={"kubernetes": "packages"})
    script = text(render_folder(plan)["scripts/30-runtime.sh"])
    fingerprint = plan.profile.repositories["kubernetes"].fingerprint
    assert f"|{fingerprint}'" in script
    assert f"/v{plan.kubernetes_minor}/deb/" in script
    assert "runtime/05-repositories.sh" in script


def test_what_is_supplied_is_not_installed_as_a_package(tmp_path: Path) -> None:
    for name in ("kubernetes", "crictl", "cni"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program").write_bytes(b"\x7fELF")
        (tmp_path / name / "program").chmod(0o755)
    (tmp_path / "pause.tar").touch()
    payloads = {name: tmp_path / name for name in ("kubernetes", "crictl", "cni")}
    supplies = Supplies(kubernetes="1.35.1", payloads=payloads, pause=tmp_path / "pause.tar")
    files = render_folder(wanted(), supplies)
    script = text(files["scripts/40-kubernetes.sh"])
    assert f"export IB_KUBERNETES_PAYLOAD={GUEST}/payload/kubernetes\n" in script
    assert "export IB_KUBERNETES_PACKAGES=''\n" in script
    assert "export IB_KUBERNETES_VERSION=1.35.1\n" in script
    assert f"export IB_PAUSE_ARCHIVE={GUEST}/pause.tar\n" in script
    assert files["files/payload/crictl/program"] == Item(data=tmp_path / "crictl/program", mode=0o755)
    assert files["files/pause.tar"].data == tmp_path / "pause.tar"
    assert "05-repositories" not in text(files["scripts/30-runtime.sh"]), "no repository is wanted"


def test_a_component_that_has_no_packages_is_refused() -> None:
    with pytest.raises(UsageError, match="kubernetes comes from go-modules") as caught:
        render_folder(wanted(sources={"kubernetes": "go-modules"}))
    assert "--source kubernetes=packages" in caught.value.hint


def test_overlays_scripts_and_images_keep_their_order(tmp_path: Path) -> None:
    overlay, script = tmp_path / "overlay", tmp_path / "my script.sh"
    overlay.mkdir()
    script.touch()
    files = render_folder(wanted(overlays=(overlay,), scripts=(script,)), Supplies(images=(tmp_path / "a.tar",)))
    assert files["files/overlays/000.tar"].data == overlay
    assert files["files/scripts/000-my script.sh"] == Item(data=script, mode=0o755)
    assert files["files/images/000.tar"].data == tmp_path / "a.tar"


def test_a_known_checksum_is_literal() -> None:
    values = text(render_folder(wanted(), Supplies(checksum="sha256:" + "0" * 64))["imagebuilder.auto.pkrvars.hcl"])
    assert f'source_image_checksum = "sha256:{"0" * 64}"' in values
    assert "file:https://" in text(render_folder(wanted())["imagebuilder.auto.pkrvars.hcl"])


def test_values_of_variables_that_the_cell_does_not_have_are_left_out() -> None:
    supplies = Supplies(values={"accelerator": "tcg", "project_id": "x"})
    values = text(render_folder(wanted(), supplies)["imagebuilder.auto.pkrvars.hcl"])
    assert re.search(r'accelerator\s+= "tcg"', values)
    assert "project_id" not in values


def test_old_packer_gets_nothing_that_it_does_not_know() -> None:
    for plan in PLANS:
        hcl = "\n".join(hcl_of(render_folder(plan), "1.6").values())
        for word in ("required_plugins", "error-cleanup-provisioner", "cd_content", "efi_boot", '\nlocal "'):
            assert word not in hcl, f"{plan.id}: {word}"


def test_every_build_has_its_own_credential_and_the_user_goes_at_the_end() -> None:
    for plan in PLANS:
        hcl = "\n".join(hcl_of(render_folder(plan)).values())
        assert not re.search(r'ssh_password\s*=\s*"', hcl), f"{plan.id}: a password that is known"
        assert "vm/shutdown.sh" in hcl, plan.id


# --- parts of one's own


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A minimal target: our common parts, and two small ones."""
    folder = tmp_path / "parts"
    (folder / "sources").mkdir(parents=True)
    (folder / "variables").mkdir()
    for path in PARTS.glob("*.j2"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "scripts").symlink_to(PARTS / "scripts")
    (folder / "sources/qemu.pkr.hcl.j2").write_text('source "qemu" "node" {\n  a = local.image_name\n}\n')
    (folder / "variables/qemu.pkr.hcl.j2").write_text("")
    return folder


def test_only_variables_that_are_used_are_declared(parts: Path) -> None:
    hcl = hcl_of(render_folder(wanted(), parts=parts))
    assert set(re.findall(r'variable "(\w+)"', hcl["variables.pkr.hcl"])) == {"build_name", "ssh_username"}
    assert "stamp " in hcl["locals.pkr.hcl"]
    assert "build_password" not in hcl["locals.pkr.hcl"]
    assert "provisioner" in hcl["build.pkr.hcl"]
    assert "--stay" in hcl["build.pkr.hcl"], "no shutdown command: a provisioner removes the user"
    check_folder(hcl)


def test_what_a_target_declares_itself_is_left_to_it(parts: Path) -> None:
    source = parts / "sources/qemu.pkr.hcl.j2"
    source.write_text('source "qemu" "node" {\n  a = local.meta_data\n}\nlocals {\n  meta_data = "mine"\n}\n')
    hcl = hcl_of(render_folder(wanted(), parts=parts))
    assert "meta_data" not in hcl["locals.pkr.hcl"]
    check_folder(hcl)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        pytest.param("a\n{{ nowhere }}\n", r"packer/sources/qemu\.pkr\.hcl\.j2:2: 'nowhere' is undefined", id="name"),
        pytest.param("a\n\n{% if %}\n", r"packer/sources/qemu\.pkr\.hcl\.j2:3", id="syntax"),
    ],
)
def test_a_wrong_part_is_named_with_its_line(parts: Path, part: str, said: str) -> None:
    (parts / "sources/qemu.pkr.hcl.j2").write_text(part)
    with pytest.raises(DataError, match=said):
        render_folder(wanted(), parts=parts)


def test_a_missing_part_is_named(parts: Path) -> None:
    (parts / "sources/qemu.pkr.hcl.j2").unlink()
    with pytest.raises(DataError, match=r"packer/sources/qemu\.pkr\.hcl\.j2 is missing"):
        render_folder(wanted(), parts=parts)


def test_a_profile_without_the_source_image_says_so() -> None:
    plan = wanted()
    bare = replace(plan, profile=plan.profile.model_copy(update={"source_images": type(plan.profile.source_images)()}))
    with pytest.raises(DataError, match="no source image of the kind cloud-image"):
        render_folder(bare)
