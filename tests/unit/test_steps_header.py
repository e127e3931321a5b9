"""Steps: what a script's header says, and the lists that are made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagebuilder.content import sha256_bytes
from imagebuilder.errors import DataError
from imagebuilder.steps import (
    Step,
    load_boot_steps,
    load_steps,
    parse_step,
    render_json,
    render_markdown,
    render_text,
    select,
)
from imagebuilder.targets import target_names

GOOD = """#!/bin/sh
# title: Load the modules
# why: without br_netfilter, kube-proxy | CNI do not see traffic
# families: debian redhat
# phase: build
set -eu

echo
"""


def write(folder: Path, name: str, text: str = GOOD) -> Path:
    path = folder / "steps" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def parse(text: str, name: str = "base/10-load-modules.sh") -> Step:
    return parse_step(Path("/provision/steps") / name, text.encode())


def test_header_is_parsed() -> None:
    step = parse(GOOD)
    assert (step.layer, step.order, step.name, step.key) == ("base", 10, "load-modules", "base/10-load-modules")
    assert step.title == "Load the modules"
    assert step.families == ("debian", "redhat")
    assert (step.targets, step.inits, step.when, step.inputs) == (("*",), ("systemd", "sysvinit"), (), ())
    assert step.phase == "build"
    assert step.sha256 == sha256_bytes(GOOD.encode())


def test_optional_keys_are_parsed() -> None:
    more = "# targets: qemu raw\n# inits: systemd\n# when: cloud_init\n"
    more += "# requires: modprobe\n# inputs: IB_A IB_B\n# uses: files/x services/y\n"
    text = GOOD.replace("set -eu", f'{more}. "${{IB_PROVISION:?}}/lib.sh"') + ': "${IB_A:?}" "${IB_B:-}"\n'
    step = parse(text)
    assert step.targets == ("qemu", "raw")
    assert (step.inits, step.when, step.requires) == (("systemd",), ("cloud_init",), ("modprobe",))
    assert step.inputs == ("IB_A", "IB_B")
    assert step.uses == ("files/x", "services/y")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("#!/bin/sh", "#!/bin/bash", "line 1: must be #!/bin/sh", id="shell"),
        pytest.param("# title: Load the modules\n", "", "title: missing", id="missing"),
        pytest.param("# why: without", "# why:\n# title: without", "why: missing", id="empty"),
        pytest.param("# title", "# titel", 'titel: unknown key (did you mean "title"?)', id="unknown"),
        pytest.param("# phase: build", "# phase: build\n# phase: build", "line 6: phase: stated twice", id="twice"),
        pytest.param("# phase: build", "# phase: boot", 'phase: "boot" is not known', id="phase"),
        pytest.param(
            "debian redhat", "debain", 'families: "debain" is not known (did you mean "debian"?)', id="family"
        ),
        pytest.param("# phase", "# when: cloudinit\n# phase", 'did you mean "cloud_init"?', id="fact"),
        pytest.param("# phase", "# words\n# phase", 'line 5: not of the form "# key: value"', id="prose"),
        pytest.param("set -eu", "set -e", "the first line of code must be one of: set -eu", id="no-set-eu"),
        pytest.param("# phase", "# inputs: PATH\n# phase", 'inputs: "PATH" must be like', id="input-name"),
        pytest.param("# phase", "# uses: /etc/x\n# phase", 'uses: "/etc/x" must be like', id="uses-absolute"),
        pytest.param("# phase", "# uses: files/../x\n# phase", "must be like files/", id="uses-parent"),
        pytest.param("# phase", "# inputs: IB_A\n# phase", "inputs: IB_A is never bound", id="input-unused"),
        pytest.param(
            "\necho", '\necho "${IB_A:?}"', "IB_A is bound in the script, but not stated", id="input-unstated"
        ),
    ],
)
def test_bad_header_is_refused(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(DataError) as caught:
        parse(GOOD.replace(old, new))
    assert message in caught.value.context


def test_all_problems_of_a_file_are_in_one_error() -> None:
    with pytest.raises(DataError) as caught:
        parse("echo\n", "bsae/1_x.sh")
    lines = caught.value.context.splitlines()
    assert caught.value.message == "/provision/steps/bsae/1_x.sh: 8 problems"
    assert all(line.startswith("/provision/steps/bsae/1_x.sh: ") for line in lines)
    assert '"bsae" is not a layer (did you mean "base"?)' in caught.value.context


def test_steps_are_sorted_by_layer_then_number(tmp_path: Path) -> None:
    for name in ("site/10-a.sh", "kubernetes/05-b.sh", "base/20-c.sh", "base/10-d.sh", "runtime/01-e.sh"):
        write(tmp_path, name)
    keys = [step.key for step in load_steps(tmp_path)]
    assert keys == ["base/10-d", "base/20-c", "runtime/01-e", "kubernetes/05-b", "site/10-a"]


def test_number_is_unique_in_a_layer(tmp_path: Path) -> None:
    write(tmp_path, "base/10-a.sh")
    write(tmp_path, "base/10-b.sh")
    write(tmp_path, "site/10-a.sh")
    write(tmp_path, "site/20-a.sh", GOOD.replace("# why", "# wy"))
    with pytest.raises(DataError) as caught:
        load_steps(tmp_path)
    assert "10-b.sh: number 10 is also that of 10-a.sh" in caught.value.context
    assert "20-a.sh: line 3: wy: unknown key" in caught.value.context


@pytest.mark.parametrize(
    ("family", "target", "init", "cloud_init", "numbers"),
    [
        pytest.param("debian", "qemu", "systemd", False, [1, 2, 3], id="qemu"),
        pytest.param("redhat", "qemu", "systemd", False, [2, 3], id="family"),
        pytest.param("debian", "raw", "systemd", False, [1, 3], id="target"),
        pytest.param("debian", "qemu", "systemd", True, [1, 2, 3, 4], id="fact"),
        pytest.param("debian", "qemu", "sysvinit", False, [1, 2], id="init"),
    ],
)
def test_selection(tmp_path: Path, family: str, target: str, init: str, cloud_init: bool, numbers: list[int]) -> None:
    write(tmp_path, "base/01-a.sh", GOOD.replace("debian redhat", "debian"))
    write(tmp_path, "base/02-b.sh", GOOD.replace("# phase", "# targets: qemu\n# phase"))
    write(tmp_path, "base/03-c.sh", GOOD.replace("# phase", "# inits: systemd\n# phase"))
    write(tmp_path, "base/04-d.sh", GOOD.replace("# phase", "# when: cloud_init\n# phase"))
    chosen = select(load_steps(tmp_path), family, target, {"cloud_init"} if cloud_init else (), init=init)
    assert [step.order for step in chosen] == numbers


def test_star_stands_for_all_families_and_inits() -> None:
    step = parse(GOOD.replace("debian redhat", "*").replace("# phase", "# inits: *\n# phase"))
    assert (step.families, step.inits) == (("debian", "redhat"), ("systemd", "sysvinit"))


def test_what_a_step_uses_must_exist(tmp_path: Path) -> None:
    write(tmp_path, "base/10-a.sh", GOOD.replace("# phase", "# uses: files/there files/lost\n# phase"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "there").touch()
    with pytest.raises(DataError) as caught:
        load_steps(tmp_path)
    assert 'base/10-a.sh: uses: there is no "files/lost" in' in caught.value.context
    assert "files/there" not in caught.value.context


def test_boot_has_six_steps() -> None:
    steps = load_boot_steps()
    assert len(steps) == 6
    assert "GRUB" in steps[0].title
    assert "kubelet" in steps[5].title


def test_bad_boot_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "boot.toml").write_text('[[step]]\ntitle = "x"\nwhi = "y"\n')
    with pytest.raises(DataError) as caught:
        load_boot_steps(tmp_path)
    assert 'step.0.whi: unknown key (did you mean "why"?)' in caught.value.context
    assert "step.0.why: missing" in caught.value.context


def test_text_lists_every_step() -> None:
    said = render_text([parse(GOOD)], load_boot_steps())
    assert "base (at build time)\n  10  Load the modules\n" in said
    assert said.endswith("1 steps at build time, 6 at boot\n")


def test_markdown_escapes_bars() -> None:
    said = render_markdown([parse(GOOD)], load_boot_steps())
    assert "## Layer `base`, at build time" in said
    why = "without br_netfilter, kube-proxy \\| CNI do not see traffic"
    assert f"| `10-load-modules` | Load the modules | {why} | everywhere |" in said
    assert "| 6 | kubelet starts its pods |" in said


def test_json_has_everything_but_the_path() -> None:
    said = json.loads(render_json([parse(GOOD)], load_boot_steps()))
    assert said["build"][0]["families"] == ["debian", "redhat"]
    assert set(said["build"][0]) == {*Step.__dataclass_fields__} - {"path"}
    assert [step["order"] for step in said["boot"]] == [1, 2, 3, 4, 5, 6]
    assert said["boot"][0]["phase"] == "boot"


def test_our_own_steps_have_good_headers() -> None:
    steps = load_steps()
    assert {"base", "runtime", "kubernetes"} <= {step.layer for step in steps}
    assert {target for step in steps for target in step.targets} <= {"*", *target_names()}
