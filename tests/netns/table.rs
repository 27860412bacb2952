//! The flow table and the configuration of a node, by their pins: what an operator's tool, or bad luck, can do to them.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use causeway_common::{
    flow::{FlowEntry, Nat},
    lifetime::Timeouts,
    maps::{Config, SCHEMA},
    tuple::FlowKey,
};
use causeway_tests::{node::Pod, rig::Rig};

type Key = FlowKey<[u8; 4]>;
type Entry = FlowEntry<[u8; 4]>;

/// Where a map of a rig's node is pinned.
pub(crate) fn pin(rig: &Rig, map: &str) -> PathBuf {
    rig.node
        .root
        .join(&format!("/sys/fs/bpf/causeway/v{SCHEMA}/maps/{map}"))
}

/// Sets how long flows live.
pub(crate) fn set_timeouts(rig: &Rig, timeouts: Timeouts) -> Result<()> {
    let mut map: Array<_, Config<[u8; 4]>> =
        Array::try_from(Map::Array(MapData::from_pin(pin(rig, "cwy_cfg"))?))?;
    let config = map.get(&0, 0)?;
    map.set(0, Config { timeouts, ..config }, 0)?;
    let of_v6 = pin(rig, "cwy_cfg6");
    if of_v6.exists() {
        let mut map: Array<_, Config<[u8; 16]>> = Array::try_from(Map::Array(MapData::from_pin(of_v6)?))?;
        let config = map.get(&0, 0)?;
        map.set(0, Config { timeouts, ..config }, 0)?;
    }
    Ok(())
}

/// The flow table.
pub(crate) struct Table(HashMap<MapData, Key, Entry>);

/// The keys of a translated flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    /// As the pod sends.
    pub(crate) forward: Key,
    /// As the answer arrives.
    pub(crate) reverse: Key,
}

impl Table {
    /// The table of a rig's node.
    pub(crate) fn of(rig: &Rig) -> Result<Self> {
        let data = MapData::from_pin(pin(rig, "cwy_flows"))?;
        Ok(Self(HashMap::try_from(Map::HashMap(data))?))
    }

    /// The pair of the translated flow that the pod sends from `port`, both halves of which are there.
    pub(crate) fn pair(&self, pod: &Pod, protocol: u8, port: u16) -> Result<Pair> {
        let is_forward = |key: &Key| {
            key.protocol == protocol && key.src == pod.addr.octets() && key.src_port == port.to_be_bytes()
        };
        let found = self.0.iter().filter_map(Result::ok);
        let mut forward = found.filter(|(key, entry)| is_forward(key) && entry.nat == Nat::SOURCE);
        let (key, entry) = forward
            .next()
            .with_context(|| format!("no translated flow of {} from port {port}", pod.addr))?;
        let pair = Pair {
            forward: key,
            reverse: entry.peer_key(&key),
        };
        ensure!(self.has(&pair.reverse), "{pair:?} has no reverse half");
        Ok(pair)
    }

    /// Whether there is an entry under a key.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.0.get(key, 0).is_ok()
    }

    /// Takes an entry away.
    pub(crate) fn remove(&mut self, key: &Key) -> Result<()> {
        self.0.remove(key).with_context(|| format!("removing {key:?}"))
    }
}

impl Pair {
    /// Address and port of the flow on the wire.
    pub(crate) fn outside(&self) -> SocketAddrV4 {
        SocketAddrV4::new(
            Ipv4Addr::from(self.reverse.dst),
            u16::from_be_bytes(self.reverse.dst_port),
        )
    }
}
