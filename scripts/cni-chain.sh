# shellcheck shell=sh
# Sourced by docker-run.sh and docker-del.sh: runs the plug-ins of a configuration list as the specification has it.

DOCKER=${DOCKER:-docker}
CONFLIST=${CONFLIST:-/etc/cni/net.d/10-azure.conflist}
CNI_PATH=${CNI_PATH:-/opt/cni/bin}

# need PROGRAM...: fails if one is missing.
need() {
    for program in "$@"; do
        command -v "$program" >/dev/null || {
            echo "${0##*/}: $program is missing: install it" >&2
            exit 1
        }
    done
}

# chain_environment ID NAMESPACE NAME: who the pod is.
chain_environment() {
    CNI_CONTAINERID=$1
    CNI_IFNAME=eth0
    CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=$2;K8S_POD_NAME=$3"
    export CNI_CONTAINERID CNI_IFNAME CNI_ARGS CNI_PATH
}

# The port mappings of $PORTS as the capability has them.
port_mappings() {
    printf '%s' "${PORTS-}" | jq -R -c '[splits(" +") | select(. != "")
        | capture("^(?<host>[0-9]+):(?<container>[0-9]+)(/(?<protocol>tcp|udp|sctp))?$")
        | {hostPort: (.host | tonumber), containerPort: (.container | tonumber), protocol: (.protocol // "tcp")}]' |
        grep . || echo '[]'
}

# plugin_config INDEX RESULT: what the plug-in at that place of the list reads.
plugin_config() {
    ports=$(port_mappings)
    jq -c --argjson at "$1" --argjson previous "${2:-null}" --argjson ports "$ports" '
        {name, cniVersion} as $list | .plugins[$at] + $list
        | if $previous != null then .prevResult = $previous else . end
        | if .capabilities.portMappings == true and ($ports | length) > 0
          then .runtimeConfig.portMappings = $ports else . end' "$CONFLIST"
}

# run_plugin VERB NETNS INDEX RESULT: runs one; its error is printed, its result is the output.
run_plugin() {
    config=$(plugin_config "$3" "$4")
    kind=$(printf '%s' "$config" | jq -r .type)
    program=
    old_ifs=$IFS
    IFS=:
    for directory in $CNI_PATH; do
        [ -x "$directory/$kind" ] && program=$directory/$kind && break
    done
    IFS=$old_ifs
    if [ -z "$program" ]; then
        echo "${0##*/}: the plug-in $kind is not in $CNI_PATH" >&2
        return 1
    fi
    answer=$(printf '%s' "$config" | CNI_COMMAND=$1 CNI_NETNS=$2 "$program") || {
        echo "${0##*/}: $kind $1 failed: $answer" >&2
        return 1
    }
    printf '%s' "$answer"
}

# chain_add NETNS: all plug-ins in order. The last one's result is the output.
chain_add() {
    result=
    count=$(jq '.plugins | length' "$CONFLIST")
    at=0
    while [ "$at" -lt "$count" ]; do
        result=$(run_plugin ADD "$1" "$at" "$result") || return 1
        at=$((at + 1))
    done
    printf '%s' "$result"
}

# chain_del NETNS: all plug-ins, the last one first. One that fails ends it, as in a runtime.
chain_del() {
    at=$(jq '.plugins | length' "$CONFLIST")
    while [ "$at" -gt 0 ]; do
        at=$((at - 1))
        run_plugin DEL "$1" "$at" '' || return 1
    done
}
