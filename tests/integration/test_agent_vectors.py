"""The published test vectors, given to the agent with the real openssl: it says the same as the tool's reader."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from imagebuilder import process
from imagebuilder.agent import agent
from imagebuilder.datapackage.manifest import parse_time
from tests.agent_node import Node
from tests.vectors.make import FOLDER

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not process.find("openssl"), reason="openssl is not installed"),
]
INDEX = json.loads((FOLDER / "index.json").read_text())
MACHINE = {
    "hostname": "proc/sys/kernel/hostname", "uuid": "sys/class/dmi/id/product_uuid",
    "serial": "sys/class/dmi/id/product_serial",
}  # fmt: skip


class Reached(Exception):
    """A pointer was found good: what it names would be fetched now."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> agent.Host:
    def reached(*_: Any) -> NoReturn:
        raise Reached

    monkeypatch.setattr(agent, "_bounded", reached)
    node = Node.make(tmp_path / "root")
    for name, path in MACHINE.items():
        (node.root / path).write_text(INDEX["machine"][name])
    (node.root / "sys/class/net/eth0/address").write_text(INDEX["machine"]["mac"][0])
    (node.root / "etc/imagebuilder/trust.d/a.pem").write_bytes((FOLDER / INDEX["trusted"][0]).read_bytes())
    facts = node.root / "usr/lib/imagebuilder/image.json"
    stat = facts.stat()
    facts.write_text(json.dumps(INDEX["image"]))
    os.utime(facts, (stat.st_mtime, stat.st_mtime))
    node.now = parse_time(INDEX["now"]).timestamp()
    made = node.host(agent.Disk(str(node.root)))
    made.verify = agent.openssl_verify
    return made


def code_of(host: agent.Host, vector: dict[str, Any]) -> str | None:
    """Return the code with which the agent refuses a vector."""
    made = agent.Agent(host)
    candidate = agent.Candidate("vector", (FOLDER / vector["file"]).read_bytes())
    try:
        if vector["file"].startswith("pointer"):
            made.fetched(candidate)
        else:
            if vector["stage"] == "node":  # the others are for any generation
                generation = INDEX["applied"]["generation"]
                made.store.prepare()
                host.disk.write_json(
                    agent.STATE, {"generation": generation, "rejected": [], "folders": [], "files": []}
                )
            made.verify(candidate, force=True)
    except agent.Refused as refused:
        return refused.code
    except Reached:
        return None
    finally:
        made.end()
    return None


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector["file"]) for vector in INDEX["vectors"]])
def test_the_agent_says_the_same(host: agent.Host, vector: dict[str, Any]) -> None:
    assert code_of(host, vector) == vector["code"]
