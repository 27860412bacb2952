#!/bin/sh
# Runs a container whose network is made by the plug-ins of /etc/cni/net.d/10-azure.conflist.
#
# usage: docker-run.sh <container> <namespace> <image> [command [argument...]]
#
# The container runs the image's own command, unless one is given. On a failure nothing of it stays.
#
#   PORTS    host ports, as "8080:80 5353:53/udp"
#   DOCKER   the program to call in place of docker
#   CONFLIST, CNI_PATH   other places of the configuration and the plug-ins
#   DEBUG    1: print the result
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=scripts/cni-chain.sh
. "$here/cni-chain.sh"

if [ $# -lt 3 ]; then
    echo "usage: ${0##*/} <container> <namespace> <image> [command [argument...]]" >&2
    exit 1
fi
container=$1 namespace=$2 image=$3
shift 3
need jq "$DOCKER"

id=$("$DOCKER" run -d --net=none --name "$container" --label "causeway.ports=${PORTS-}" "$image" "$@")
# From here on, whatever goes wrong, nothing stays.
clean_up() {
    status=$?
    trap - EXIT
    if [ "$status" -ne 0 ]; then
        chain_del '' >/dev/null || true
        "$DOCKER" rm -f "$container" >/dev/null || true
    fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
pid=$("$DOCKER" inspect -f '{{.State.Pid}}' "$container")
if [ "$pid" = 0 ]; then
    echo "${0##*/}: the container has ended: $("$DOCKER" logs --tail 5 "$container" 2>&1)" >&2
    exit 1
fi
chain_environment "$id" "$namespace" "$container"
result=$(chain_add "/proc/$pid/ns/net")
[ "${DEBUG:-0}" = 0 ] || printf '%s\n' "$result"
