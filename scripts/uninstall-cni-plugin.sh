#!/bin/sh
# Takes away what install-cni-plugin.sh has installed, and puts back what was there before.
#
# usage: uninstall-cni-plugin.sh [--force]
#
# While there are pods it refuses: without the network configuration a runtime cannot delete them. With --force they are
# left to the plug-ins that come back, or to the kernel alone. DESTDIR is where / is, for images.
set -eu

case ${1-} in
'') force= ;;
--force) force=1 ;;
*)
    echo "usage: ${0##*/} [--force]" >&2
    exit 1
    ;;
esac
destination=${DESTDIR-}
bin=$destination/opt/cni/bin
net=$destination/etc/cni/net.d
state=${CAUSEWAY_ROOT-$destination}/var/run/azure-vnet.json

if [ -z "$force" ] && grep -qs '"ContainerID": "[^"]' "$state"; then
    echo "${0##*/}: there are pods in $state: delete them first, or use --force" >&2
    exit 1
fi

# restore DIRECTORY NAME: what was there before, or nothing.
restore() {
    if [ -e "$1/$2.bak" ]; then
        mv -f -- "$1/$2.bak" "$1/$2"
        echo "restored $1/$2"
    elif [ -e "$1/$2" ]; then
        rm -f -- "$1/$2"
        echo "removed $1/$2"
    fi
}

# The network configuration first: from here on the runtime asks nobody for a pod. One that is not ours stays.
if [ -e "$net/10-azure.conflist.bak" ] || [ ! -e "$bin/azure-vnet.bak" ]; then
    restore "$net" 10-azure.conflist
fi
unit=causeway-agent.service
if [ -z "$destination" ] && [ -e "/usr/lib/systemd/system/$unit" ] && command -v systemctl >/dev/null; then
    systemctl disable --now "$unit" 2>/dev/null || true
fi
if [ -x "$destination/usr/bin/causeway" ] && [ -z "$destination" ]; then
    "$destination/usr/bin/causeway" unload
fi
restore "$destination/usr/lib/systemd/system" "$unit"
for name in azure-vnet azure-vnet-ipam; do
    restore "$bin" "$name"
done
for name in portmap loopback; do
    [ ! -e "$bin/$name.bak" ] || restore "$bin" "$name"
done
for name in causeway causeway-pod-cidrs; do
    restore "$destination/usr/bin" "$name"
done
