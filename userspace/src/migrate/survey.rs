//! What the node is, read only: its bridge, its pods, and what stands in the way.

mod inside;

use std::net::Ipv4Addr;

use aya::programs::{SchedClassifier, TcAttachType};
use ipnet::Ipv4Net;
use serde_json::Value;

pub(super) use self::inside::open_netns;
use self::inside::{look_inside, name};
use super::{
    MigrateError,
    journal::{Bridge, Journal, Pod, Uplink},
    kernel::{self, Device, Kernel},
    masquerade::{self, Scene, Translations},
    rules,
};
use crate::{datapath::Datapath, durable, endpoints, links::Netlink, root::Root};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// The bridge and the interface below it; `None` if there is no such pair.
    pub(super) network: Option<(Bridge, Uplink)>,
    /// Pods on the bridge.
    pub(super) pods: Vec<Pod>,
    /// Pods that are routed already.
    pub(super) routed: Vec<String>,
    /// Pods of which nothing is left but their names.
    pub(super) gone: Vec<String>,
    pub(super) translations: Translations,
    /// Why the node cannot be migrated, each with what can be done about it.
    pub(super) obstacles: Vec<String>,
    /// What others have on the node, and what becomes of it.
    pub(super) notes: Vec<String>,
}

type Result<T> = std::result::Result<T, MigrateError>;

/// Looks at the node. With the journal of a migration the bridge and the rules are those of before it.
pub(super) fn look(root: &Root, journal: Option<&Journal>) -> Result<Survey> {
    let mut survey = Survey::default();
    let mut kernel = Kernel::new()?;
    let devices = kernel.devices()?;
    match journal {
        Some(journal) => survey.network = Some((journal.bridge.clone(), journal.uplink.clone())),
        None => survey.find_network(root, &mut kernel, &devices)?,
    }
    let Some((bridge, uplink)) = survey.network.clone() else {
        return Ok(survey);
    };
    survey.find_pods(root, &bridge.name, &devices)?;
    survey.find_strangers(&bridge.name, &uplink.name, &devices);
    if journal.is_none() && Datapath::open(root)?.is_some() {
        survey.obstacles.push(
            "Causeway's datapath is loaded on the bridge already, by a pod that its plug-in has added: delete the pods that \
             are routed, then run `causeway unload`"
                .to_owned(),
        );
    }
    survey.find_programs(&uplink.name, &devices)?;
    survey.find_rules(&bridge.name, &uplink)?;
    Ok(survey)
}

impl Survey {
    fn refuse(&mut self, obstacle: impl Into<String>) {
        self.obstacles.push(obstacle.into());
    }

    /// The bridge that the incumbent's file names, and the interface below it.
    fn find_network(&mut self, root: &Root, kernel: &mut Kernel, devices: &[Device]) -> Result<()> {
        let bridged = bridged_interfaces(root)?;
        let (uplink, bridge) = match bridged.as_slice() {
            [] => {
                self.refuse(format!(
                    "{} has no network in mode \"bridge\": there is nothing to take over; pods of mode \"transparent\" are \
                     routed already, and Causeway's plug-ins serve them side by side with new ones",
                    root.path(endpoints::STATE).display()
                ));
                return Ok(());
            }
            [only] => only,
            _ => {
                self.refuse("several interfaces have bridges of their own: only a node with one uplink can be taken over");
                return Ok(());
            }
        };
        let find = |name: &str| devices.iter().find(|device| device.name == name);
        let (Some(bridge), Some(port)) = (
            find(bridge).filter(|device| device.kind == "bridge"),
            find(uplink),
        ) else {
            self.refuse(format!(
                "the bridge {bridge} or the interface {uplink} below it is not there, though the state file names it: is \
                 this the node's network namespace?"
            ));
            return Ok(());
        };
        if port.master != Some(bridge.index) {
            self.refuse(format!(
                "{} is no port of {}: make it one, or delete the state file",
                port.name, bridge.name
            ));
        }
        if bridge.has_stp {
            self.refuse(format!(
                "{} speaks STP, the incumbent's does not: turn it off",
                bridge.name
            ));
        }
        if kernel.has_global_ipv6(bridge.index)? {
            self.refuse(format!(
                "{} has an IPv6 address: only IPv4 can be taken over",
                bridge.name
            ));
        }
        let addresses = kernel.addresses(bridge.index)?;
        let primary = addresses
            .iter()
            .filter(|address| !kernel::is_lesser(address))
            .find_map(kernel::local);
        let Some((address, length)) = primary else {
            self.refuse(format!("{} has no IPv4 address", bridge.name));
            return Ok(());
        };
        let mut routes = kernel.routes(bridge.index)?;
        routes.retain(|route| !kernel::is_kernels(route));
        let mut neighbours = kernel.neighbours(bridge.index)?;
        neighbours.retain(kernel::is_permanent);
        let bridge = Bridge {
            name: bridge.name.clone(),
            forward_delay: bridge.forward_delay.unwrap_or_default(),
            addresses,
            routes,
            neighbours,
        };
        let uplink = Uplink {
            name: port.name.clone(),
            mac: port.mac,
            mtu: port.mtu,
            address: Ipv4Net::new(address, length).unwrap_or(address.into()),
            port: port.port.clone(),
        };
        self.network = Some((bridge, uplink));
        Ok(())
    }

    fn find_pods(&mut self, root: &Root, bridge: &str, devices: &[Device]) -> Result<()> {
        let state = endpoints::snapshot(root)?.unwrap_or_default();
        let bridge = devices
            .iter()
            .find(|device| device.name == bridge)
            .map(|device| device.index);
        for (_, endpoint) in state.endpoints() {
            let name = name(endpoint);
            let Some(host) = devices.iter().find(|device| device.name == endpoint.host_if_name) else {
                self.gone.push(name);
                continue;
            };
            if bridge.is_none() || host.master != bridge {
                self.routed.push(name);
                continue;
            }
            match look_inside(&name, endpoint, host) {
                Ok(pod) => self.pods.push(pod),
                Err(obstacle) => self.refuse(obstacle),
            }
        }
        self.pods.sort_unstable_by_key(|pod| pod.address);
        Ok(())
    }

    /// Ports of the bridge that nobody knows, and interfaces of other datapaths.
    fn find_strangers(&mut self, bridge: &str, uplink: &str, devices: &[Device]) {
        let bridge = devices
            .iter()
            .find(|device| device.name == bridge)
            .map(|device| device.index);
        let is_port = |device: &&Device| device.master.is_some() && device.master == bridge;
        let strangers: Vec<_> = devices
            .iter()
            .filter(is_port)
            .filter(|port| port.name != uplink && !self.knows(&port.name))
            .collect();
        for port in strangers {
            self.refuse(format!(
                "{} is a port of the bridge and no pod's of the state file: take it out of the bridge, or delete it",
                port.name
            ));
        }
        if devices.iter().any(|device| device.name == "cilium_host") {
            self.refuse("Cilium's datapath is on this node: two datapaths cannot serve the same pods");
        }
    }

    fn knows(&self, host_if: &str) -> bool {
        // A pod that could not be looked into is an obstacle by itself.
        self.pods.iter().any(|pod| pod.host_if == host_if)
            || self
                .obstacles
                .iter()
                .any(|obstacle| obstacle.contains(&format!("({host_if})")))
    }

    /// Programs of others on the hooks that Causeway needs.
    fn find_programs(&mut self, uplink: &str, devices: &[Device]) -> Result<()> {
        let mut netlink = Netlink::new()?;
        let hosts: Vec<_> = self.pods.iter().map(|pod| pod.host_if.clone()).collect();
        let is_of_interest = |device: &&Device| device.name == uplink || hosts.contains(&device.name);
        for device in devices.iter().filter(is_of_interest) {
            let mut strangers = Vec::new();
            for (direction, is_egress) in [(TcAttachType::Ingress, false), (TcAttachType::Egress, true)] {
                // Kernels before 6.6 have no tcx, and so no program of it.
                let (_, programs) = SchedClassifier::query_tcx(&device.name, direction).unwrap_or_default();
                strangers.extend(
                    programs
                        .iter()
                        .filter_map(|program| program.name_as_str().map(str::to_owned)),
                );
                if netlink.ingress_qdisc(device.index)?.is_some() {
                    strangers.extend(
                        netlink
                            .filters(device.index, is_egress)?
                            .0
                            .into_iter()
                            .map(|filter| filter.name),
                    );
                }
            }
            strangers.retain(|name| !name.starts_with("cwy_"));
            if device.has_xdp {
                strangers.push("an XDP program".to_owned());
            }
            if !strangers.is_empty() {
                self.refuse(format!(
                    "{} has programs of another datapath ({}): what they do with packets Causeway would bypass; detach them",
                    device.name,
                    strangers.join(", ")
                ));
            }
        }
        Ok(())
    }

    fn find_rules(&mut self, bridge: &str, uplink: &Uplink) -> Result<()> {
        let listings = rules::listings()?;
        let pods: Vec<Ipv4Addr> = self.pods.iter().map(Pod::addr).collect();
        let scene = Scene {
            node: uplink.address.addr(),
            pods: &pods,
            exits: [bridge, &uplink.name],
        };
        self.translations = masquerade::find(&listings, &scene);
        self.obstacles.append(&mut self.translations.obstacles);
        if self.translations.has_agent {
            self.notes.push(
                "ip-masq-agent puts its chain back within its resync interval: stop it before, or the kernel will translate \
                 new flows in Causeway's place"
                    .to_owned(),
            );
        }
        let has = |prefix: &str| {
            let mut chains = listings.iter().flat_map(rules::Listing::chains);
            chains.any(|chain| chain.starts_with(prefix))
        };
        if has("CILIUM_") {
            self.refuse("chains CILIUM_* of iptables: Cilium's datapath serves this node");
        }
        for (prefix, whose) in [
            ("cali-", "Calico's policy"),
            ("AZURE-NPM", "Azure NPM's policy"),
            ("KUBE-", "kube-proxy"),
        ] {
            if has(prefix) {
                self.notes.push(format!(
                    "{whose} (chains {prefix}*) stays in force: the first packet of every flow takes the stack, and what it \
                     translates or drops is never carried"
                ));
            }
        }
        Ok(())
    }
}

/// The pods of the state file whose links are there, on the bridge or not, and why others cannot be told of.
pub(super) fn pods(root: &Root) -> Result<(Vec<Pod>, Vec<String>)> {
    let state = endpoints::snapshot(root)?.unwrap_or_default();
    let devices = Kernel::new()?.devices()?;
    let (mut pods, mut obstacles) = (Vec::new(), Vec::new());
    for (_, endpoint) in state.endpoints() {
        if let Some(host) = devices.iter().find(|device| device.name == endpoint.host_if_name) {
            match look_inside(&name(endpoint), endpoint, host) {
                Ok(pod) => pods.push(pod),
                Err(obstacle) => obstacles.push(obstacle),
            }
        }
    }
    Ok((pods, obstacles))
}

/// Interfaces with the names of the bridges above them.
fn bridged_interfaces(root: &Root) -> Result<Vec<(String, String)>> {
    let path = root.path(endpoints::STATE);
    let bytes = durable::read(&path).map_err(|source| endpoints::EndpointsError::Read {
        path: path.clone(),
        source,
    })?;
    let bytes = bytes.unwrap_or_default();
    if bytes.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let state: Value = serde_json::from_slice(&bytes)
        .map_err(|source| endpoints::EndpointsError::Corrupt { path, source })?;
    let interfaces = state["Network"]["ExternalInterfaces"].as_object();
    let bridged = interfaces.into_iter().flatten().filter_map(|(name, interface)| {
        let bridge = interface["BridgeName"]
            .as_str()
            .filter(|bridge| !bridge.is_empty())?;
        Some((name.clone(), bridge.to_owned()))
    });
    Ok(bridged.collect())
}
