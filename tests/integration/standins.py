"""Strict stand-ins for the programs that steps call: each records what it is told and refuses what it does not know."""

from __future__ import annotations

REFUSE = """
    echo "$(basename "$0") $*" >> /calls/log
    echo "the stand-in for $(basename "$0") does not know: $*" >&2
    exit 64"""

EVERYWHERE = {
    "refuse": REFUSE,
    "systemctl": """
        case "$1 ${2:-}" in
            "--quiet enable") shift 2 ;;
            "--quiet is-active") [ $# = 3 ] || exec refuse "$@"; [ -e "/active/$3" ]; exit ;;
            "stop "*)
                [ $# = 2 ] && [ -e "/active/$2" ] || exec refuse "$@"
                rm "/active/$2"
                echo "systemctl $*" >> /calls/log
                exit ;;
            "poweroff "*) echo "systemctl $*" >> /calls/log; exit ;;
            *) exec refuse "$@" ;;
        esac
        [ $# -gt 0 ] || exec refuse "$@"
        for unit in "$@"; do
            [ -e "/etc/systemd/system/$unit" ] || [ -e "/units/$unit" ] || exec refuse "enable $unit: no such unit"
            mkdir -p /etc/systemd/system/multi-user.target.wants
            ln -sfn "/etc/systemd/system/$unit" "/etc/systemd/system/multi-user.target.wants/$unit"
        done
        echo "systemctl enable $*" >> /calls/log""",
    "modprobe": """
        [ $# = 4 ] && [ "$1 $3" = "--set-version --show-depends" ] && [ -d "/lib/modules/$2" ] || exec refuse "$@"
        [ -e "/lib/modules/$2/$4" ]""",
    "python3": """
        [ "$1 $2 $3" = "-m compileall -q" ] && [ "$(pwd)" = /usr/lib/imagebuilder ] || exec refuse "$@"
        exec /usr/bin/python3 "$@" """,
    "openssl": """
        [ "$1 $2" = "pkey -pubin" ] || exec refuse "$@"
        exec /usr/bin/openssl "$@" """,
    "uname": """
        [ "$*" = -r ] || exec refuse "$@"
        cat /running""",
    "swapoff": """
        [ "$*" = -a ] || exec refuse "$@" """,
    "cloud-init": """
        case "$*" in
            "status --wait" | "clean --logs") echo "cloud-init $*" >> /calls/log ;;
            *) exec refuse "$@" ;;
        esac
        [ "$1" != status ] || exit "$(cat /cloud-init-status)"
        rm -f /var/log/cloud-init.log""",
    "curl": """
        options="--fail --silent --show-error --location --proto =https --proto-redir =https --max-filesize 1048576"
        options="$options --connect-timeout 20 --max-time 120 --retry 3 --output"
        while [ $# -gt 2 ]; do
            [ "$1" = "${options%% *}" ] || exec refuse "$@"
            [ "$1" = --output ] || options=${options#* }
            shift
        done
        case $2 in https://keys.example/*) ;; *) exec refuse "$@" ;; esac
        [ -e "/materials/keys/${2##*/}" ] || { echo "curl: (22) 404" >&2; exit 22; }
        cp "/materials/keys/${2##*/}" "$1"
        echo "curl $2" >> /calls/log""",
    "useradd": """
        [ "$*" = "--create-home --shell /bin/bash vagrant" ] || exec refuse "$@"
        mkdir -p /home/vagrant
        echo "vagrant:x:1000:1000::/home/vagrant:/bin/bash" >> /etc/passwd
        echo "vagrant:x:1000:" >> /etc/group
        echo "useradd $*" >> /calls/log""",
    "usermod": """
        case "$*" in "--password * vagrant" | "--append --groups docker vagrant") ;; *) exec refuse "$@" ;; esac
        grep -q ^vagrant: /etc/passwd || exit 6
        echo "usermod $*" >> /calls/log""",
    "userdel": """
        [ $# = 3 ] && [ "$1 $2" = "--force --remove" ] || exec refuse "$@"
        [ ! -e /userdel-fails ] || exit 8
        sed -i "/^$3:/d" /etc/passwd
        echo "userdel $*" >> /calls/log""",
    "journalctl": """
        [ "$*" = --relinquish-var ] || exec refuse "$@" """,
    "fstrim": """
        [ "$*" = --all ] || exec refuse "$@"
        echo "fstrim $*" >> /calls/log""",
    "sync": ":",
    "containerd": """
        [ "$1" != --version ] || { echo "containerd github.com/containerd/containerd 1.7.24~ds1"; exit; }
        [ "$1" = --config ] && [ -s "$2" ] || exec refuse "$@"
        ! grep '@[A-Z_]*@' "$2" || exec refuse "$2 is a template"
        case "$3 $4" in
            "config dump") cat "$2" ;;
            "--log-level warn") : > /run/containerd-is-up; exec sleep 60 ;;
            *) exec refuse "$@" ;;
        esac""",
    "ctr": """
        case "$*" in
            "images import --help" | "images pull --help") echo "  --local"; exit ;;
        esac
        [ "$1" = --address ] || exec refuse "$@"
        [ -e /run/containerd-is-up ] || exit 1
        shift 2
        [ "$*" != version ] || exit 0
        case "$*" in
            "--namespace k8s.io leases create") echo a-lease; exit ;;
            "--namespace k8s.io leases delete --sync a-lease") exit ;;
            "--namespace k8s.io images "*) ;;
            *) exec refuse "$@" ;;
        esac
        shift 3
        mkdir -p /pulled
        file() { printf '/pulled/%s' "$1" | sed 's|/|_|g; s|^_pulled_|/pulled/|'; }
        case "$1 ${2:-}" in
            "import --local") [ -f "$3" ] || exec refuse "$@" ;;
            "label registry.k8s.io/pause:3.10") ;;
            "list --quiet") name=${3#name==}; [ ! -e "$(file "$name")" ] || echo "$name"; exit ;;
            "pull --local") case $3 in *no-such*) exit 1 ;; esac; : > "$(file "$3")" ;;
            "tag "*) [ -e "$(file "$2")" ] || exec refuse "$@"; : > "$(file "$3")" ;;
            *) exec refuse "$@" ;;
        esac
        echo "ctr images $*" >> /calls/log""",
}

DEBIAN = {
    "apt-get": """
        all=$*
        while [ $# -gt 0 ]; do
            case $1 in
                -o)
                    case $2 in
                        DPkg::Lock::Timeout=300 | DPkg::Lock::Timeout=900 | Dpkg::Use-Pty=0) shift 2 ;;
                        Dpkg::Options::=--force-confold) shift 2 ;;
                        *) exec refuse "$all" ;;
                    esac ;;
                -y | --no-install-recommends) shift ;;
                update | clean | check | dist-upgrade)
                    [ $# = 1 ] || exec refuse "$all"; echo "apt-get $1" >> /calls/log; exit ;;
                install | purge) verb=$1; shift; break ;;
                *) exec refuse "$all" ;;
            esac
        done
        [ $# -gt 0 ] || exec refuse "$all"
        echo "apt-get $verb $*" >> /calls/log
        for name in "$@"; do
            case "$verb $name" in
                *" -"*) exec refuse "$all" ;;
                install*=*) printf '%s' "${name#*=}" | sed 's/[*]$/1.1/' > "/packages/${name%%=*}" ;;
                install*) printf 1.0 > "/packages/$name" ;;
                purge*) rm "/packages/$name" ;;
            esac
        done""",
    "dpkg-query": """
        [ $# = 4 ] && [ "$1 $2" = "-W -f" ] || exec refuse "$@"
        case $3 in
            '${db:Status-Status}' | '${Version}') ;;
            '${Package}\\n') cd /packages && ls -d $4 && exit; exit 1 ;;
            *) exec refuse "$@" ;;
        esac
        [ -e "/packages/$4" ] || { echo "no packages found matching $4" >&2; exit 1; }
        if [ "$3" = '${Version}' ]; then cat "/packages/$4"; else printf installed; fi""",
    "apt-mark": """
        [ $# = 2 ] && [ "$1" = hold ] && [ -e "/packages/$2" ] || exec refuse "$@"
        echo "apt-mark $*" >> /calls/log
        echo "$2 set on hold." """,
    "update-initramfs": """
        [ $# = 3 ] && [ "$1 $2" = "-c -k" ] && [ -d "/lib/modules/$3" ] || exec refuse "$@"
        echo "update-initramfs $*" >> /calls/log
        cat /etc/initramfs-tools/conf.d/* > "/boot/initrd.img-$3" """,
    **dict.fromkeys(
        ("dnf", "rpm", "dracut", "modinfo", "subscription-manager", "selinuxenabled", "restorecon"), REFUSE
    ),
}

REDHAT = {
    "dnf": """
        all=$*
        case "$all" in
            "--quiet clean all") echo "dnf $all" >> /calls/log; exit ;;
            "--quiet --disablerepo=* versionlock list") [ -e /packages/python3-dnf-plugin-versionlock ]; exit ;;
            "--quiet --disablerepo=* versionlock add "*) [ -e "/packages/$5" ]; echo "dnf $all" >> /calls/log; exit ;;
        esac
        [ "$1 $2 $3" = "-y --setopt=install_weak_deps=False --setopt=tsflags=nodocs" ] || exec refuse "$all"
        shift 3
        echo "dnf $*" >> /calls/log
        [ "$*" != "--refresh upgrade" ] || exit 0
        verb=$1
        shift
        [ $# -gt 0 ] || exec refuse "$all"
        for name in "$@"; do
            case "$verb $name" in
                *" -"*) exec refuse "$all" ;;
                install*) : > "/packages/$name"; : > "/packages/${name%%-[0-9]*}" ;;
                remove*) rm "/packages/$name" ;;
                *) exec refuse "$all" ;;
            esac
        done""",
    "rpm": """
        case "$*" in
            "--quiet -q --whatprovides "*) [ -e "/provides/$4" ] ;;
            "--quiet -q "*) [ $# = 3 ] && [ -e "/packages/$3" ] ;;
            "-qa --queryformat %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}\\\\n kernel*") cd /packages && ls -d kernel* ;;
            *) exec refuse "$@" ;;
        esac""",
    "dracut": """
        [ $# = 3 ] && [ "$1 $2" = "--force --kver" ] && [ -d "/lib/modules/$3" ] || exec refuse "$@"
        echo "dracut $*" >> /calls/log
        cat /etc/dracut.conf.d/* > "/boot/initramfs-$3.img" """,
    "modinfo": """
        [ $# = 3 ] && [ "$1" = --set-version ] || exec refuse "$@"
        [ -e "/lib/modules/$2/$3" ]""",
    "subscription-manager": """
        case "$*" in
            identity) [ -e /registered ]; exit ;;
            "register --org 123 --activationkey secret") : > /registered ;;
            unregister) rm /registered ;;
            clean) ;;
            *) exec refuse "$@" ;;
        esac
        echo "subscription-manager $*" >> /calls/log""",
    "selinuxenabled": "[ ! -e /selinux-off ]",
    "restorecon": """
        [ "$1 $2" = "-R -i" ] && [ $# -gt 2 ] || exec refuse "$@"
        shift 2
        for path in "$@"; do
            case $path in /*) ;; *) exec refuse "$@" ;; esac
            echo "restorecon $path" >> /calls/log
        done""",
    "matchpathcon": """
        [ $# = 2 ] && [ "$1" = -V ] && [ -e "$2" ] || exec refuse "$@"
        [ ! -e /mislabelled ] || { echo "$2 has context x, should be y"; exit 1; }""",
    **dict.fromkeys(("apt-get", "apt-mark", "dpkg-query", "update-initramfs"), REFUSE),
}

SILENT = (  # programs that only have to be there
    "kubeadm", "kubectl", "crictl", "runc", "docker", "dockerd", "ip", "conntrack", "socat",
    "ethtool", "iptables", "ebtables", "growpart", "sudo", "zstd",
)  # fmt: skip
FAMILIES = {"debian": DEBIAN, "redhat": REDHAT}
