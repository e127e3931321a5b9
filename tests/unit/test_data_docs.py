"""``docs/data-package.md`` says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from imagebuilder.datapackage import cluster, manifest, signing
from imagebuilder.datapackage.format import MAX_ENTRIES, MAX_PACKED, MAX_SIGNATURE, MAX_UNPACKED

PAGE = (Path(__file__).resolve().parents[2] / "docs/data-package.md").read_text()
TABLES = {
    "": cluster.Cluster, "proxy.": cluster.Proxy, "registries.<name>.": cluster.Registry, "images.": cluster.Images,
    "nodes[].": cluster.Node, "nodes[].selectors.": cluster.Selectors, "nodes[].bootstrap.": cluster.Bootstrap,
}  # fmt: skip


@pytest.mark.parametrize(("prefix", "model"), TABLES.items(), ids=lambda value: str(value))
def test_every_key_of_the_cluster_file(prefix: str, model: type[BaseModel]) -> None:
    rows = [f"| `{prefix}{name}` | {field.description} |" for name, field in model.model_fields.items()]
    assert [row for row in rows if row not in PAGE] == []


def test_caps() -> None:
    rows = [
        ("The package file", f"1 MiB ({MAX_PACKED:,} bytes)"),
        ("The archive, unpacked", f"4 MiB ({MAX_UNPACKED:,} bytes)"),
        ("Entries of the archive, `manifest.json` and `manifest.sig` among them", str(MAX_ENTRIES)),
        ("`manifest.json`", f"{manifest.MAX_MANIFEST >> 10} KiB"),
        ("`manifest.sig`", f"{MAX_SIGNATURE} bytes"),
        ("A pointer document", f"{signing.MAX_POINTER >> 10} KiB"),
    ]
    assert [row for row in rows if f"| {row[0]} | {row[1]} | `E_SIZE` |" not in PAGE] == []


def test_paths_and_members() -> None:
    fields = manifest.Manifest.model_fields.values()
    words = [*manifest.ALLOWED_FOLDERS, *manifest.ALLOWED_FILES, *(field.alias or "" for field in fields)]
    assert [word for word in words if f"`{word}`" not in PAGE] == []
