"""``imagebuilder pki``: certificates, keys and kubeconfigs of a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imagebuilder.cli.output import json_option, print_json, table

if TYPE_CHECKING:
    from imagebuilder.pki.changes import Done, Terms
    from imagebuilder.pki.listing import Row

_Function = TypeVar("_Function", bound=Callable[..., Any])
MAX_DAYS = 36500
MAX_FILE = 1 << 20  # bytes read of a file that is given; certificates are smaller by far

existing = click.Path(path_type=Path, exists=True, dir_okay=False)
Days = click.IntRange(1, MAX_DAYS)


def dir_option(function: _Function) -> _Function:
    """Add ``--dir``; the function gets it as ``folder``."""
    return click.option(
        "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("pki"), show_default=True,
        help="The folder of the PKI.",
    )(function)  # fmt: skip


def validity_option(function: _Function) -> _Function:
    """Add ``--validity``."""
    return click.option("--validity", type=Days, metavar="DAYS", help="Of certificates.  [default: 365]")(function)


@click.group("pki")
def command() -> None:
    """Make and renew the certificates of a cluster.

    docs/certificates.md lists every file.
    """


@command.command("init")
@click.option("--cluster", required=True, metavar="NAME", help="The name of the cluster.")
@dir_option
@click.option("--server", metavar="URL", help="The API server, for kubeconfigs.  [default: https://127.0.0.1:6443]")
@click.option("--san", "sans", multiple=True, metavar="NAME|IP", help="One more name of the API server.")
@click.option("--etcd-san", "etcd_sans", multiple=True, metavar="NAME|IP", help="One more name of etcd.")
@click.option("--service-cidr", "cidrs", multiple=True, metavar="CIDR", help="Of services.  [default: 10.96.0.0/12]")
@click.option("--dns-domain", metavar="NAME", help="Of the cluster.  [default: cluster.local]")
@click.option("--ca-validity", type=Days, metavar="DAYS", help="Of authorities.  [default: 3650]")
@validity_option
@json_option
def init(
    cluster: str, folder: Path, server: str | None, sans: Sequence[str], etcd_sans: Sequence[str], cidrs: Sequence[str],
    dns_domain: str | None, ca_validity: int | None, validity: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Make the PKI of a cluster, or what is missing of it; what is there is kept."""
    from imagebuilder.pki.changes import init
    from imagebuilder.pki.cluster import stated
    from imagebuilder.pki.folder import Folder

    wanted = stated(
        cluster, server=server, apiserver=sans or None, etcd=etcd_sans or None, serviceCidrs=cidrs or None,
        dnsDomain=dns_domain,
    )  # fmt: skip
    done = init(Folder(folder), wanted, terms(validity, ca_days=ca_validity))
    show(done, as_json, f"imagebuilder pki issue NODE --dir {folder}")


@command.command("issue")
@click.argument("node")
@dir_option
@click.option("--san", "sans", multiple=True, metavar="NAME|IP", help="A name or address of the node.")
@validity_option
@json_option
def issue(node: str, folder: Path, sans: Sequence[str], validity: int | None, as_json: bool) -> None:
    """Make the certificates of a node: its kubelet's client and serving ones.

    What is there is kept; other names than before give a new serving certificate.
    """
    from imagebuilder.pki.changes import issue
    from imagebuilder.pki.folder import Folder

    show(issue(Folder(folder), node, sans or None, terms(validity)), as_json)


@command.command("renew")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@dir_option
@click.option("--within", type=click.IntRange(0, MAX_DAYS), metavar="DAYS", help="What ends so soon.  [default: 30]")
@click.option("--new-keys", is_flag=True, help="With new keys; without it keys stay.")
@click.option("--ca", "authorities", is_flag=True, help="Authorities, too; they keep their keys.")
@click.option("--ca-validity", type=Days, metavar="DAYS", help="Of authorities.  [default: 3650]")
@validity_option
@json_option
def renew(
    names: Sequence[str], folder: Path, within: int | None, new_keys: bool, authorities: bool, ca_validity: int | None,
    validity: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Issue anew what expires soon, or is not as cluster.json wants it; what is named, at once.

    A NAME is a certificate (apiserver, etcd/server, nodes/node-1/kubelet) or a folder (nodes/node-1).
    """
    from imagebuilder.pki.changes import renew
    from imagebuilder.pki.folder import Folder
    from imagebuilder.pki.listing import WITHIN

    limit = WITHIN if within is None and not names else within
    given = terms(validity, ca_days=ca_validity, new_keys=new_keys)
    show(renew(Folder(folder), names, limit, authorities, given), as_json)


@command.command("list")
@dir_option
@click.option(
    "--within", type=click.IntRange(0, MAX_DAYS), metavar="DAYS", help="Mark what ends so soon.  [default: 30]"
)
@json_option
def list_(folder: Path, within: int | None, as_json: bool) -> None:
    """List certificates and keys, and the days they have left.

    Fails with exit code 1 when one has expired, is wrong, or may be read by others.
    """
    from imagebuilder.errors import CheckFailedError
    from imagebuilder.pki.folder import Folder
    from imagebuilder.pki.listing import BAD, WITHIN, listing

    cluster, rows = listing(Folder(folder), now(), WITHIN if within is None else within)
    if as_json:
        print_json(cluster.model_dump(mode="json") | {"certificates": [dataclasses.asdict(row) for row in rows]})
    else:
        click.echo(f"{cluster.name}  {cluster.server}  {cluster.caHash}\n{render(rows)}")
    bad = [f"{row.name}: {problem}" for row in rows if row.status in BAD for problem in row.problems]
    if bad:
        hint = f"imagebuilder pki renew --dir {folder}; files that others may read: chmod 600, and make them anew"
        raise CheckFailedError(f"{folder}: {len(bad)} problems", context="\n".join(bad), hint=hint)


@command.command("import-ca")
@click.argument("name", metavar="ca|etcd/ca|front-proxy-ca")
@dir_option
@click.option("--certificate", type=existing, required=True, metavar="FILE", help="PEM.")
@click.option("--key", type=existing, metavar="FILE", help="PEM; without it, requests go to an outside signer.")
@json_option
def import_ca(name: str, folder: Path, certificate: Path, key: Path | None, as_json: bool) -> None:
    """Take an authority that exists, before init makes one; or a renewed one with the same key."""
    from imagebuilder.pki.folder import Folder
    from imagebuilder.pki.outside import import_authority

    pair = [(str(path), read(path)) for path in (certificate, key) if path is not None]
    done = import_authority(Folder(folder), name, pair[0], pair[1] if key is not None else None, now())
    show([done], as_json, f"imagebuilder pki init --cluster NAME --dir {folder}")


@command.command("import")
@click.argument("files", nargs=-1, required=True, type=existing, metavar="FILE...")
@dir_option
@json_option
def import_(files: Sequence[Path], folder: Path, as_json: bool) -> None:
    """Take certificates that an outside signer made of the .csr files: all, or none.

    Each FILE is PEM: the certificate, then the authorities between it and the cluster's, if there are any.
    """
    from imagebuilder.pki.folder import Folder
    from imagebuilder.pki.outside import take_in

    show(take_in(Folder(folder), {str(path): read(path) for path in files}, now()), as_json)


@command.command("token")
@dir_option
@click.option("--hours", type=click.IntRange(1, 24 * 365), default=24, show_default=True, help="How long it is good.")
@json_option
def token(folder: Path, hours: int, as_json: bool) -> None:
    """Make a token that nodes join with. It is written to files, never printed."""
    from imagebuilder.pki.folder import Folder
    from imagebuilder.pki.token import make_token

    made = make_token(Folder(folder), now(), hours)
    if as_json:
        print_json({"kind": "result"} | dataclasses.asdict(made))
        return
    click.echo(table([
        ("token", f"{made.id}.*, until {made.expires}"),
        ("authority", made.ca_hash),
        ("kubelet", f"{made.kubeconfig}: its bootstrap kubeconfig"),
        ("next", f"kubectl apply -f {made.manifest}"),
    ]))  # fmt: skip


def terms(days: int | None, *, ca_days: int | None = None, new_keys: bool = False) -> Terms:
    """Return how certificates are made; None: the default."""
    from imagebuilder.pki.changes import Terms
    from imagebuilder.pki.table import CA_DAYS, LEAF_DAYS

    return Terms(now=now(), days=days or LEAF_DAYS, ca_days=ca_days or CA_DAYS, new_keys=new_keys)


def now() -> Any:
    """Return the time."""
    from datetime import UTC, datetime

    return datetime.now(UTC)


def read(path: Path) -> bytes:
    """Return the bytes of a file that was given, up to more than any certificate has."""
    with path.open("rb") as stream:
        return stream.read(MAX_FILE)


def show(done: Sequence[Done], as_json: bool, following: str = "") -> None:
    """Print what was done."""
    if as_json:
        print_json({"kind": "result", "done": [dataclasses.asdict(one) for one in done]})
        return
    click.echo(table([(one.name, one.what, one.detail) for one in done]) if done else "nothing to do")
    if any(one.what == "requested" for one in done):
        click.echo("next: have the .csr files signed, then: imagebuilder pki import FILE...")
    elif following:
        click.echo(f"next: {following}")


def render(rows: Sequence[Row]) -> str:
    """Return the table of certificates."""
    cells = []
    for row in rows:
        days = "" if row.days is None else str(row.days)
        notes = [*row.problems, *(["a request waits"] if row.requested and row.not_after else [])]
        notes += ["its key is not here"] if not row.key_here else []
        cells.append((row.name, row.status.upper() if row.status != "ok" else "ok", row.not_after[:10], days,
                      row.subject or row.key_id, "; ".join(notes)))  # fmt: skip
    return table(cells, ("name", "status", "until", "days", "subject or key id", ""))
