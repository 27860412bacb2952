//! Everything that the checks look at, read once: what was true a moment ago, by itself consistent enough to judge.
//! What cannot be read is noted and judged by nobody.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use causeway::{
    config::{self, ConfigError, Configuration},
    datapath::{Datapath, DatapathError, HookState, Mechanism, PodAddresses, Range, mechanisms},
    endpoints::{self, EndpointsError},
    exact_rule,
    ipam::{
        pool::Space,
        store::{self, StoreError},
    },
    leases::{self, Lease},
    links::{Address, DefaultRoute, Link, Netlink, WayOut},
    root::Root,
    settings::Settings,
};
use causeway_common::{
    maps::{Config, Count, IfaceEntry, PodEntry, Usage},
    reason::Reason,
};

use ipnet::IpNet;

use super::{
    super::{
        Failure, maps,
        network::{self, Network},
        permission_hint,
        status::{FlowCount, count_flows},
    },
    bypass::{self, Before},
    pins::{self, Pins},
    plugins::Installed,
    rules::Rules,
};

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What takes no longer than a few milliseconds: no other program is run, and no large map is read.
    Quick,
    /// Everything.
    Full,
}

/// What is known of the node.
pub(super) struct Snapshot {
    pub(super) root: Root,
    pub(super) kernel: Kernel,
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) default_route: Option<DefaultRoute>,
    pub(super) network: Network,
    /// Routes by which pods' packets to masqueraded destinations leave where no program translates.
    pub(super) ways_past: Vec<WayOut>,
    pub(super) pins: Pins,
    pub(super) datapath: Pinned,
    pub(super) state: State,
    pub(super) installed: Option<Installed>,
    pub(super) rules: Rules,
    pub(super) configuration: Result<Configuration, ConfigError>,
    /// What could not be read, and why.
    pub(super) skipped: Vec<String>,
}

/// What the kernel can do and is set to.
pub(super) struct Kernel {
    /// Whether programs may call `bpf_loop`; `None` where it does not say.
    pub(super) has_loops: Option<bool>,
    pub(super) has_btf: bool,
    /// Whether programs can be held by tcx links; `None` where it does not say.
    pub(super) has_tcx: Option<bool>,
    pub(super) has_bpffs: bool,
    pub(super) forwards: bool,
    pub(super) source_check_of_all: u8,
    /// `rp_filter` by interface.
    pub(super) source_checks: HashMap<String, u8>,
}

/// The pinned datapath.
pub(super) enum Pinned {
    Absent,
    Unusable(DatapathError),
    Open(Box<Loaded>),
}

/// What the maps say.
pub(super) struct Loaded {
    pub(super) config: Config<[u8; 4]>,
    pub(super) hooks: Vec<HookState>,
    /// Programs of others that stand before ours: interface, direction, id of the program if it has one.
    pub(super) before_ours: Vec<Before>,
    pub(super) xdp: Option<bool>,
    /// By their first addresses.
    pub(super) pods: Vec<(IpAddr, PodEntry)>,
    /// Who may send on an interface, of each family.
    pub(super) ifaces: HashMap<u32, IfaceEntry<[u8; 4]>>,
    pub(super) ifaces_v6: HashMap<u32, IfaceEntry<[u8; 16]>>,
    pub(super) usage: Vec<(Ipv4Addr, Usage)>,
    /// How full the flow table is.
    pub(super) flows: Option<FlowCount>,
    pub(super) counts: Vec<(Reason, Count)>,
    pub(super) ranges: Vec<Range>,
}

/// What the state files say.
pub(super) struct State {
    pub(super) endpoints: Result<Vec<Endpoint>, EndpointsError>,
    pub(super) space: Result<Space, StoreError>,
    pub(super) leases: Vec<Lease>,
    /// Files that say they are of another boot.
    pub(super) earlier: Vec<PathBuf>,
}

/// A pod's interface, by the state file.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// Its address of IPv4, or that of IPv6 if it has no other.
    pub(super) addr: IpAddr,
    pub(super) host_if: String,
    pub(super) container: String,
    pub(super) mac: Option<[u8; 6]>,
    /// `namespace/name`, or the container where the client did not say.
    pub(super) pod: String,
}

impl Snapshot {
    /// Reads everything.
    pub(super) fn take(root: &Root, depth: Depth) -> Result<Self, Failure> {
        let (mut skipped, is_full) = (Vec::new(), depth == Depth::Full);
        let mut netlink = Netlink::new().map_err(DatapathError::from)?;
        let links = netlink.links().map_err(DatapathError::from)?;
        let addresses = netlink.addresses().map_err(DatapathError::from)?;
        let default_route = netlink.default_route().map_err(DatapathError::from)?;
        let state = State::read(root, &mut skipped);
        let indices = hooked(root, &links)?;
        let network = network::read(&indices, state.has_ipv6_alone()).unwrap_or_else(|error| {
            skipped.push(format!("routes, neighbours and filters: {error}"));
            Network::default()
        });
        let datapath = match Datapath::open(root) {
            Ok(None) => Pinned::Absent,
            Ok(Some(datapath)) => match Loaded::read(&datapath, depth, &network, &mut skipped) {
                Ok(loaded) => Pinned::Open(Box::new(loaded)),
                Err(error) if is_denied(&error) => return Err(error.into()),
                Err(error) => Pinned::Unusable(error),
            },
            Err(error) if is_denied(&error) => return Err(error.into()),
            Err(error) => Pinned::Unusable(error),
        };
        let uplink = match &datapath {
            Pinned::Open(loaded) => Some(loaded.config.uplink_ifindex),
            Pinned::Absent | Pinned::Unusable(_) => None,
        };
        let ways = netlink.ways_past(uplink).map_err(DatapathError::from)?;
        Ok(Self {
            ways_past: exact_rule::past_the_programs(&Settings::noted(root), ways),
            root: root.clone(),
            kernel: Kernel::read(root, depth, &links),
            addresses,
            default_route,
            network,
            pins: pins::read(root),
            datapath,
            state,
            installed: is_full.then(|| Installed::read(root)),
            rules: if is_full {
                Rules::read(&mut skipped)
            } else {
                Rules::default()
            },
            links,
            configuration: config::load(root),
            skipped,
        })
    }

    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    pub(super) fn link_by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// What the maps say, if they can be read.
    pub(super) fn loaded(&self) -> Option<&Loaded> {
        match &self.datapath {
            Pinned::Open(loaded) => Some(loaded),
            Pinned::Absent | Pinned::Unusable(_) => None,
        }
    }

    /// The pods by the state file; none when it cannot be read.
    pub(super) fn endpoints(&self) -> &[Endpoint] {
        self.state.endpoints.as_deref().unwrap_or_default()
    }

    /// Whether the kernel is to masquerade what the programs do not.
    pub(super) fn wants_exact_rule(&self) -> bool {
        let chosen = self.configuration.as_ref();
        chosen.is_ok_and(|configuration| configuration.settings.exact_rule)
    }

    /// Whether the kernel masquerades what the programs do not see of a family: it is asked by a whole look, else it is as was
    /// noted.
    pub(super) fn has_own_rule(&self, is_ipv4: bool) -> bool {
        let seen = self.rules.has_own(is_ipv4);
        seen.unwrap_or_else(|| exact_rule::is_made(&self.root, is_ipv4))
    }

    /// The uplink that the programs know.
    pub(super) fn uplink(&self) -> Option<&Link> {
        self.link_by_index(self.loaded()?.config.uplink_ifindex)
    }
}

impl Kernel {
    fn read(root: &Root, depth: Depth, links: &[Link]) -> Self {
        let source_check = |name: &str| {
            let value = sysctl(&format!("net/ipv4/conf/{name}/rp_filter"));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let has_loops = || is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_loop);
        Self {
            has_loops: (depth == Depth::Full).then(has_loops).and_then(Result::ok),
            has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            has_tcx: mechanisms().ok().map(|all| all.contains(&Mechanism::Tcx)),
            has_bpffs: pins::is_bpffs(&root.path("/sys/fs/bpf")),
            forwards: sysctl("net/ipv4/ip_forward").is_none_or(|value| value == "1"),
            source_check_of_all: source_check("all"),
            source_checks: links
                .iter()
                .map(|link| (link.name.clone(), source_check(&link.name)))
                .collect(),
        }
    }
}

fn sysctl(name: &str) -> Option<String> {
    let value = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(value.trim().to_owned())
}

impl Loaded {
    /// Who may send on an interface in a family: address and MAC.
    pub(super) fn sender(&self, ifindex: u32, is_ipv4: bool) -> Option<(IpAddr, [u8; 6])> {
        if is_ipv4 {
            let entry = self.ifaces.get(&ifindex)?;
            Some((entry.addr.into(), entry.mac))
        } else {
            let entry = self.ifaces_v6.get(&ifindex)?;
            Some((entry.addr.into(), entry.mac))
        }
    }

    fn read(
        datapath: &Datapath,
        depth: Depth,
        network: &Network,
        skipped: &mut Vec<String>,
    ) -> Result<Self, DatapathError> {
        let hooks = datapath.hooks()?;
        let before_ours = bypass::find(datapath, &hooks, network, skipped);
        let usage: Vec<([u8; 4], Usage)> = maps::elements(datapath, "cwy_usage")?;
        Ok(Self {
            config: datapath.config()?,
            before_ours,
            hooks,
            xdp: datapath.xdp()?,
            pods: datapath.pods()?,
            ifaces: maps::elements(datapath, "cwy_ifaces")?.into_iter().collect(),
            ifaces_v6: if datapath.has_ipv6() {
                maps::elements(datapath, "cwy_ifaces6")?.into_iter().collect()
            } else {
                HashMap::new()
            },
            usage: usage
                .into_iter()
                .map(|(addr, usage)| (addr.into(), usage))
                .collect(),
            flows: match depth {
                Depth::Quick => None,
                Depth::Full => Some(count_flows(datapath)?),
            },
            counts: datapath.counts()?,
            ranges: datapath.ranges()?,
        })
    }
}

impl State {
    /// Whether a pod has no address of IPv4.
    fn has_ipv6_alone(&self) -> bool {
        let endpoints = self.endpoints.iter().flatten();
        endpoints.into_iter().any(|endpoint| endpoint.addr.is_ipv6())
    }

    fn read(root: &Root, skipped: &mut Vec<String>) -> Self {
        let endpoints = endpoints::snapshot(root).map(|state| {
            let state = state.unwrap_or_default();
            state
                .endpoints()
                .flat_map(|(_, endpoint)| of_endpoint(endpoint))
                .collect()
        });
        let leases = leases::audit(root).unwrap_or_else(|error| {
            skipped.push(format!("leases: {error}"));
            Vec::new()
        });
        Self {
            endpoints,
            space: store::snapshot(root),
            leases,
            earlier: [endpoints::STATE, store::STATE]
                .map(|path| root.path(path))
                .into_iter()
                .filter(|path| is_of_another_boot(path))
                .collect(),
        }
    }
}

fn of_endpoint(endpoint: &endpoints::Endpoint) -> Vec<Endpoint> {
    let named = [endpoint.namespace.as_str(), endpoint.pod.as_str()];
    let named: Vec<&str> = named.into_iter().filter(|name| !name.is_empty()).collect();
    let pod = if named.is_empty() {
        endpoint.container_id.clone()
    } else {
        named.join("/")
    };
    let addresses = endpoint.addresses();
    let of_ipv4: Vec<IpAddr> = addresses
        .iter()
        .map(IpNet::addr)
        .filter(IpAddr::is_ipv4)
        .collect();
    let only = PodAddresses::among(&addresses).map(|addresses| addresses.first());
    let called = if of_ipv4.is_empty() {
        only.into_iter().collect()
    } else {
        of_ipv4
    };
    let of_address = |addr| Endpoint {
        addr,
        host_if: endpoint.host_if_name.clone(),
        container: endpoint.container_id.clone(),
        mac: endpoint.mac(),
        pod: pod.clone(),
    };
    called.into_iter().map(of_address).collect()
}

/// Whether a state file names a boot, and not this one.
fn is_of_another_boot(path: &Path) -> bool {
    let Ok(current) = fs::read_to_string("/proc/sys/kernel/random/boot_id") else {
        return false;
    };
    let text = fs::read(path).unwrap_or_default();
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(&text) else {
        return false;
    };
    let parts = document.as_object().into_iter().flat_map(|parts| parts.values());
    parts
        .filter_map(|part| part.get("BootID")?.as_str())
        .any(|boot| !boot.is_empty() && boot != current.trim())
}

/// Indices of the interfaces that should have programs.
fn hooked(root: &Root, links: &[Link]) -> Result<Vec<u32>, Failure> {
    let known = match Datapath::open(root).and_then(|datapath| datapath.map(|open| open.hooks()).transpose())
    {
        Ok(hooks) => hooks.unwrap_or_default(),
        Err(error) if is_denied(&error) => return Err(error.into()),
        Err(_) => Vec::new(),
    };
    let known: HashSet<u32> = known.into_iter().map(|hook| hook.ifindex).collect();
    Ok(links
        .iter()
        .map(|link| link.index)
        .filter(|index| known.contains(index))
        .collect())
}

/// Whether the command lacks the rights: then nothing is said about the node at all.
fn is_denied(error: &DatapathError) -> bool {
    !permission_hint(error).is_empty()
}
