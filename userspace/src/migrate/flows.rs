//! Flows that began before the migration: the kernel's become Causeway's, and Causeway's the kernel's.
//!
//! A flow that the kernel translates at the uplink gets its two entries, and is carried with the port it has. One that the
//! kernel translates twice, because a service led it outside, stays with the kernel without the translation of its source,
//! which becomes Causeway's. What is written first is chosen so that no packet meets half a flow; what has to be replaced
//! as a whole is held for that long, and its packets are lost.

mod entries;
mod hand_back;
mod held;
mod moved_again;
mod reserve;
mod take_over;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    thread,
    time::Duration,
};

use aya::maps::{Array, HashMap, Map, MapData, MapError, Queue};
use causeway_common::{
    flow::FlowEntry,
    maps::{Config, PodEntry, RangeClass},
    moved::{self, HINTS, Moved},
    tuple::FlowKey,
};
use ipnet::Ipv4Net;

pub(super) use self::take_over::Imported;
use super::{MigrateError, conntrack::Lost};
use crate::datapath::{self, Datapath};

type Key = FlowKey<[u8; 4]>;
type Entry = FlowEntry<[u8; 4]>;
type Result<T> = std::result::Result<T, MigrateError>;

/// The maps that know the flows.
pub(super) struct Flows {
    entries: HashMap<MapData, Key, Entry>,
    moved: Array<MapData, [u32; HINTS]>,
    ages: Queue<MapData, Key>,
    config: Config<[u8; 4]>,
    pods: BTreeMap<Ipv4Addr, PodEntry>,
    /// With their [`RangeClass`].
    ranges: Vec<(Ipv4Net, u8)>,
    /// The uplink's MAC.
    uplink_mac: [u8; 6],
    /// The next hop's, where it is known: without it no flow can be carried.
    next_hop: Option<[u8; 6]>,
}

/// What was given back.
#[derive(Debug, Default)]
pub(super) struct Exported {
    pub(super) flows: usize,
    pub(super) lost: Vec<Lost>,
}

impl Exported {
    fn count(&mut self, lost: Option<Lost>) {
        match lost {
            None => self.flows += 1,
            Some(lost) => self.lost.push(lost),
        }
    }
}

impl Flows {
    /// Opens the maps, with the pods that are there.
    pub(super) fn open(datapath: &Datapath, uplink_mac: [u8; 6], next_hop: Option<[u8; 6]>) -> Result<Self> {
        let open = |name: &'static str| {
            let path = datapath.directory().join("maps").join(name);
            MapData::from_pin(path).map_err(failed(name))
        };
        Ok(Self {
            entries: HashMap::try_from(Map::HashMap(open("cwy_flows")?)).map_err(failed("cwy_flows"))?,
            moved: Array::try_from(Map::Array(open("cwy_moved")?)).map_err(failed("cwy_moved"))?,
            ages: Queue::try_from(Map::Queue(open("cwy_age_queue")?)).map_err(failed("cwy_age_queue"))?,
            config: datapath.config()?,
            ranges: datapath.ranges()?,
            pods: datapath
                .pods()?
                .into_iter()
                .filter(|(_, pod)| pod.flags & PodEntry::DEPARTED == 0)
                .filter_map(|(addr, pod)| match addr {
                    IpAddr::V4(addr) => Some((addr, pod)),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            uplink_mac,
            next_hop,
        })
    }

    fn node(&self) -> Ipv4Addr {
        self.config.node_addr.into()
    }

    /// Whether a pod's packets to this destination leave with the node's address.
    fn is_masqueraded(&self, to: Ipv4Addr) -> bool {
        let containing = self.ranges.iter().filter(|(range, _)| range.contains(&to));
        let narrowest = containing.max_by_key(|(range, _)| range.prefix_len());
        narrowest.is_none_or(|(_, class)| *class != RangeClass::EXCLUDED)
    }

    /// Whether a flow to this address leaves the node, and one from there comes from outside.
    fn is_outside(&self, address: Ipv4Addr) -> bool {
        address != self.node() && !self.pods.contains_key(&address)
    }

    fn put(&mut self, key: Key, entry: Entry) -> Result<()> {
        self.entries.insert(key, entry, 0).map_err(failed("cwy_flows"))
    }

    /// Writes an entry where there is none. Returns whether there was none.
    fn put_first(&mut self, key: Key, entry: Entry) -> Result<bool> {
        match self.entries.insert(key, entry, NOEXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(false)
            }
            done => done.map(|()| true).map_err(failed("cwy_flows")),
        }
    }

    /// The entries that are meant. One that is written anew meanwhile may be missed, or be there twice.
    fn all(&self, is_it: impl Fn(&Key, &Entry) -> bool) -> Result<Vec<(Key, Entry)>> {
        let mut all = Vec::new();
        datapath::for_each("cwy_flows", &self.entries, |key, entry| {
            if is_it(&key, &entry) {
                all.push((key, entry));
            }
        })?;
        Ok(all)
    }

    fn get(&self, key: &Key) -> Option<Entry> {
        self.entries.get(key, 0).ok()
    }

    fn remove(&mut self, key: &Key) -> Result<()> {
        match self.entries.remove(key) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(())
            }
            done => done.map_err(failed("cwy_flows")),
        }
    }

    /// What the programs note of a translated flow beside its entries: its age, and the port if it is not its own.
    fn remember(&mut self, key: &Key, port: u16) -> Result<()> {
        // Without room nothing is lost but a place in the order in which flows are looked at.
        self.ages.push(key, 0).ok();
        if port == u16::from_be_bytes(key.src_port) {
            return Ok(());
        }
        let hash = key.hash(self.config.seed);
        let element = moved::index(hash);
        let hints = self.moved.get(&element, 0).map_err(failed("cwy_moved"))?;
        let mut moved = Moved { hints };
        moved.note(hash, port);
        self.moved
            .set(element, moved.hints, 0)
            .map_err(failed("cwy_moved"))
    }
}

fn failed(name: &'static str) -> impl Fn(MapError) -> MigrateError {
    move |source| MigrateError::Map { name, source }
}

/// `BPF_NOEXIST` (linux/bpf.h).
const NOEXIST: u64 = 1;

/// `MEMBARRIER_CMD_GLOBAL` (linux/membarrier.h).
const GLOBAL: libc::c_long = 1;

/// Returns when every packet that was under way in the stack has got to its end: the kernel waits for all CPUs.
pub(super) fn let_packets_pass() {
    // SAFETY: the call takes integers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result != 0 {
        // Not on kernels with CPUs that are never disturbed (nohz_full).
        tracing::debug!(error = %io::Error::last_os_error(), "no memory barrier: waits instead");
        thread::sleep(Duration::from_millis(100));
    }
}
