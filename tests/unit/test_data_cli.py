"""``imagebuilder data``: what it prints, what it never prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagebuilder.__main__ import main
from imagebuilder.datapackage.deliver.transports import targets
from tests.unit.datafolder import HEAD, NODES, make_folder, write_cluster

Capture = pytest.CaptureFixture[str]
CAPABILITIES = {"kubelet": "1.35.8", "runtimes": ["containerd"], "arch": "amd64", "init": "systemd"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_cluster(make_folder(tmp_path))
    return tmp_path


def image(folder: Path, **changes: object) -> str:
    path = folder / "out/manifest.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"kind": "Image", "id": "demo-image", "capabilities": {**CAPABILITIES, **changes}}))
    return str(path.parent)


def test_create_says_what_it_made_and_what_is_left(capsys: Capture) -> None:
    assert main(["data", "create"]) == 0
    said = capsys.readouterr().out
    assert "worker-1  1           made" in said
    assert "The largest, worker-1," in said and "16.0 KiB" in said and "kubectl apply -f data/addons" in said
    assert [line.split()[0] for line in said.splitlines() if line.startswith(targets())] == list(targets())
    assert main(["data", "create", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["node"], row["unchanged"], row["path"]) for row in rows] == [
        ("node-1", True, "data/node-1.ibdata"), ("worker-1", True, "data/worker-1.ibdata"),
    ]  # fmt: skip
    aws = rows[0]["targets"]["aws"]
    assert set(rows[0]["targets"]) == set(targets()) and [way["form"] for way in aws] == ["mime", "raw"]
    assert aws[1] == {
        "title": "user data, as it is", "form": "raw", "bytes": rows[0]["size"], "limit": 16384,
        "left": 16384 - rows[0]["size"], "fits": True,
    }  # fmt: skip


def test_inspect_shows_no_secret(capsys: Capture) -> None:
    main(["data", "create"])
    capsys.readouterr()
    for words in (["data", "inspect", "data/worker-1.ibdata"], ["data", "inspect", "--json", "data/worker-1.ibdata"]):
        assert main(words) == 0
        said = capsys.readouterr()
        assert "SECRET" not in said.out + said.err
        assert "/etc/kubernetes/kubelet.conf" in said.out and "demo" in said.out and "vsphere" in said.out


def test_verify_passes_and_names_every_check(folder: Path, capsys: Capture) -> None:
    main(["data", "create"])
    capsys.readouterr()
    assert main(["data", "verify", "data/worker-1.ibdata", "--image", image(folder), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [(check["name"], check["code"]) for check in checks] == [
        ("format", ""), ("signature", ""), ("validity", ""), ("image", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param({"kubelet": "1.36.0"}, "has kubelet 1.36.0, needed is >= 1.35, < 1.36", id="kubelet"),
        pytest.param({"kubelet": ""}, "has kubelet of no version", id="bare"),
        pytest.param({"runtimes": []}, "has no runtime, needed is containerd", id="runtime"),
    ],
)
def test_verify_names_what_the_image_lacks(
    folder: Path, capsys: Capture, changes: dict[str, object], said: str
) -> None:
    main(["data", "create"])
    assert main(["data", "verify", "data/worker-1.ibdata", "--image", image(folder, **changes)]) == 1
    shown = capsys.readouterr()
    assert "E_CAPABILITY" in shown.out and said in shown.out


def test_verify_with_another_key(folder: Path, capsys: Capture) -> None:
    from tests.vectors.make import public

    main(["data", "create"])
    (folder / "other.pub").write_bytes(public("other"))
    assert main(["data", "verify", "data/node-1.ibdata", "--key", "other.pub"]) == 1
    assert "E_KEY" in capsys.readouterr().out


def test_without_a_key_nothing_is_verified(folder: Path, capsys: Capture) -> None:
    main(["data", "create"])
    (folder / "pki/package-signing.pub").unlink()
    assert main(["data", "verify", "data/node-1.ibdata"]) == 16


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_what_is_no_package(folder: Path, capsys: Capture, verb: str) -> None:
    (folder / "a.ibdata").write_bytes(b"noise")
    assert main(["data", verb, "a.ibdata"]) == 25
    assert "error: E_FORMAT: a.ibdata: " in capsys.readouterr().err
    (folder / "a.ibdata").write_bytes(bytes(2 << 20))
    assert main(["data", verb, "a.ibdata"]) == 25
    assert main(["data", verb, "missing.ibdata"]) == 13


def test_pointer_is_shown_and_verified(folder: Path, capsys: Capture) -> None:
    url = "https://files.example/{node}.ibdata"
    assert main(["data", "create", "--pointer-url", url, "--target", "aws"]) == 0
    capsys.readouterr()
    assert main(["data", "inspect", "data/node-1.pointer.json"]) == 0
    assert "https://files.example/node-1.ibdata" in capsys.readouterr().out
    assert main(["data", "inspect", "data/node-1.pointer.json", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["pointer"]["url"] == "https://files.example/node-1.ibdata"
    assert said["size"] == said["targets"]["mesos"][0]["bytes"] == (folder / "data/node-1.pointer.json").stat().st_size
    assert main(["data", "verify", "data/node-1.pointer.json"]) == 0
    path = folder / "data/node-1.pointer.json"
    path.write_bytes(path.read_bytes().replace(b"files.example", b"f1les.example"))
    assert main(["data", "verify", "data/node-1.pointer.json"]) == 1
    assert "E_SIGNATURE" in capsys.readouterr().out


def enlarge(folder: Path, lines: int) -> None:
    noise = "".join(f"# {at * 2654435761 % (1 << 32):08x}\n" for at in range(lines))
    (folder / "hello.yaml").write_text((folder / "hello.yaml").read_text() + noise)


def test_a_target_without_room_takes_the_pointer(folder: Path, capsys: Capture) -> None:
    enlarge(folder, 20_000)
    assert main(["data", "create", "--target", "aws"]) == 25
    shown = capsys.readouterr()
    assert "aws                 mime" in shown.out and "too large by" in shown.out
    assert "node-1: " in shown.err and "and 16,384 are allowed\n" in shown.err and "worker-1" not in shown.err
    assert "hint: imagebuilder data create --target aws --pointer-url https://" in shown.err
    assert main(["data", "create", "--target", "qemu"]) == 0
    assert main(["data", "deliver", "data/node-1.ibdata", "--target", "aws"]) == 25
    said = capsys.readouterr().err
    assert "hint: imagebuilder data create --pointer-url" in said and "deliver node-1.pointer.json" in said
    # What the hint says is then what helps.
    assert main(["data", "create", "--pointer-url", "https://files.example/{node}.ibdata"]) == 0
    assert "deliver the pointer" in capsys.readouterr().out
    assert main(["data", "deliver", "data/node-1.pointer.json", "--target", "aws"]) == 0
    assert (folder / "data/node-1-aws/imagebuilder.ibdata").read_bytes() == (
        folder / "data/node-1.pointer.json"
    ).read_bytes()


def test_the_other_way_to_a_target_is_named(folder: Path, capsys: Capture) -> None:
    enlarge(folder, 2_700)
    assert main(["data", "create", "--target", "aws"]) == 25
    shown = capsys.readouterr()
    assert "; fits as raw" in shown.out and "; data deliver can make it fit as raw\n" in shown.err
    assert main(["data", "deliver", "data/node-1.ibdata", "--target", "aws"]) == 0


@pytest.mark.parametrize("words", [["create"], ["deliver", "missing.ibdata"]], ids=["create", "deliver"])
def test_a_misspelt_target_is_refused_first(folder: Path, capsys: Capture, words: list[str]) -> None:
    assert main(["data", *words, "--target", "openstak"]) == 2
    said = capsys.readouterr().err
    assert 'did you mean "openstack"' in said and "qemu | raw" in said
    assert not (folder / "data").exists()


def test_an_address_that_is_none(folder: Path, capsys: Capture) -> None:
    assert main(["data", "create", "--pointer-url", "files.example/{node}"]) == 2
    assert '"files.example/{node}" is not an address' in capsys.readouterr().err


def test_a_wrong_file_says_so(folder: Path, capsys: Capture) -> None:
    write_cluster(folder, (HEAD + NODES).replace("kubernetes", "kubernets"))
    assert main(["data", "create"]) == 3
    assert 'kubernets: unknown key (did you mean "kubernetes"?)' in capsys.readouterr().err
