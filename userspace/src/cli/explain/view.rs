//! What the programs would read for a packet, read from the same maps at this moment.

use std::net::IpAddr;

use aya::maps::{Array, HashMap, MapData};
use causeway::{
    datapath::{self, Datapath, DatapathError},
    links::Netlink,
};
use causeway_common::{
    decide::masquerade,
    flow::{FlowEntry, Nat},
    maps::{Config, IfaceEntry, PodEntry, PortWord, RangeEntry, Usage},
    ports::{PROBES, candidate, candidate_id, reserved_bit},
    tuple::{FlowKey, TCP, UDP},
};
use ipnet::IpNet;

use super::family::Family;
use crate::cli::maps;

pub(super) type Key<A> = FlowKey<A>;
pub(super) type Entry<A> = FlowEntry<A>;

/// The maps of one family on the node.
pub(crate) struct View<A: Family> {
    datapath: Datapath,
    has_exact_rule: bool,
    has_own_rule: bool,
    flows: HashMap<MapData, Key<A>, Entry<A>>,
    pods: HashMap<MapData, A, PodEntry>,
    ifaces: HashMap<MapData, u32, IfaceEntry<A>>,
    usage: HashMap<MapData, A, Usage>,
    config: Array<MapData, Config<A>>,
    ports: Array<MapData, PortWord>,
}

type Read<T> = Result<T, DatapathError>;

impl<A: Family> View<A> {
    pub(crate) fn open(datapath: Datapath, has_exact_rule: bool, has_own_rule: bool) -> Read<Self> {
        Ok(Self {
            flows: maps::hash(&datapath, A::MAPS.flows)?,
            pods: maps::hash(&datapath, A::MAPS.pods)?,
            ifaces: maps::hash(&datapath, A::MAPS.ifaces)?,
            usage: maps::hash(&datapath, A::MAPS.usage)?,
            config: maps::array(&datapath, A::MAPS.config)?,
            ports: maps::array(&datapath, "cwy_ports")?,
            datapath,
            has_exact_rule,
            has_own_rule,
        })
    }

    pub(super) fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Whether the kernel masquerades who is no pod.
    pub(super) fn has_exact_rule(&self) -> bool {
        self.has_exact_rule
    }

    /// Whether the kernel masquerades what pods send past the programs.
    pub(super) fn has_own_rule(&self) -> bool {
        self.has_own_rule
    }

    pub(super) fn config(&self) -> Read<Config<A>> {
        self.config.get(&0, 0).map_err(|source| DatapathError::Map {
            name: A::MAPS.config,
            source,
        })
    }

    /// The interface by which the kernel sends a pod's packet on, if it is another one than the uplink: no program is there.
    pub(super) fn other_exit(&self, key: &Key<A>) -> Read<Option<u32>> {
        let (Some(pod), None) = (self.pod(key.src)?, self.pod(key.dst)?) else {
            return Ok(None);
        };
        let exit = Netlink::new()?.exit(key.src.ip(), key.dst.ip(), pod.ifindex);
        let uplink = self.config()?.uplink_ifindex;
        Ok(exit.filter(|exit| *exit != uplink))
    }

    /// Whether XDP is in the uplink's driver.
    pub(super) fn has_xdp(&self) -> Read<bool> {
        Ok(A::HAS_API_SERVER && self.datapath.xdp()? == Some(true))
    }

    pub(super) fn flow(&self, key: &Key<A>) -> Read<Option<Entry<A>>> {
        maps::element(&self.flows, A::MAPS.flows, key)
    }

    pub(super) fn pod(&self, addr: A) -> Read<Option<PodEntry>> {
        maps::element(&self.pods, A::MAPS.pods, &addr)
    }

    /// The address that may send on an interface.
    pub(super) fn sender(&self, ifindex: u32) -> Read<Option<A>> {
        let entry = maps::element(&self.ifaces, A::MAPS.ifaces, &ifindex)?;
        Ok(entry.map(|entry| entry.addr))
    }

    /// The narrowest range with this address.
    pub(super) fn range(&self, addr: A) -> Read<Option<(IpNet, u8)>> {
        A::range(self, addr)
    }

    /// Whether the opener may have another flow.
    pub(super) fn has_room(&self, opener: A, config: &Config<A>) -> Read<bool> {
        if let Some(usage) = maps::element(&self.usage, A::MAPS.usage, &opener)? {
            return Ok(usage.has_room(config.pod_quota));
        }
        let wire = maps::element(&self.usage, A::MAPS.usage, &A::UNSPECIFIED)?;
        Ok(wire.is_none_or(|usage| usage.has_room(config.wire_quota)))
    }

    /// Whether no translated flow may take the port.
    pub(super) fn is_reserved(&self, protocol: u8, port: u16) -> Read<bool> {
        if !matches!(protocol, TCP | UDP) {
            return Ok(false);
        }
        let (index, bit) = reserved_bit(protocol == UDP, port);
        match self.ports.get(&index, 0) {
            Ok(word) => Ok(word.reserved & bit != 0),
            Err(source) => Err(DatapathError::Map {
                name: "cwy_ports",
                source,
            }),
        }
    }

    /// Whether neither direction of a flow has seen a packet within its lifetime.
    pub(super) fn is_idle(&self, key: &Key<A>, entry: &Entry<A>, config: &Config<A>) -> Read<bool> {
        let over = |seen| {
            config
                .timeouts
                .expired(entry, key.protocol, seen, datapath::now())
        };
        Ok(over(entry.last_seen)
            && self
                .flow(&entry.peer_key(key))?
                .is_none_or(|peer| over(peer.last_seen)))
    }

    /// The mapping of a flow that has lost its own entry, found as the programs find it: among the ports it could have.
    pub(super) fn mapping_of(&self, key: &Key<A>, config: &Config<A>) -> Read<Option<Entry<A>>> {
        let (own, hash) = (u16::from_be_bytes(key.src_port), key.hash(config.seed));
        for attempt in 0..PROBES {
            let port = match key.protocol {
                TCP | UDP => candidate(own, hash, attempt),
                protocol if protocol == A::ICMP => candidate_id(own, hash, attempt),
                _ if attempt == 0 => 0,
                _ => break,
            };
            let answer = self.flow(&answer_key(key, config.node_addr, port))?;
            if let Some(answer) = answer.filter(|answer| is_answer_to(answer, key)) {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    /// Whether a pod's flow has lost the entry of its answers, `answer`, and has kept its port.
    pub(super) fn has_lost(&self, answer: &Key<A>) -> Read<bool> {
        for addr in self.pods.keys() {
            let addr = addr.map_err(|source| DatapathError::Map {
                name: A::MAPS.pods,
                source,
            })?;
            let forward_key = Key {
                src: addr,
                ..answer.reversed()
            };
            let is_its_own = |forward: Entry<A>| {
                forward.nat == Nat::SOURCE
                    && forward.nat_addr == answer.dst
                    && forward.nat_port == answer.dst_port
            };
            if self.flow(&forward_key)?.is_some_and(is_its_own) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether the address is one of the node's own.
pub(super) fn is_local(addr: IpAddr) -> Read<bool> {
    let addresses = Netlink::new()?.all_addresses()?;
    Ok(addresses.iter().any(|own| own.addr == addr))
}

/// The MAC of an interface; zeros when it is gone.
pub(super) fn mac(ifindex: u32) -> Read<[u8; 6]> {
    let link = Netlink::new()?.link_by_index(ifindex)?;
    Ok(link.and_then(|link| link.mac).unwrap_or_default())
}

/// The interface of an index.
pub(super) fn interface(ifindex: u32) -> Read<String> {
    let link = Netlink::new()?.link_by_index(ifindex)?;
    Ok(link.map_or_else(|| format!("interface {ifindex}, which is gone"), |link| link.name))
}

/// Whether a pod's new flow to an address in this range leaves with the node's address.
pub(super) fn is_masqueraded(range: Option<&(IpNet, u8)>) -> bool {
    let entry = range.map(|(_, class)| RangeEntry {
        class: *class,
        _pad: [0; 3],
    });
    masquerade(entry.as_ref())
}

/// The key under which the answer to a translated flow arrives.
pub(super) fn answer_key<A: Family>(key: &Key<A>, node_addr: A, port: u16) -> Key<A> {
    Key {
        dst: node_addr,
        dst_port: port.to_be_bytes(),
        ..key.reversed()
    }
}

/// Whether an entry translates answers to this flow.
pub(super) fn is_answer_to<A: Family>(answer: &Entry<A>, key: &Key<A>) -> bool {
    answer.nat == Nat::DESTINATION && answer.nat_addr == key.src && answer.nat_port == key.src_port
}
