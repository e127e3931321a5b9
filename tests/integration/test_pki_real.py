"""The PKI before the eyes of OpenSSL, and killed at every single change of the file system."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from imagebuilder import content, process
from imagebuilder.errors import CommandError
from imagebuilder.pki.certificates import belong, chain_pem
from imagebuilder.pki.changes import Terms, init, issue, renew
from imagebuilder.pki.cluster import specs, stated
from imagebuilder.pki.folder import Folder
from imagebuilder.pki.listing import listing
from imagebuilder.pki.outside import import_authority, take_in
from imagebuilder.pki.table import AUTHORITIES
from imagebuilder.process import RealRunner, Result
from tests.unit.pki_helpers import NOW, TERMS, at, made, new_ca, outside_answer, pem

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(process.find("openssl") is None, reason="openssl is not installed"),
]
PURPOSES = {"server": "sslserver", "client": "sslclient"}


def openssl(*words: str | Path) -> Result:
    return RealRunner().run(["openssl", *words], capture=True)


def verify(folder: Folder, authority: str, *words: str | Path) -> None:
    trusted = folder.path / f"{authority}.crt"
    openssl("verify", "-x509_strict", "-attime", str(int(NOW.timestamp())), "-CAfile", trusted, *words)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return made(tmp_path_factory.mktemp("pki") / "pki", apiserver=["10.0.2.2", "api.example.com"])


def test_openssl_agrees_on_every_purpose_and_name(shared: Folder) -> None:
    for spec in specs(shared.cluster()):
        file = shared.path / f"{spec.name}.crt"
        for usage, purpose in PURPOSES.items():
            if usage in spec.usages:
                verify(shared, spec.authority, "-purpose", purpose, file)
            else:
                with pytest.raises(CommandError, match="openssl ended"):
                    verify(shared, spec.authority, "-purpose", purpose, file)
        for san in spec.sans:
            try:
                option = ["-verify_ip", str(ipaddress.ip_address(san))]
            except ValueError:
                option = ["-verify_hostname", san]
            verify(shared, spec.authority, *option, file)
        with pytest.raises(CommandError):
            verify(shared, "front-proxy-ca" if spec.authority == "ca" else "ca", file)


def test_openssl_agrees_on_authorities_keys_and_requests(shared: Folder, tmp_path: Path) -> None:
    for one in AUTHORITIES:
        verify(shared, one.name, shared.path / f"{one.name}.crt")
        public = openssl("pkey", "-in", shared.path / f"{one.name}.key", "-pubout").stdout
        assert openssl("x509", "-in", shared.path / f"{one.name}.crt", "-noout", "-pubkey").stdout == public
    der = tmp_path / "spki.der"
    openssl("pkey", "-pubin", "-in", write(tmp_path / "p.pem", public_of(shared, "ca")), "-outform", "DER", "-out", der)
    assert shared.cluster().caHash == f"sha256:{content.sha256_file(der)}"
    manifest, signature = write(tmp_path / "manifest", "text"), tmp_path / "manifest.sig"
    openssl("dgst", "-sha256", "-sign", shared.path / "package-signing.key", "-out", signature, manifest)
    said = openssl("dgst", "-sha256", "-verify", shared.path / "package-signing.pub", "-signature", signature, manifest)
    assert said.stdout == "Verified OK\n"
    outside = Folder(tmp_path / "outside")
    import_authority(outside, "ca", ("ca.crt", pem(new_ca("rsa"))[0]), None, NOW)
    init(outside, stated("demo"), TERMS)
    said = openssl("req", "-in", outside.path / "apiserver.csr", "-noout", "-verify", "-text")
    assert "TLS Web Server Authentication" in said.stdout and "DNS:kubernetes.default.svc" in said.stdout


def public_of(folder: Folder, name: str) -> str:
    return openssl("x509", "-in", folder.path / f"{name}.crt", "-noout", "-pubkey").stdout


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_openssl_as_the_outside_signer(tmp_path: Path) -> None:
    """The commands of a signer that knows nothing of us; then what it made is taken."""
    key, ca = tmp_path / "ca.key", tmp_path / "ca.crt"
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", ca, "-days", "3650", "-subj",
            "/C=DE/O=Company/CN=Root")  # fmt: skip
    folder, now = Folder(tmp_path / "pki"), real_time()
    import_authority(folder, "ca", ("ca.crt", ca.read_bytes()), None, now.now)
    init(folder, stated("demo"), now)
    answers = {}
    for request in folder.path.rglob("*.csr"):
        signed = tmp_path / f"{request.stem}.crt"
        how = ["-CAcreateserial", "-copy_extensions", "copyall", "-days", "30"]
        openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", key, *how, "-out", signed)
        answers[str(signed)] = signed.read_bytes()
    assert {one.what for one in take_in(folder, answers, real_time().now)} == {"made"}
    assert not list(folder.path.rglob("*.csr"))
    openssl(
        "verify", "-CAfile", ca, "-purpose", "sslserver", "-verify_hostname", "localhost", folder.path / "apiserver.crt"
    )


def real_time() -> Terms:
    return Terms(now=dt.datetime.now(dt.UTC))


# --- killed ---


def killed(step: int, run: Callable[[], object]) -> bool:
    """Run in a child that dies, without any clean-up, instead of its change number ``step``; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = step

        def counting(real: Callable[..., object]) -> Callable[..., object]:
            def call(*words: object, **more: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return real(*words, **more)

            return call

        for name in ("replace", "rename", "unlink", "mkdir", "fchmod", "chmod"):
            setattr(os, name, counting(getattr(os, name)))
        try:
            run()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def check_whole(folder: Folder) -> None:
    """Everything is there, belongs together, and nothing is left over."""
    stray = [path for path in folder.path.rglob("*") if path.name.endswith((".part", ".new", ".csr"))]
    assert stray == []
    for path in folder.path.rglob("*.crt"):
        name = path.relative_to(folder.path).as_posix().removesuffix(".crt")
        key, chain = folder.key(name), folder.chain(name)
        assert key is not None and chain is not None and belong(key, chain[0])
    assert folder.exposed() == []
    assert {row.status for row in listing(folder, NOW)[1]} == {"ok"}


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed program loses nothing that it wrote: only a power cut needs fsync."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def every_step(start: Callable[[Path], Folder], run: Callable[[Folder], object], tmp_path: Path) -> int:
    """Kill ``run`` at each step in turn; then run it to its end, and look."""
    for step in range(500):
        folder = start(tmp_path / str(step))
        died = killed(step, partial(run, folder))
        for path in folder.path.rglob("*.key*"):
            assert path.stat().st_mode & 0o077 == 0
        run(folder)
        check_whole(folder)
        shutil.rmtree(folder.path)
        if not died:
            return step
    raise AssertionError("it never came to its end")


def copied(template: Folder, path: Path) -> Folder:
    shutil.copytree(template.path, path)
    return Folder(path)


@pytest.mark.usefixtures("_quick")
def test_a_killed_init_is_finished_by_the_next_one(tmp_path: Path) -> None:
    steps = every_step(Folder, lambda folder: init(folder, stated("demo"), TERMS), tmp_path)
    assert steps > 100


@pytest.mark.usefixtures("_quick")
def test_a_killed_issue_is_finished_by_the_next_one(shared: Folder, tmp_path: Path) -> None:
    def run(folder: Folder) -> None:
        issue(folder, "node-2", ["10.0.0.12"], TERMS)

    assert every_step(partial(copied, shared), run, tmp_path) > 10


@pytest.mark.usefixtures("_quick")
def test_a_killed_renewal_never_parts_a_key_from_its_certificate(shared: Folder, tmp_path: Path) -> None:
    def run(folder: Folder) -> None:
        renew(folder, ["apiserver", "nodes/node-1"], None, False, at(0, new_keys=True))

    assert every_step(partial(copied, shared), run, tmp_path) > 20


@pytest.mark.usefixtures("_quick")
def test_a_killed_import_is_finished_by_the_next_command(tmp_path: Path) -> None:
    ca = new_ca()
    template = Folder(tmp_path / "template")
    import_authority(template, "ca", ("ca.crt", pem(ca)[0]), None, NOW)
    init(template, stated("demo"), TERMS)
    for _ in range(2):  # the second time with new keys, which wait beside those in use
        names = [path.relative_to(template.path).with_suffix("").as_posix() for path in template.path.rglob("*.csr")]
        requests = {name: template.request(name) for name in names}
        answers = {name: chain_pem([outside_answer(one, ca)]) for name, one in requests.items() if one is not None}
        assert len(answers) == (6 if not template.has("apiserver.crt") else 1)
        if template.has("apiserver.crt"):
            break
        take_in(template, answers, NOW)
        renew(template, ["apiserver"], None, False, at(0, new_keys=True))
    old = template.key("apiserver")

    for step in range(100):
        folder = copied(template, tmp_path / str(step))
        died = killed(step, lambda folder=folder: take_in(folder, answers, NOW))  # type: ignore[misc]
        init(folder, stated("demo"), TERMS)
        key, chain = folder.key("apiserver"), folder.chain("apiserver")
        assert key is not None and chain is not None and belong(key, chain[0])
        taken = old is not None and not belong(old, chain[0])
        assert taken is not folder.has("apiserver.csr"), "it is taken, or the request still waits"
        shutil.rmtree(folder.path)
        if not died:
            assert taken
            return
    raise AssertionError("it never came to its end")
