#!/bin/sh
# Installs the CNI plug-ins azure-vnet and azure-vnet-ipam on this node, and the causeway command.
#
# usage: install-cni-plugin.sh [version] [cni-plugin-version]
#
# Without a version, from the unpacked release that this script is a part of, or else from the tree that `cargo xtask dist`
# makes; with one, from the release tarball causeway-<version>-linux-<arch>.tar.gz in the current directory, whose checksum
# stands in causeway-<version>-linux-<arch>.tar.gz.sha256 beside it. portmap and loopback, which every node needs as well, are
# taken from cni-plugins-linux-<arch>-<cni-plugin-version>.tgz (with .sha256) in the same directory, else from the
# distribution's package; those that are there already stay.
#
#   CAUSEWAY_DIST      the tree to install from
#   DESTDIR            where / is, for images
#   REPLACE_CONFLIST   1: put our network configuration in the place of the one that is there
#
# Every file appears under its name as a whole, the network configuration last: a runtime that watches never sees half of
# anything. What is replaced is kept beside it as <name>.bak, once: uninstall-cni-plugin.sh puts it back.
set -eu

usage() {
    echo "usage: ${0##*/} [version] [cni-plugin-version]" >&2
    exit 1
}

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

[ $# -le 2 ] || usage
case ${1-} in -*) usage ;; esac
version=${1-} plugins_version=${2-}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
destination=${DESTDIR-}
bin=$destination/opt/cni/bin
net=$destination/etc/cni/net.d
case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

# verify FILE: compares it with the checksum in FILE.sha256.
verify() {
    [ -f "$1" ] || fail "$1 is missing"
    [ -f "$1.sha256" ] || fail "$1.sha256 is missing: the checksum of $1 belongs there"
    read -r expected _ <"$1.sha256"
    actual=$(sha256sum "$1")
    [ "$expected" = "${actual%% *}" ] || fail "$1 is damaged: its checksum is ${actual%% *}, not $expected"
}

# place SOURCE DIRECTORY NAME MODE: under a name that no runtime looks for, then renamed.
place() {
    mkdir -p "$2"
    new=$2/.$3.new
    cp -- "$1" "$new"
    chmod "$4" "$new"
    chown 0:0 "$new" 2>/dev/null || true
    sync "$new" 2>/dev/null || sync
    if [ -e "$2/$3" ] && [ ! -e "$2/$3.bak" ] && ! cmp -s "$2/$3" "$new" && ! is_ours "$2/$3"; then
        cp -p -- "$2/$3" "$2/$3.bak"
    fi
    mv -f -- "$new" "$2/$3"
    echo "installed $2/$3"
}

# is_ours FILE: whether it was made by this script before.
is_ours() {
    grep -aqs "Causeway" "$1"
}

if [ -n "$version" ]; then
    tarball=causeway-$version-linux-$arch.tar.gz
    verify "$tarball"
    tree=$scratch/tree
    mkdir "$tree"
    tar -xzf "$tarball" -C "$tree"
elif [ -f "$here/../opt/cni/bin/azure-vnet" ]; then
    tree=${CAUSEWAY_DIST:-$here/..}
else
    tree=${CAUSEWAY_DIST:-$here/../target/dist}
fi
for file in opt/cni/bin/azure-vnet opt/cni/bin/azure-vnet-ipam usr/bin/causeway etc/cni/net.d/10-azure.conflist; do
    [ -f "$tree/$file" ] || fail "$tree/$file is missing: run \`cargo xtask dist\`, or name a version"
done

# Which portmap and loopback: looked for before anything is changed.
others=
if [ -n "$plugins_version" ]; then
    tarball=cni-plugins-linux-$arch-$plugins_version.tgz
    verify "$tarball"
    others=$scratch/plugins
    mkdir "$others"
    tar -xzf "$tarball" -C "$others"
fi
for name in portmap loopback; do
    if [ -n "$others" ]; then
        [ -f "$others/$name" ] || fail "$tarball has no $name"
    elif [ ! -x "$bin/$name" ] && [ ! -x "/usr/lib/cni/$name" ] && [ ! -x "/usr/libexec/cni/$name" ]; then
        fail "$name is missing: install the distribution's containernetworking-plugins, or name a cni-plugin-version"
    fi
done

place "$tree/usr/bin/causeway" "$destination/usr/bin" causeway 755
# What asks API servers for it, which not every build has.
if [ -f "$tree/usr/bin/causeway-pod-cidrs" ]; then
    place "$tree/usr/bin/causeway-pod-cidrs" "$destination/usr/bin" causeway-pod-cidrs 755
fi
# Beside it the unit of the agent, not enabled: `systemctl enable --now causeway-agent`.
units=usr/lib/systemd/system
if [ -d "$destination/$units" ] && [ -f "$tree/$units/causeway-agent.service" ]; then
    place "$tree/$units/causeway-agent.service" "$destination/$units" causeway-agent.service 644
fi
for name in portmap loopback; do
    if [ -n "$others" ]; then
        place "$others/$name" "$bin" "$name" 755
    elif [ ! -x "$bin/$name" ]; then
        for directory in /usr/lib/cni /usr/libexec/cni; do
            [ -x "$directory/$name" ] && place "$directory/$name" "$bin" "$name" 755 && break
        done
    fi
done
for name in azure-vnet-ipam azure-vnet; do
    place "$tree/opt/cni/bin/$name" "$bin" "$name" 755
done

conflist=$net/10-azure.conflist
if [ -s "$conflist" ] && [ "${REPLACE_CONFLIST-0}" != 1 ]; then
    echo "kept $conflist"
    grep -q '"portMappings"' "$conflist" && grep -A20 '"azure-vnet"' "$conflist" | grep -q '"capabilities"' ||
        echo "note: let azure-vnet know about host ports: \"capabilities\": {\"portMappings\": true, \"bandwidth\": true}"
else
    place "$tree/etc/cni/net.d/10-azure.conflist" "$net" 10-azure.conflist 644
fi
for other in "$net"/*.conf "$net"/*.conflist "$net"/*.json; do
    [ -e "$other" ] || continue
    case ${other##*/} in
    10-azure.conflist) break ;;
    *) echo "warning: runtimes take $other, which sorts before 10-azure.conflist" >&2 ;;
    esac
done
