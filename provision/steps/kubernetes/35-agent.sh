#!/bin/sh
# title: Install the agent that injects the data package
# why: what differs between nodes comes signed, at boot: certificates, configuration, manifests; kubelet waits for it
# families: debian redhat
# phase: build
# requires: python3 openssl
# inputs: IB_AGENT IB_IMAGE_ID IB_ARCH IB_KUBERNETES_VERSION
# uses: files/agent/image.json files/agent/imagebuilder-agent services/agent
. "${IB_PROVISION:?}/lib.sh"

want_program python3
want_program openssl
put /usr/lib/imagebuilder/agent.py < "${IB_AGENT:?}"
put /usr/sbin/imagebuilder-agent 0755 < "$IB_PROVISION/files/agent/imagebuilder-agent"

# The compiled form holds no time of the source, which would make it stale; Python 3.6 knows only that kind.
cd /usr/lib/imagebuilder
if [ -z "$(find . -name 'agent.*.pyc' -newer agent.py)" ]; then
    python3 -m compileall -q --invalidation-mode unchecked-hash agent.py > /dev/null 2>&1 || python3 -m compileall -q agent.py
fi
relabel /usr/lib/imagebuilder

runtimes=""
for name in containerd docker; do
    ! command -v "$name" > /dev/null || runtimes="${runtimes:+$runtimes, }\"$name\""
done
facts=$(render agent/image.json "ID=${IB_IMAGE_ID:?}" "ARCH=${IB_ARCH:?}" "INIT=$IB_INIT" "KUBELET=${IB_KUBERNETES_VERSION:?}" "RUNTIMES=$runtimes")
printf '%s\n' "$facts" | put /usr/lib/imagebuilder/image.json

# Keys are the site's own. Without any no package is ever applied, and the site's overlay configures the node.
mkdir -p /etc/imagebuilder/trust.d
service_install agent
