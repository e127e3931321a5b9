"""``imagebuilder data``: what it prints, what it never prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagebuilder.__main__ import main
from imagebuilder.datapackage.sizes import encoded, fit, fits, load_transports
from imagebuilder.errors import UsageError
from imagebuilder.targets import target_names
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
    assert "aws" in said and "16.0 KiB" in said and "kubectl apply -f data/addons" in said
    assert main(["data", "create", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["node"], row["unchanged"], row["path"]) for row in rows] == [
        ("node-1", True, "data/node-1.ibdata"), ("worker-1", True, "data/worker-1.ibdata"),
    ]  # fmt: skip
    assert {one["name"] for one in rows[0]["transports"]} == set(load_transports())


def test_inspect_shows_no_secret(capsys: Capture) -> None:
    main(["data", "create"])
    capsys.readouterr()
    for words in (["data", "inspect", "data/worker-1.ibdata"], ["data", "inspect", "--json", "data/worker-1.ibdata"]):
        assert main(words) == 0
        said = capsys.readouterr()
        assert "SECRET" not in said.out + said.err
        assert "/etc/kubernetes/kubelet.conf" in said.out and "demo" in said.out


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
    assert "error: E_FORMAT: " in capsys.readouterr().err
    (folder / "a.ibdata").write_bytes(bytes(2 << 20))
    assert main(["data", verb, "a.ibdata"]) == 25
    assert main(["data", verb, "missing.ibdata"]) == 13


def test_pointer_is_shown_and_verified(folder: Path, capsys: Capture) -> None:
    url = "https://files.example/{node}.ibdata"
    assert main(["data", "create", "--pointer-url", url, "--transport", "aws"]) == 0
    capsys.readouterr()
    assert main(["data", "inspect", "data/node-1.pointer.json"]) == 0
    assert "https://files.example/node-1.ibdata" in capsys.readouterr().out
    assert main(["data", "verify", "data/node-1.pointer.json"]) == 0
    path = folder / "data/node-1.pointer.json"
    path.write_bytes(path.read_bytes().replace(b"files.example", b"f1les.example"))
    assert main(["data", "verify", "data/node-1.pointer.json"]) == 1
    assert "E_SIGNATURE" in capsys.readouterr().out


def test_a_transport_without_room(folder: Path, capsys: Capture) -> None:
    noise = "".join(f"# {at * 2654435761 % (1 << 32):08x}\n" for at in range(5_000))
    (folder / "hello.yaml").write_text((folder / "hello.yaml").read_text() + noise)
    assert main(["data", "create", "--transport", "aws"]) == 25
    shown = capsys.readouterr()
    assert "too large by" in shown.out and "--pointer-url" in shown.err
    assert "node-1: " in shown.err and "takes 16384" in shown.err
    assert main(["data", "create", "--transport", "cidata"]) == 0
    assert main(["data", "create", "--transport", "asw"]) == 2
    assert 'did you mean "aws"' in capsys.readouterr().err


def test_a_wrong_file_says_so(folder: Path, capsys: Capture) -> None:
    write_cluster(folder, (HEAD + NODES).replace("kubernetes", "kubernets"))
    assert main(["data", "create"]) == 3
    assert 'kubernets: unknown key (did you mean "kubernetes"?)' in capsys.readouterr().err


def test_sizes_are_of_the_encoded_bytes() -> None:
    import base64

    for count in (0, 1, 2, 3, 16384):
        assert encoded(count, "base64") == len(base64.b64encode(bytes(count)))
    assert (fit(16384, "aws").left, fit(16385, "aws").left, fit(16385, "aws").fits) == (0, -1, False)
    assert (fit(1 << 20, "cidata").left, fit(1 << 20, "cidata").fits) == (None, True)
    assert [one.name for one in fits(49152) if not one.fits] == ["aws", "openstack", "hcloud", "smbios"]
    with pytest.raises(UsageError):
        fit(1, "pigeon")


def test_every_target_has_a_transport() -> None:
    reached = {target for one in load_transports().values() for target in one.targets}
    assert reached == set(target_names())
