#!/bin/sh
# Removes a container that docker-run.sh has made: its network first.
#
# usage: docker-del.sh <container> <namespace>
#
# DOCKER, CONFLIST, CNI_PATH are those of docker-run.sh. If the network cannot be removed the container stays, so that
# one can try again.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=scripts/cni-chain.sh
. "$here/cni-chain.sh"

if [ $# -ne 2 ]; then
    echo "usage: ${0##*/} <container> <namespace>" >&2
    exit 1
fi
container=$1 namespace=$2
need jq "$DOCKER"

id=$("$DOCKER" inspect -f '{{.Id}}' "$container")
pid=$("$DOCKER" inspect -f '{{.State.Pid}}' "$container")
netns=
[ "$pid" = 0 ] || netns=/proc/$pid/ns/net
chain_environment "$id" "$namespace" "$container"
# shellcheck disable=SC2034 # read by chain_del
PORTS=$("$DOCKER" inspect -f '{{index .Config.Labels "causeway.ports"}}' "$container")
chain_del "$netns"
"$DOCKER" rm -f "$container" >/dev/null
