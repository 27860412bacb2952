#!/bin/sh
# Packs an installable tree, as `cargo xtask dist` makes it, with the scripts that install it: a release.
#
# usage: pack-release.sh <tree> <version> <directory>
#
# Makes causeway-<version>-linux-<arch>.tar.gz in the directory, and causeway-<version>-linux-<arch>.tar.gz.sha256 beside
# it. The same tree makes the same bytes.
set -eu

if [ $# -ne 3 ]; then
    echo "usage: ${0##*/} <tree> <version> <directory>" >&2
    exit 1
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tree=$1 version=$2 directory=$3
case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM
cp -R -- "$tree/." "$scratch"
mkdir -p "$scratch/scripts"
for script in install-cni-plugin uninstall-cni-plugin docker-run docker-del cni-chain; do
    cp -- "$here/$script.sh" "$scratch/scripts/"
done
chmod -R u=rwX,go=rX "$scratch"

release=causeway-$version-linux-$arch.tar.gz
cd -- "$directory"
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$scratch" -cf - . | gzip -n -9 >".$release.new"
mv -f -- ".$release.new" "$release"
sha256sum "$release" >"$release.sha256"
