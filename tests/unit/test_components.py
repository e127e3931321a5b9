"""The wrapper modules that we ship, and the loader that refuses anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder import resources
from imagebuilder.errors import DataError, UnresolvableError
from imagebuilder.sources.components import go_line, load_module, names, program_names

SHIPPED = names(resources.folder("components"))
GOOD = 'version = "1.2.3"\nprograms = ["example.com/tool/cmd/tool"]\n\n[stamp]\n"example.com/tool.V" = "v1.2.3"\n'


def write(root: Path, toml: str, *, go_mod: str = "module x\n\ngo 1.25.0\n", go_sum: str = "") -> Path:
    folder = root / "tool"
    folder.mkdir(exist_ok=True)
    for name, text in (("component.toml", toml), ("go.mod", go_mod), ("go.sum", go_sum)):
        (folder / name).write_text(text)
    return root


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_component_loads(name: str) -> None:
    components = resources.folder("components")
    module = load_module(components, name)
    go_mod = (components / name / "go.mod").read_text()
    assert all(program in go_mod for program in module.programs)
    assert f" v{module.version}" in go_mod
    assert len((components / name / "go.sum").read_text().splitlines()) > 50
    assert tuple(int(part) for part in go_line(components, name).split(".")) >= (1, 24)
    assert all(module.version in value for variable, value in module.stamp if "ersion" in variable.rpartition(".")[2])


def test_the_expected_components_are_shipped() -> None:
    assert {
        "cni-plugins",
        "controlplane-1.35",
        "crictl",
        "etcd",
        "kubernetes-1.35",
        "kubernetes-1.36",
        "kubernetes-1.37",
    } <= set(SHIPPED)
    assert len(load_module(resources.folder("components"), "cni-plugins").programs) == 18


@pytest.mark.parametrize("minor", ["1.35", "1.36", "1.37"])
def test_kubernetes_stamps_both_version_packages(minor: str) -> None:
    module = load_module(resources.folder("components"), f"kubernetes-{minor}")
    stamp = dict(module.stamp)
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        assert stamp[f"{package}.gitVersion"] == f"v{module.version}"
        assert stamp[f"{package}.gitMinor"] == minor.removeprefix("1.")
        assert stamp[f"{package}.gitTreeState"] == "clean"
    assert program_names(module) == ("kubeadm", "kubectl", "kubelet")


def test_a_program_is_called_as_go_calls_it() -> None:
    assert program_names(load_module(resources.folder("components"), "etcd")) == ("server",)  # of .../server/v3


def test_no_local_replacement_is_left() -> None:
    for name in SHIPPED:
        assert "=> ." not in (resources.folder("components") / name / "go.mod").read_text()


def test_the_toolchain_file_pins_hashes_and_no_address() -> None:
    text = (resources.folder("components") / "go-toolchain.txt").read_text()
    assert text.count("--hash=sha256:") == 2
    assert "://" not in text


@pytest.mark.parametrize("change", ["toml", "go.mod", "go.sum"])
def test_the_digest_covers_every_file(tmp_path: Path, change: str) -> None:
    before = load_module(write(tmp_path, GOOD), "tool").digest
    write(
        tmp_path,
        GOOD.replace("v1.2.3", "v1.2.4") if change == "toml" else GOOD,
        go_mod="module x\n\ngo 1.26.0\n" if change == "go.mod" else "module x\n\ngo 1.25.0\n",
        go_sum="more\n" if change == "go.sum" else "",
    )
    assert load_module(tmp_path, "tool").digest != before


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        (GOOD.replace("programs", "program"), "unknown key 'program'; did you mean 'programs'?"),
        ("extra = 1\n" + GOOD, "unknown key 'extra'"),
        (GOOD.replace('"1.2.3"', '"1.2"'), "version: must be an exact version"),
        (GOOD.replace('"1.2.3"', "1"), "version: must be an exact version"),
        (GOOD.replace('["example.com/tool/cmd/tool"]', "[]"), "programs: must be a list"),
        (GOOD.replace("example.com/tool/cmd/tool", "-toolexec=/bin/sh"), "is no Go package path"),
        (GOOD.replace("example.com/tool/cmd/tool", "example.com/../up"), "is no Go package path"),
        (GOOD.replace('["', '["example.com/other/tool", "'), "two of them are named 'tool'"),
        (GOOD.replace("example.com/tool.V", "-X"), "is no Go variable"),
        (GOOD.replace('"v1.2.3"', '"a -extld=/bin/sh"'), "text without spaces"),
        (GOOD.replace('"v1.2.3"', "3"), "text without spaces"),
        ("stamp = 3\n" + GOOD.partition("[stamp]")[0], "stamp: must be a table"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, toml: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        load_module(write(tmp_path, toml), "tool")
    assert says in caught.value.context
    assert "components/tool/component.toml" in caught.value.context


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_module(write(tmp_path, 'versoin = "1"\nprogrmas = []\n'), "tool")
    assert len(caught.value.context.splitlines()) == 4


@pytest.mark.parametrize("name", ["kubernetes-1.20", "../tool", "Tool", ""])
def test_an_unknown_component_names_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnresolvableError) as caught:
        load_module(write(tmp_path, GOOD), name)
    assert caught.value.hint == "there are: tool"


def test_broken_toml_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load_module(write(tmp_path, "version = "), "tool")
