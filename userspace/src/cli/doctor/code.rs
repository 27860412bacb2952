//! What can be wrong with a node: the only list of the codes. Code, severity, and four texts: what is wrong, why it
//! happens, how to look at it, what to type. `docs/debugging.md` has the same rows, and a test compares them.
//!
//! A code keeps its meaning for ever. Tens are subjects: kernel 00, datapath 01, uplink 02, pods 03, addresses 04, table
//! and counters 05, plug-ins 06, rules 07; 08 is the agent's and 09 the migration's.
//!
//! Words in capitals stand for what a finding names: `INTERFACE`, `ADDRESS`, `PATH`, `MAC`, `VALUE`.

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Packets of pods are lost, go the wrong way, or will with the next pod.
    Error,
    /// Nothing is lost yet, or it is slower than it could be.
    Warning,
}

impl Severity {
    /// The word people see.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

macro_rules! codes {
    ($($variant:ident $name:literal $severity:ident
        what $what:literal cause $cause:literal look $look:literal fix $fix:literal)+) => {
        /// Something that can be wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Code { $(#[doc = $what] $variant,)+ }

        impl Code {
            /// Every code, in the order of their numbers.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];

            /// `CWY012`.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            pub(crate) const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)+ }
            }

            /// What is wrong, in half a sentence.
            pub(crate) const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what,)+ }
            }

            /// Why that happens, in one sentence.
            pub(crate) const fn cause(self) -> &'static str {
                match self { $(Self::$variant => $cause,)+ }
            }

            /// Commands that show it, one a line.
            pub(crate) const fn look(self) -> &'static str {
                match self { $(Self::$variant => $look,)+ }
            }

            /// What to type or to do.
            pub(crate) const fn fix(self) -> &'static str {
                match self { $(Self::$variant => $fix,)+ }
            }
        }
    };
}

codes! {
    NoPrograms "CWY001" Error
        what "the kernel cannot run the programs"
        cause "The helper bpf_loop is missing: the kernel is older than 5.17, or was built without BPF."
        look "uname -r\nbpftool feature probe kernel"
        fix "boot a kernel from 6.1 on with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF"
    NoBtf "CWY002" Warning
        what "the kernel does not describe its types (BTF)"
        cause "It was built without CONFIG_DEBUG_INFO_BTF; sweeps then read the whole table from outside, which is slower."
        look "ls -l /sys/kernel/btf/vmlinux"
        fix "boot a kernel with CONFIG_DEBUG_INFO_BTF=y"
    NoBpffs "CWY003" Error
        what "no bpffs is mounted, and there are pods"
        cause "Somebody unmounted it, or this command runs in another mount namespace than the plug-in (`ip netns exec` makes one)."
        look "findmnt -t bpf"
        fix "look from the namespace of the runtime: `nsenter -t 1 -m causeway doctor`; if it is gone there too, add a pod: CNI ADD mounts and loads"
    NotForwarding "CWY004" Error
        what "the node does not forward IPv4"
        cause "Something set net.ipv4.ip_forward to 0 after the datapath was loaded, often a sysctl file applied late."
        look "sysctl net.ipv4.ip_forward\ngrep -r ip_forward /etc/sysctl.conf /etc/sysctl.d /usr/lib/sysctl.d"
        fix "sysctl -w net.ipv4.ip_forward=1"
    StrictSourceCheck "CWY005" Warning
        what "the uplink refuses packets that would be answered by another interface"
        cause "rp_filter is strict (1): first packets from outside are dropped if the way back leads elsewhere."
        look "sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.INTERFACE.rp_filter\nnstat -az TcpExtIPReversePathFilter"
        fix "sysctl -w net.ipv4.conf.all.rp_filter=2"

    NotLoaded "CWY010" Error
        what "the datapath is not loaded, and there are pods"
        cause "The pins were removed (`causeway unload`, somebody's clean-up of the bpffs): pods are routed by the kernel and not masqueraded."
        look "ls /sys/fs/bpf/causeway\nbpftool prog list name cwy_from_pod"
        fix "add a pod: CNI ADD loads the datapath; then delete the pods of before, so that they are made again"
    PinAccess "CWY011" Error
        what "a pin can be used by others than root, or not as it should"
        cause "Somebody changed its owner or mode; whoever may write a map decides about pods' packets."
        look "ls -lnR /sys/fs/bpf/causeway"
        fix "chown 0:0 PATH && chmod VALUE PATH"
    ForeignTree "CWY012" Error
        what "the datapath of another version is pinned beside ours"
        cause "An upgrade or a rollback left it; its programs may stand on the same hooks and hold memory."
        look "ls /sys/fs/bpf/causeway\nbpftool net list"
        fix "causeway unload  # of the version that made it; or `rm -r PATH`, which detaches what is pinned there"
    HalfMade "CWY013" Warning
        what "a half-made datapath is left"
        cause "A process was killed while it was loading; the next one that loads begins anew."
        look "ls -R /sys/fs/bpf/causeway/staging"
        fix "rm -r PATH"
    MapMissing "CWY014" Error
        what "a map's pin is missing or is no map"
        cause "Somebody removed it; the programs still have their map, but nobody else can reach it."
        look "ls /sys/fs/bpf/causeway/v2/maps\nbpftool map list"
        fix "causeway unload  # ends the flows of the pods; then delete the pods, so that they are made again"
    MapLayout "CWY015" Error
        what "a pinned map has another layout than this version needs"
        cause "It was made by another build with the same schema number, or put there by hand."
        look "bpftool map show pinned PATH"
        fix "causeway unload  # ends the flows of the pods; then delete the pods, so that they are made again"
    ProgramMissing "CWY016" Error
        what "a program's pin is missing"
        cause "Somebody removed it; what is attached goes on, but no pod can be added."
        look "ls /sys/fs/bpf/causeway/v2/progs\nbpftool prog list"
        fix "causeway unload  # ends the flows of the pods; then delete the pods, so that they are made again"

    UplinkGone "CWY020" Error
        what "the uplink is gone"
        cause "The interface that the programs know was removed, or made again under another index."
        look "ip -d link show\nbpftool map lookup pinned /sys/fs/bpf/causeway/v2/maps/cwy_cfg key 0 0 0 0"
        fix "bring the network card back, then add a pod: CNI ADD follows the uplink"
    UplinkAddress "CWY021" Error
        what "the programs translate to an address that the uplink does not have"
        cause "The uplink's address has changed and nobody has told the programs: answers do not come back."
        look "ip -4 addr show dev INTERFACE\nbpftool map lookup pinned /sys/fs/bpf/causeway/v2/maps/cwy_cfg key 0 0 0 0"
        fix "ip addr add ADDRESS dev INTERFACE  # if it should have it; else add a pod: CNI ADD follows the uplink"
    UplinkMtu "CWY022" Warning
        what "the uplink has another MTU than the programs know"
        cause "It was changed after the last CNI ADD: packets of carried flows are judged by the old one."
        look "ip link show dev INTERFACE\nbpftool map lookup pinned /sys/fs/bpf/causeway/v2/maps/cwy_cfg key 0 0 0 0"
        fix "ip link set INTERFACE mtu VALUE  # back to what is known; or add a pod: CNI ADD follows the uplink"
    UplinkIngress "CWY023" Error
        what "cwy_from_uplink is not attached"
        cause "Somebody detached it or removed its pin: answers to masqueraded packets are not translated back."
        look "bpftool net show dev INTERFACE\ntc filter show dev INTERFACE ingress"
        fix "add a pod: CNI ADD attaches what is missing on the uplink"
    UplinkEgress "CWY024" Error
        what "cwy_to_uplink is not attached"
        cause "Somebody detached it or removed its pin: pods' packets leave with the pods' addresses."
        look "bpftool net show dev INTERFACE\ntc filter show dev INTERFACE egress"
        fix "add a pod: CNI ADD attaches what is missing on the uplink"
    XdpMissing "CWY025" Warning
        what "XDP was asked for and is not attached"
        cause "Somebody detached it, or the driver refused it after a change of MTU or queues."
        look "ip -d link show dev INTERFACE\nbpftool net show dev INTERFACE"
        fix "add a pod: CNI ADD attaches it again; or remove \"uplinkXdp\" from the configuration"
    OtherFirst "CWY026" Warning
        what "another program sees packets before ours"
        cause "It was put first on the hook (tcx), at a lower priority than 50 (clsact), or into the driver (XDP): it can drop or redirect packets past us."
        look "bpftool net show dev INTERFACE\ntc filter show dev INTERFACE ingress\ntc filter show dev INTERFACE egress"
        fix "bpftool prog show id VALUE  # whose is it? Attach it behind ours, or at a priority above 50"
    DefaultRoute "CWY027" Error
        what "the default route leaves by another interface than the uplink"
        cause "A second network card, a VPN or a DHCP client added a better route: what leaves there is not masqueraded."
        look "ip -4 route show default\nip -4 rule show"
        fix "ip route del default dev INTERFACE  # or name that interface as \"master\" in the network configuration"
    UplinkDown "CWY028" Error
        what "the uplink is down"
        cause "Somebody set it down, or its cable or host lost it; the kernel dropped its routes."
        look "ip link show dev INTERFACE\ndmesg | grep INTERFACE"
        fix "ip link set INTERFACE up"
    OtherWayOut "CWY029" Error
        what "packets of pods may leave by another interface, with the pods' addresses"
        cause "A route to masqueraded destinations leads out by another interface than the uplink, where the kernel is to translate and has no rule: no agent runs that would make it, or nft is not installed."
        look "ip route show table all dev INTERFACE\nip -6 route show table all dev INTERFACE\ncauseway ranges\nnft list tables"
        fix "systemctl start causeway-agent  # and install nftables, if there is no nft; or exclude VALUE, if it knows the pods"

    PodGone "CWY030" Error
        what "the interface of a pod is gone"
        cause "The pod ended without a CNI DEL, or somebody deleted its link; its address is held until it is collected."
        look "causeway leases --orphans\nip link show dev INTERFACE"
        fix "crictl pods  # if the sandbox is gone, the next ADD or DEL collects the address; if it is there, delete the pod"
    PodDown "CWY031" Error
        what "the host's end of a pod's link is down"
        cause "Somebody set it down: the kernel dropped the route and the neighbour entry with it."
        look "ip link show dev INTERFACE"
        fix "ip link set INTERFACE up && ip route replace ADDRESS dev INTERFACE scope link && ip neigh replace ADDRESS lladdr MAC dev INTERFACE nud permanent"
    PodIngress "CWY032" Error
        what "cwy_from_pod is not attached to a pod's link"
        cause "Somebody detached it or removed its pin: the pod's packets are not checked and not carried."
        look "bpftool net show dev INTERFACE\ntc filter show dev INTERFACE ingress"
        fix "kubectl delete pod VALUE  # it is made again with its programs"
    PodEgress "CWY033" Error
        what "cwy_to_pod is not attached to a pod's link"
        cause "Somebody detached it or removed its pin: flows towards the pod stay with the kernel."
        look "bpftool net show dev INTERFACE\ntc filter show dev INTERFACE egress"
        fix "kubectl delete pod VALUE  # it is made again with its programs"
    PodEntry "CWY034" Error
        what "the programs do not know a pod, or know another link for it"
        cause "Its entry in cwy_pods was removed or is older than its link: what it sends outside is not masqueraded."
        look "causeway pods\nbpftool map dump pinned /sys/fs/bpf/causeway/v2/maps/cwy_pods"
        fix "kubectl delete pod VALUE  # it is made again"
    IfaceEntry "CWY035" Error
        what "the programs do not know whose link this is"
        cause "The entry of cwy_ifaces was removed or is another pod's: everything the pod sends is dropped (unknown_interface, source_address)."
        look "bpftool map dump pinned /sys/fs/bpf/causeway/v2/maps/cwy_ifaces\ncauseway monitor"
        fix "kubectl delete pod VALUE  # it is made again"
    NoEndpoint "CWY036" Warning
        what "the programs know a pod that the state file does not"
        cause "The state file was lost or written by another plug-in, or a DEL was cut off."
        look "causeway pods\ncauseway leases"
        fix "crictl pods  # if no sandbox has ADDRESS any more: `ip link del INTERFACE`, and the next ADD or DEL collects the rest"
    RouteMissing "CWY037" Error
        what "the host's route to a pod is missing"
        cause "Somebody flushed routes, or a network manager took the interface for its own."
        look "ip -4 route get ADDRESS\nip -4 route show dev INTERFACE"
        fix "ip route replace ADDRESS dev INTERFACE scope link"
    RouteElsewhere "CWY038" Error
        what "the host's route to a pod leads to another interface"
        cause "Another plug-in or an old pod has a route for the same address."
        look "ip -4 route show ADDRESS"
        fix "ip route replace ADDRESS dev INTERFACE scope link"
    Neighbour "CWY039" Error
        what "the host's neighbour entry of a pod is missing, wrong or not permanent"
        cause "Somebody flushed the neighbour table, or replaced the entry."
        look "ip neigh show ADDRESS"
        fix "ip neigh replace ADDRESS lladdr MAC dev INTERFACE nud permanent"

    EndpointsDamaged "CWY040" Error
        what "the endpoint state is damaged"
        cause "The file was cut off or edited; the next CNI call puts it aside and begins a new one."
        look "python3 -m json.tool PATH"
        fix "put a good copy to PATH, or leave it: the next ADD moves it aside; pods of before are deleted by name all the same"
    LeasesDamaged "CWY041" Error
        what "the address state is damaged"
        cause "The file was cut off or edited; it is rebuilt from the endpoints by the next CNI call, if those can be read."
        look "python3 -m json.tool PATH"
        fix "put a good copy to PATH, or add a pod: the next ADD rebuilds it"
    AddressTwice "CWY042" Error
        what "an address is given to two pods"
        cause "State files were edited, restored from an old copy, or written by two plug-ins without a common lock."
        look "causeway leases\ngrep -n ADDRESS /var/run/azure-vnet.json"
        fix "delete both pods that have ADDRESS, so that each gets an address of its own"
    NoLease "CWY043" Error
        what "a pod's address is not leased: it could be given again"
        cause "The address state was edited or restored from an old copy."
        look "causeway leases\ngrep -n -A3 ADDRESS /var/run/azure-vnet-ipam.json"
        fix "delete the pod that has ADDRESS, so that it gets an address of its own"
    LeaseOrphaned "CWY044" Warning
        what "an address is held for a pod that is gone"
        cause "Its DEL never came or was cut off."
        look "causeway leases --orphans"
        fix "nothing: the ADD that would find no address collects it, and so does a DEL that sweeps"
    FewAddresses "CWY045" Warning
        what "a pool is nearly used up"
        cause "There are as many pods as addresses, or addresses are held for pods that are gone."
        look "causeway leases"
        fix "give the network card more addresses (az network nic ip-config create), or set maxPods lower"
    EarlierBoot "CWY046" Warning
        what "the state is of an earlier boot, the datapath of this one"
        cause "A state file was restored or copied after the boot: what it says of pods is void."
        look "grep BootID PATH; cat /proc/sys/kernel/random/boot_id"
        fix "remove PATH, then delete the pods of this node, so that they are made again"

    TableFilling "CWY050" Warning
        what "the flow table is more than 90 % full"
        cause "Very many flows are open, or a scan or flood leaves entries that wait for their time to end."
        look "causeway status\ncauseway top --once"
        fix "causeway sweep  # forgets what is over; then look which pod has the most: `causeway top --once`. If all are wanted: maxFlows in /etc/causeway/config.yaml"
    PodNearQuota "CWY051" Warning
        what "a pod has more than 90 % of the flows that it may have"
        cause "It opens connections without closing them, or serves very many at a time."
        look "causeway flows --pod ADDRESS --limit 50"
        fix "causeway sweep  # forgets what is over; else look into the pod at ADDRESS"
    PortsRanOut "CWY052" Warning
        what "new flows were refused: all ports towards one remote were taken"
        cause "More than some 60,000 flows of this node went to one address and port at a time."
        look "causeway status\ncauseway monitor\ncauseway nat list"
        fix "reuse connections, or spread them over several addresses of the remote; more nodes have more ports"
    TableWasFull "CWY053" Warning
        what "flows were refused or left to the kernel: the flow table was full"
        cause "More flows were open than cwy_flows holds, and none of them was over."
        look "causeway status\ncauseway top --once"
        fix "causeway sweep  # from a timer, once a minute, where pods hardly come and go; or a larger table: maxFlows in /etc/causeway/config.yaml"
    QuotaReached "CWY054" Warning
        what "new flows were refused: a pod had as many as it may have"
        cause "One pod opened more flows than its quota, a quarter of the table's."
        look "causeway top --once\ncauseway monitor"
        fix "look into the pod with the most flows: `causeway top --once`"
    RewriteFailed "CWY055" Warning
        what "the kernel refused to rewrite packets"
        cause "The kernel ran out of memory for packet data, or a driver handed over a packet it does not let change."
        look "causeway monitor\ndmesg | tail\ncauseway status"
        fix "causeway bundle  # and report it: this should not happen"
    Collisions "CWY056" Warning
        what "connections were refused: the kernel translated them onto the tuple of a carried flow"
        cause "A DNAT or MASQUERADE rule chose a port that a carried flow of the pod has."
        look "causeway monitor\niptables-save -t nat"
        fix "iptables-save -t nat  # find the rule; let it not translate between pods and outside, or give it --random-fully"
    UnknownInterface "CWY057" Warning
        what "packets came from a link that is no pod's"
        cause "A pod sent before it was added or after it was removed, or its entry in cwy_ifaces was missing for a while; or one without an address of IPv4 sends something of it."
        look "causeway monitor\ncauseway status"
        fix "causeway monitor  # names the interface; if it is still happening, delete the pod that has it"
    Spoofed "CWY058" Warning
        what "a pod sent with an address or MAC that is not its own"
        cause "Software in the pod has an address of its own (a VPN, containers in containers, keepalived), or it forges."
        look "causeway monitor\ncauseway status"
        fix "causeway monitor  # names the interface; then `causeway pods` names the pod"

    NoConfiguration "CWY060" Error
        what "no network configuration names azure-vnet"
        cause "It was not installed, was removed, or another network plug-in was installed instead."
        look "ls -l /etc/cni/net.d"
        fix "install 10-azure.conflist to PATH"
    ConfigurationDamaged "CWY061" Error
        what "a network configuration cannot be read"
        cause "It is no JSON, or has no plug-ins: the runtime skips it or refuses every pod."
        look "python3 -m json.tool PATH"
        fix "correct PATH, or move it out of the directory"
    OtherPluginFirst "CWY062" Error
        what "another plug-in gives pods their network"
        cause "The runtime takes the first file by name, and the first plug-in in it makes the pod's interface: that is not azure-vnet."
        look "ls /etc/cni/net.d; cat PATH"
        fix "mv PATH PATH.bak  # if pods of this node are to be azure-vnet's"
    PluginMissing "CWY063" Error
        what "a plug-in is not installed"
        cause "The binary was removed or never copied: every ADD and DEL fails."
        look "ls -l PATH"
        fix "install the plug-in to PATH, mode 0755"
    PluginVersion "CWY064" Error
        what "an installed plug-in is not of this version"
        cause "An upgrade or a rollback copied only one of the binaries, or the incumbent's is still there."
        look "PATH --version"
        fix "install azure-vnet, azure-vnet-ipam and causeway of one version"

    ForeignMasquerade "CWY070" Warning
        what "a rule of somebody else masquerades pods, too"
        cause "A rule that Causeway replaces is still there (azure-vnet's, ip-masq-agent's): its flows are safe, but stay with the kernel and are slow."
        look "iptables-save -t nat\nnft list ruleset"
        fix "VALUE"
    ForwardDropped "CWY071" Error
        what "the FORWARD chain drops what pods send"
        cause "Its policy or a rule in it is DROP (Docker sets that), and nothing before accepts pods' packets."
        look "iptables-save -t filter | grep -e FORWARD -e ACCEPT"
        fix "iptables -P FORWARD ACCEPT  # or accept what comes from and goes to the pods before it is dropped"
    NftDrops "CWY072" Error
        what "an nftables chain drops what pods send"
        cause "A firewall's forward chain has the policy drop and accepts nothing."
        look "nft list chains\nnft list ruleset"
        fix "nft 'VALUE'"
    ExactRuleMissing "CWY073" Error
        what "exactRule is chosen, and the kernel does not have its rule"
        cause "No agent runs that would make it, nft is not installed, or somebody flushed the rules a moment ago: who is no pod leaves with its own address."
        look "nft list table ip causeway\ncauseway status"
        fix "systemctl start causeway-agent  # and install nftables, if there is no nft"

    ConfigWrong "CWY080" Error
        what "the configuration is wrong"
        cause "A file of /etc/causeway or of ip-masq-agent was written by hand or by a ConfigMap with a mistake: all of it is out of force, what was in force before stays."
        look "causeway config check"
        fix "correct VALUE"
    ConfigNotInForce "CWY081" Warning
        what "the ranges in force are not those of the configuration"
        cause "No agent has run since the configuration was changed, or somebody has set other ranges."
        look "causeway config show --sources\ncauseway ranges"
        fix "systemctl start causeway-agent  # or run `causeway agent` once"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_each_has_a_row_in_the_debugging_guide() {
        let guide = include_str!("../../../../docs/debugging.md");
        let names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        let cell = |text: &str| text.replace('|', "\\|");
        let missing: Vec<String> = Code::ALL
            .iter()
            .map(|code| {
                let (name, severity) = (code.name(), code.severity().name());
                let [what, cause, fix] = [code.what(), code.cause(), code.fix()].map(cell);
                format!("| `{name}` | {severity} | {what} | {cause} | {fix} |")
            })
            .filter(|row| !guide.contains(row.as_str()))
            .collect();
        assert!(missing.is_empty(), "missing rows:\n{}", missing.join("\n"));
        assert_eq!(
            guide.matches("\n| `CWY").count(),
            Code::ALL.len(),
            "rows of no code"
        );
    }

    #[test]
    fn paths_of_pins_are_those_of_this_version() {
        let live = format!("causeway/v{}/", causeway_common::maps::SCHEMA);
        for code in Code::ALL {
            let paths = code.look().matches("causeway/v").count();
            assert_eq!(paths, code.look().matches(&live).count(), "{}", code.name());
        }
    }

    #[test]
    fn every_cause_is_a_sentence() {
        for code in Code::ALL {
            assert!(code.cause().ends_with('.'), "{}", code.name());
            assert!(!code.what().ends_with('.'), "{}", code.name());
        }
    }
}
