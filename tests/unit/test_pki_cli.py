"""``imagebuilder pki``: words, exit codes, and no secret in what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.__main__ import main
from imagebuilder.pki.certificates import chain_pem, key_pem
from imagebuilder.pki.folder import Folder
from tests.unit.pki_helpers import DAY, NOW, new_ca, outside_answer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    clock(monkeypatch, 0)


def clock(monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    monkeypatch.setattr("imagebuilder.cli.pki.now", lambda: NOW + days * DAY)


def run(capsys: Capture, *words: str) -> tuple[int, str]:
    code = main(["pki", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


def data(capsys: Capture, *words: str) -> Any:
    code, said = run(capsys, *words, "--json")
    assert code == 0, said
    return json.loads(said)


def test_a_cluster_from_the_command_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("init", "--cluster", "demo", "--server", "https://10.0.0.1:6443", "--san", "10.0.2.2", "--validity", "90")
    code, said = run(capsys, *words)
    assert code == 0 and "apiserver                 made  until 2027-02-22" in said
    assert said.endswith("next: imagebuilder pki issue NODE --dir pki\n")
    done = data(capsys, *words)["done"]
    assert {one["what"] for one in done} == {"kept"} and done[0]["name"] == "ca"
    code, said = run(capsys, "issue", "node-1", "--san", "10.0.0.11")
    assert code == 0 and "nodes/node-1/kubelet         made" in said
    code, said = run(capsys, "list")
    assert code == 0 and "demo  https://10.0.0.1:6443  sha256:" in said
    clock(monkeypatch, 80)
    code, said = run(capsys, "list")
    assert code == 0 and "apiserver                    EXPIRING  2027-02-22  9" in said
    clock(monkeypatch, 100)
    code, said = run(capsys, "list")
    assert code == 1 and "EXPIRED" in said and "apiserver: it expired on 2027-02-22" in said
    assert "hint: imagebuilder pki renew --dir pki" in said
    assert data(capsys, "renew", "apiserver", "nodes/node-1", "--new-keys")["done"][0] == {
        "name": "apiserver", "what": "renewed", "detail": "until 2028-03-03",
    }  # fmt: skip
    code, said = run(capsys, "renew")
    assert code == 0 and "scheduler" in said and "node-1" not in said
    code, said = run(capsys, "renew")
    assert (code, said) == (0, "nothing to do\n")
    rows = data(capsys, "list")["certificates"]
    assert {row["status"] for row in rows} == {"ok"}


def test_a_token_is_never_printed(capsys: Capture) -> None:
    run(capsys, "init", "--cluster", "demo")
    code, said = run(capsys, "token", "--hours", "2")
    secret = json.loads(Path("pki/bootstrap-token.json").read_text())["stringData"]["token-secret"]
    assert code == 0 and "until 2026-11-24T14:00:30Z" in said and secret not in said
    made = data(capsys, "token")
    assert made["kubeconfig"] == "pki/bootstrap.conf" and made["ca_hash"].startswith("sha256:")
    assert json.loads(Path("pki/bootstrap-token.json").read_text())["stringData"]["token-secret"] not in str(made)


def test_an_outside_signer(capsys: Capture, tmp_path: Path) -> None:
    ca = new_ca()
    (tmp_path / "company.crt").write_bytes(chain_pem([ca[0]]))
    code, said = run(capsys, "import-ca", "ca", "--certificate", "company.crt")
    assert code == 0 and said.endswith("next: imagebuilder pki init --cluster NAME --dir pki\n")
    code, said = run(capsys, "init", "--cluster", "demo")
    assert code == 0 and "scheduler                 requested  scheduler.csr" in said
    assert said.endswith("next: have the .csr files signed, then: imagebuilder pki import FILE...\n")
    request = Folder(tmp_path / "pki").request("scheduler")
    assert request is not None
    (tmp_path / "signed.crt").write_bytes(chain_pem([outside_answer(request, ca)]))
    code, said = run(capsys, "import", "signed.crt")
    assert (code, said) == (0, "scheduler  made  until 2027-02-22\n")
    (tmp_path / "company.key").write_bytes(key_pem(ca[1]))
    assert (
        data(capsys, "import-ca", "ca", "--certificate", "company.crt", "--key", "company.key")["done"][0]["name"]
        == "ca"
    )
    assert data(capsys, "init", "--cluster", "demo")["done"][-1]["what"] == "kept"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["init", "--cluster", "Demo"], 2, '"Demo" is no name for a cluster'),
        (["init", "--cluster", "demo", "--server", "10.0.0.1"], 2, "is no address of an API server"),
        (["init", "--cluster", "demo", "--validity", "0"], 2, "--validity"),
        (["issue", "node-1"], 2, "pki is no PKI folder"),
        (["list"], 2, "imagebuilder pki init --cluster demo --dir pki"),
        (["renew", "--dir", "elsewhere"], 2, "elsewhere is no PKI folder"),
        (["import"], 2, "FILE"),
        (["import-ca", "ca", "--certificate", "nowhere.crt"], 2, "nowhere.crt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use(capsys: Capture, words: list[str], code: int, said: str, tmp_path: Path) -> None:
    found, text = run(capsys, *words)
    assert (found, said in text) == (code, True), text
    assert list(tmp_path.iterdir()) == []


def test_wrong_files(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "junk.crt").write_text("junk")
    assert run(capsys, "import-ca", "ca", "--certificate", "junk.crt")[0] == 24
    run(capsys, "init", "--cluster", "demo")
    code, said = run(capsys, "import", "junk.crt")
    assert code == 24 and "junk.crt: no certificate" in said
    (tmp_path / "pki/cluster.json").write_text("{")
    assert run(capsys, "list")[0] == 3
