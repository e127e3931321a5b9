"""The agent's sources on every Python from 3.6 on that this machine has."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import metadata_servers as cloud
import pytest
from local_servers import Site, answer, in_turn
from node_standins import Node

from imagebuilder.agent import agent
from imagebuilder.datapackage.deliver.encodings import Payload, cidata, mime
from imagebuilder.process import RealRunner

pytestmark = pytest.mark.integration

PACKAGE = b"\x1f\x8b" + bytes(range(256)) * 40
FOLDERS = (*sorted(Path.home().glob(".pyenv/versions/3.*/bin")), Path("/usr/bin"))
PYTHONS = {
    found[1]: path
    for folder in FOLDERS
    for path in sorted(folder.glob("python3.*"))
    if (found := re.fullmatch(r"python(3\.\d+)", path.name)) and int(found[1][2:]) >= 6
}
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import agent

told = json.load(sys.stdin)
result = {}
for name, services in told["services"].items():
    host = agent.SourceHost(told["roots"][name], sandbox="")
    host.services.update(services)
    host.commands.update(told["commands"])
    host.sleep = lambda seconds: None
    for scope in ("local", "net"):
        candidates, problems = agent.find(scope, host)
        result[name + " " + scope] = [
            [(one.origin, agent.hashlib.sha256(one.data).hexdigest()) for one in candidates],
            [(one.origin, one.code) for one in problems],
        ]
document = json.dumps(told["pointer"]).encode()
result["pointer"] = agent.hashlib.sha256(agent.fetch_pointer(document, host, lambda *_: None)).hexdigest()
print(json.dumps(result))
"""


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.mark.parametrize("version", sorted(PYTHONS, key=lambda text: int(text[2:])))
def test_sources_work(tmp_path: Path, site: Site, version: str) -> None:
    digest = hashlib.sha256(PACKAGE).hexdigest()
    text = mime(Payload(data=PACKAGE, name="n"))
    nodes = {name: Node(tmp_path / name, name) for name in ("aws", "azure", "hcloud")}
    cloud.ec2(site, text)
    cloud.azure(site, text)
    site.routes["/hetzner/v1/userdata"] = in_turn(
        lambda handler: answer(handler, b"", status=503), lambda handler: answer(handler, bytes(3 << 20), stated=False)
    )
    nodes["aws"].disk("vdb", cidata(Payload(data=PACKAGE, name="n")))
    url = site.serve("/n.ibdata", PACKAGE)
    told = {
        "services": {"aws": {"ec2": [site.url]}, "azure": {"azure": [site.url]}, "hcloud": {"hcloud": [site.url]}},
        "roots": {name: str(node.root) for name, node in nodes.items()},
        "commands": nodes["aws"].host.commands,
        "pointer": {
            "apiVersion": "imagebuilder/v1", "kind": "DataPackagePointer", "url": url, "size": len(PACKAGE),
            "sha256": digest, "keyId": "1" * 32, "signature": "c2lnbmF0dXJl",
        },
    }  # fmt: skip
    folder = Path(agent.__file__).parent
    result = RealRunner().run(
        [PYTHONS[version], "-W", "error", "-c", PROGRAM, folder], stdin=json.dumps(told).encode(), capture=True
    )
    assert json.loads(result.stdout) == {
        "aws local": [[["cidata:/dev/vdb", digest]], []],
        "aws net": [[["ec2", digest]], []],
        "azure local": [[], []],
        "azure net": [[["azure", digest]], []],
        "hcloud local": [[], []],
        "hcloud net": [[], [["hcloud", "E_SIZE"]]],
        "pointer": digest,
    }
