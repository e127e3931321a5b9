"""Who could get in: users, passwords, keys; and what people of the build left in their homes."""

from __future__ import annotations

import re

from imagebuilder import resources
from imagebuilder.verify.model import Found, Image, OfflineCheck
from imagebuilder.verify.offline.files import below, homes, names, paths, settings
from imagebuilder.verify.tree import text, walk

VAGRANT = "vagrant"
FIRST_USER, NOBODY = 1000, 65534  # login.defs(5), UID_MIN; the ids of systemd's dynamic users are in no file
HISTORIES = (
    ".bash_history", ".zsh_history", ".ash_history", ".sh_history", ".history", ".python_history", ".lesshst",
    ".viminfo", ".mysql_history", ".psql_history", ".wget-hsts", ".cache", ".sudo_as_admin_successful",
)  # fmt: skip
_NO_RULE = ("Defaults", "@include", "User_Alias", "Cmnd_Alias", "Cmd_Alias", "Host_Alias", "Runas_Alias")  # sudoers(5)
_LOCKED = re.compile(r"[!*]+")  # shadow(5); a hash behind a "!" is locked, and can be cracked all the same


def is_vagrant(image: Image) -> bool:
    """Tell whether the target is one of Vagrant's, whose boxes have a user of a known name and key."""
    return image.subject.target.startswith(VAGRANT)


def users(image: Image) -> Found:
    """Look for users that are no system's, and for homes of nobody; also in the copies that tools keep."""
    allowed = {VAGRANT} if is_vagrant(image) else set()
    for path in ("/etc/passwd", "/etc/passwd-"):
        for fields in (line.split(":") for line in settings(image.root, path)):
            number = int(fields[2]) if len(fields) > 2 and fields[2].isdecimal() and len(fields[2]) < 11 else -1
            if number < 0:
                yield f"{path} has a line that is no user's"
            elif number >= FIRST_USER and number != NOBODY and fields[0] not in allowed:
                yield f"{path} has the user {fields[0]} ({number})"
            elif number == 0 and fields[0] != "root":
                yield f"{path} has {fields[0]} with the rights of root"
    yield from (f"/home/{name} is the home of nobody" for name in names(image.root, "/home")
                if name not in allowed and name != "lost+found")  # fmt: skip


def passwords(image: Image) -> Found:
    """Look for passwords: in /etc/shadow and its copy, and in /etc/passwd, where old tools put them."""
    for path in ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-"):
        lines = [line.split(":") for line in settings(image.root, path)]
        if path == "/etc/shadow" and not any(fields[0] == "root" for fields in lines):
            yield "/etc/shadow has no root"
        for fields in lines:
            word = fields[1] if len(fields) > 1 else ""
            empty_group = "gshadow" in path and not word  # gshadow(5): only members get in
            if not _LOCKED.fullmatch(word) and not empty_group:
                yield f"{path} has {'a' if word else 'an empty'} password of {fields[0]}"
    for fields in (line.split(":") for line in settings(image.root, "/etc/passwd")):
        if len(fields) < 2 or fields[1] not in ("x", "*", "!"):
            yield f"/etc/passwd has a password of {fields[0]}, or an empty one"


def sudoers(image: Image) -> Found:
    """Look for rules of sudo for users that do not exist: what was given to the build user."""
    root = image.root
    known = {"root", "ALL", *(line.split(":")[0] for line in settings(root, "/etc/passwd"))}
    groups = {f"%{line.split(':')[0]}" for line in settings(root, "/etc/group")}
    usual = {"%sudo", "%wheel", "%admin"}  # of the packages' own file, whether the group exists or not
    for path in ("/etc/sudoers", *paths(root, "/etc/sudoers.d")):
        for line in settings(root, path):
            word = line.split()[0]
            if "=" in line and not word.startswith(_NO_RULE) and word not in known | groups | usual:
                yield f"{path} has a rule for {word}, who does not exist"


def authorized_keys(image: Image) -> Found:
    """Look for what is in folders named .ssh, and for keys that sshd may take from elsewhere."""
    own = (resources.folder("provision") / "files/vagrant.pub").read_text().split()[:2]
    for path, entry in walk(image.root):
        if "/.ssh/" not in path or entry.is_folder:
            continue
        lines = [line.split()[:2] for line in settings(image.root, path)]
        boxes = is_vagrant(image) and path == f"/home/{VAGRANT}/.ssh/authorized_keys" and lines == [own]
        if not boxes:
            yield f"{path} is there"
    for folder in ("/etc/ssh/authorized_keys", "/etc/ssh/authorized_keys.d", "/etc/dropbear"):
        yield from (f"{path} is there" for path in paths(image.root, folder, "*"))


def host_keys(image: Image) -> Found:
    """Look for the keys by which a machine proves that it is itself."""
    return (f"{path} is there" for path in paths(image.root, "/etc/ssh", "ssh_host_*"))


def histories(image: Image) -> Found:
    """Look for what shells and editors wrote into homes."""
    return (
        f"{home}/{name} is there" for home in homes(image.root) for name in names(image.root, home) if name in HISTORIES
    )


def identities(image: Image) -> Found:
    """Look for what makes one machine out of two: ids and seeds."""
    root = image.root
    entry = root.entry("/etc/machine-id")
    if entry is None or not entry.is_file:
        yield "/etc/machine-id is to be there, and empty"
    elif text(root, "/etc/machine-id").strip() not in ("", "uninitialized"):
        yield "/etc/machine-id has an id"
    for path in IDENTITIES:
        found = root.entry(path)
        if found is not None and not found.is_link:
            yield f"{path} is there"


def hostname(image: Image) -> Found:
    """Look for the name of the machine that the image was built in."""
    name = text(image.root, "/etc/hostname").strip()
    if name not in ("", "localhost", "localhost.localdomain"):
        yield f"/etc/hostname has {name}"
    for words in (line.split() for line in settings(image.root, "/etc/hosts")):
        for other in words[1:]:
            if not re.match(r"(localhost|ip6-)", other):
                yield f"/etc/hosts has {other} for {words[0]}"


def temporary(image: Image) -> Found:
    """Look into the folders for temporary files."""
    for folder in ("/tmp", "/var/tmp", "/run/imagebuilder", "/run/imagebuilder-preload"):  # noqa: S108 - the image's
        yield from (f"{path} is there" for path, _ in below(image.root, folder))


IDENTITIES = (
    "/var/lib/dbus/machine-id", "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret",
    "/var/lib/containerd/io.containerd.grpc.v1.introspection/uuid", "/var/lib/docker/engine-id", "/etc/docker/key.json",
    "/etc/nvme/hostid", "/etc/nvme/hostnqn", "/etc/insights-client/machine-id", "/var/lib/NetworkManager/secret_key",
    "/boot/loader/random-seed", "/boot/efi/loader/random-seed",
)  # fmt: skip

CHECKS = (
    OfflineCheck(
        id="no-build-user",
        proves="No user but the system's is there, nor the home of one.",
        why="The build user of an image builder, with its default password, was a way into every node.",
        link="https://nvd.nist.gov/vuln/detail/CVE-2024-9486",
        fix="userdel --remove; also remove /etc/passwd-, the copy of before. See provision/vm/shutdown.sh.",
        run=users,
    ),
    OfflineCheck(
        id="no-passwords",
        proves="No account has a password, nor an empty one, not even a locked hash.",
        why="A password of the build is that of every node; a hash can be cracked by everyone who has the image.",
        link="https://nvd.nist.gov/vuln/detail/CVE-2024-9594",
        fix="usermod --password '*' USER; remove /etc/shadow-, the copy of before.",
        run=passwords,
    ),
    OfflineCheck(
        id="no-left-sudoers",
        proves="No rule of sudo is for a user who does not exist.",
        why="Who later gets the name of the build user is root.",
        link="https://www.sudo.ws/docs/man/sudoers.man/",
        fix="Remove the file of /etc/sudoers.d with the user.",
        run=sudoers,
    ),
    OfflineCheck(
        id="no-authorized-keys",
        proves="No SSH key lets anyone in, and no home has a key of its own.",
        why="The key of the build opens every node of the image.",
        link="https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/building-shared-amis.html",
        fix="Remove the .ssh folders; see provision/steps/site/90-clean.sh.",
        run=authorized_keys,
    ),
    OfflineCheck(
        id="no-host-keys",
        proves="There are no SSH host keys.",
        why="All nodes would have one key: who has one node can pass for any other.",
        link="https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/building-shared-amis.html",
        fix="rm -f /etc/ssh/ssh_host_*; they are made at first boot.",
        run=host_keys,
    ),
    OfflineCheck(
        id="no-histories",
        proves="Homes have no shell history, editor state or cache.",
        why="Histories hold what was typed during the build, passwords too.",
        link="https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/building-shared-amis.html",
        fix="Remove them; see provision/steps/site/90-clean.sh.",
        run=histories,
    ),
    OfflineCheck(
        id="no-identity",
        proves="machine-id is empty, and no other id or seed of a machine is there.",
        why="Two nodes with one machine-id get one DHCP lease, and one name in logs and in Kubernetes.",
        link="https://www.freedesktop.org/software/systemd/man/latest/machine-id.html",
        fix=": > /etc/machine-id; remove the others. See provision/steps/site/90-clean.sh.",
        run=identities,
    ),
    OfflineCheck(
        id="no-hostname",
        proves="The image has no name of a machine.",
        why="Nodes register with their host name: two of one name are one node.",
        link="https://www.freedesktop.org/software/systemd/man/latest/hostname.html",
        fix="rm /etc/hostname; see provision/steps/base/60-network.sh.",
        run=hostname,
    ),
    OfflineCheck(
        id="no-temporary-files",
        proves="The folders for temporary files are empty.",
        why="Uploads and scripts of the build stay there, with what they hold.",
        link="https://refspecs.linuxfoundation.org/FHS_3.0/fhs/ch05s15.html",
        fix="Remove them; see provision/steps/site/90-clean.sh.",
        run=temporary,
    ),
)
