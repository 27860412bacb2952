//! The maps with their types. A map is opened from its pin when it is used: that is two system calls, and no handle
//! has to be shared or kept.

use std::{fmt::Debug, marker::PhantomData, ops::RangeInclusive, os::fd::AsFd as _, path::Path};

use aya::{
    Pod,
    maps::{Array, HashMap, IterableMap as _, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf},
};
use causeway_common::{
    crowd::{CROWD_SLOTS, Crowd},
    flow::FlowEntry,
    maps::{
        Backend, Balancer, Config, Count, IPV6_MAP, IfaceEntry, PodEntry, PortWord, RangeEntry, RangeKey,
        SweepJob, Usage,
    },
    ports::{RESERVED_ENTRIES, reserved_bit},
    reason::Reason,
    tuple::FlowKey,
};

use super::{
    DatapathError,
    bpf::{self, batch, iterate},
    family::Family,
    ipv6, layout,
    pins::PinTree,
    ports::HostPort,
};

/// Key of `cwy_flows`.
pub(crate) type Key = FlowKey<[u8; 4]>;
/// Value of `cwy_flows`.
pub(crate) type Entry = FlowEntry<[u8; 4]>;

/// The maps of one tree.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    pins: PinTree,
}

impl Tables {
    /// The caller has checked the layouts of the tree.
    pub(crate) fn new(pins: PinTree) -> Self {
        Self { pins }
    }

    /// Those of one family.
    pub(crate) fn of<A: Family>(&self) -> FamilyTables<'_, A> {
        FamilyTables {
            tables: self,
            family: PhantomData,
        }
    }

    pub(crate) fn pods(&self) -> Result<Table<[u8; 4], PodEntry>, DatapathError> {
        self.of().pods()
    }

    pub(crate) fn flows(&self) -> Result<Table<Key, Entry>, DatapathError> {
        self.of().flows()
    }

    pub(crate) fn usage(&self) -> Result<Table<[u8; 4], Usage>, DatapathError> {
        self.of().usage()
    }

    /// Whether there is a program for each of the `hooks` in the map that leads to those for IPv6.
    pub(crate) fn is_handed_over(&self, hooks: usize) -> Result<bool, DatapathError> {
        let map: MapData = self.open(IPV6_MAP)?;
        for hook in 0..hooks as u32 {
            let program = bpf::program_at(map.fd().as_fd(), hook);
            let program = program.map_err(|source| DatapathError::Batch {
                name: IPV6_MAP,
                source,
            })?;
            if program.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn sweep_job(&self) -> Result<SweepJob, DatapathError> {
        let name = "cwy_sweep_job";
        self.array(name)?.get(&0, 0).map_err(failed(name))
    }

    pub(crate) fn set_sweep_job(&self, job: &SweepJob) -> Result<(), DatapathError> {
        let name = "cwy_sweep_job";
        self.array::<SweepJob>(name)?.set(0, job, 0).map_err(failed(name))
    }

    /// Lets the programs make the maps of crowded remotes' ports anew: entries were deleted that they do not know of.
    pub(crate) fn forget_crowds(&self) -> Result<(), DatapathError> {
        let name = "cwy_crowds";
        let mut map: Array<_, Crowd<[u8; 4]>> = self.array(name)?;
        for index in 0..CROWD_SLOTS as u32 {
            let crowd = map.get(&index, 0).map_err(failed(name))?;
            if crowd.built != 0 {
                map.set(index, Crowd { built: 0, ..crowd }, 0)
                    .map_err(failed(name))?;
            }
        }
        Ok(())
    }

    pub(crate) fn balancer(&self) -> Result<Balancer, DatapathError> {
        let name = "cwy_balancer";
        self.array(name)?.get(&0, 0).map_err(failed(name))
    }

    pub(crate) fn set_balancer_ports(&self, balancer: &Balancer) -> Result<(), DatapathError> {
        let name = "cwy_balancer";
        self.array::<Balancer>(name)?
            .set(0, balancer, 0)
            .map_err(failed(name))
    }

    pub(crate) fn slot(&self, slot: u32) -> Result<Backend<[u8; 4]>, DatapathError> {
        let name = "cwy_backends";
        self.array(name)?.get(&slot, 0).map_err(failed(name))
    }

    /// Puts these backends into the slots. Returns whether any was another one.
    pub(crate) fn set_slots(&self, slots: &[Backend<[u8; 4]>]) -> Result<bool, DatapathError> {
        let name = "cwy_backends";
        let mut map: Array<_, Backend<[u8; 4]>> = self.array(name)?;
        let mut different = Vec::new();
        batch::for_each(map.map().fd().as_fd(), |index: u32, known: Backend<[u8; 4]>| {
            different.extend(
                slots
                    .get(index as usize)
                    .filter(|slot| **slot != known)
                    .map(|slot| (index, *slot)),
            );
        })
        .map_err(|source| DatapathError::Batch { name, source })?;
        for (index, slot) in &different {
            map.set(*index, slot, 0).map_err(failed(name))?;
        }
        Ok(!different.is_empty())
    }

    /// The ring of events, for one reader.
    pub(crate) fn events(&self) -> Result<RingBuf<MapData>, DatapathError> {
        let name = "cwy_events";
        RingBuf::try_from(Map::RingBuf(self.open(name)?)).map_err(failed(name))
    }

    pub(crate) fn config(&self) -> Result<Config<[u8; 4]>, DatapathError> {
        self.of().config()
    }

    /// What the programs for IPv6 know of the node follows.
    pub(crate) fn set_config(&self, config: &Config<[u8; 4]>) -> Result<(), DatapathError> {
        self.of().set_config(config)?;
        if self.pins.map(<[u8; 16]>::MAPS.config).exists() {
            let of_v6 = self.of();
            of_v6.set_config(&ipv6::derived(config, &of_v6.config()?))?;
        }
        Ok(())
    }

    /// Each reason and how often it was given, over all CPUs.
    pub(crate) fn counts(&self) -> Result<Vec<(Reason, Count)>, DatapathError> {
        let name = "cwy_count";
        let map: PerCpuArray<_, Count> =
            PerCpuArray::try_from(Map::PerCpuArray(self.open(name)?)).map_err(failed(name))?;
        let sum = |reason: &Reason| {
            let per_cpu = map.get(&(*reason as u32), 0).map_err(failed(name))?;
            Ok((*reason, per_cpu.iter().copied().fold(Count::default(), add)))
        };
        Reason::ALL.iter().map(sum).collect()
    }

    /// Makes `ports`, of TCP and UDP alike, and `single` ones the whole of what no translated flow may take. Returns
    /// whether anything had to be changed. Not to be done by two at the same time.
    pub(crate) fn set_ports(
        &self,
        ports: &[RangeInclusive<u16>],
        single: &[HostPort],
    ) -> Result<bool, DatapathError> {
        let name = "cwy_ports";
        let mut map: Array<_, PortWord> = self.array(name)?;
        let before = self.ports()?;
        let mut changed = false;
        for (index, (before, word)) in (0..).zip(before.into_iter().zip(reserved_words(ports, single))) {
            if before != word {
                map.set(index, word, 0).map_err(failed(name))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Whether `ports` and `single` ones are what [`Self::set_ports`] would make them.
    pub(crate) fn has_ports(
        &self,
        ports: &[RangeInclusive<u16>],
        single: &[HostPort],
    ) -> Result<bool, DatapathError> {
        Ok(self.ports()? == reserved_words(ports, single))
    }

    fn ports(&self) -> Result<Vec<PortWord>, DatapathError> {
        let name = "cwy_ports";
        let map: Array<_, PortWord> = self.array(name)?;
        let mut words = vec![PortWord { reserved: 0 }; RESERVED_ENTRIES];
        batch::for_each(map.map().fd().as_fd(), |index: u32, word: PortWord| {
            if let Some(known) = words.get_mut(index as usize) {
                *known = word;
            }
        })
        .map_err(|source| DatapathError::Batch { name, source })?;
        Ok(words)
    }

    /// Marks single ports, or takes the marks away. Not to be done by two at the same time.
    pub(crate) fn change_ports(&self, ports: &[HostPort], reserved: bool) -> Result<(), DatapathError> {
        let name = "cwy_ports";
        let mut map: Array<_, PortWord> = self.array(name)?;
        for port in ports {
            let (index, bit) = reserved_bit(port.is_udp, port.port);
            let mut word = map.get(&index, 0).map_err(failed(name))?;
            if reserved {
                word.reserved |= bit;
            } else {
                word.reserved &= !bit;
            }
            map.set(index, word, 0).map_err(failed(name))?;
        }
        Ok(())
    }

    fn array<V: Pod>(&self, name: &'static str) -> Result<Array<MapData, V>, DatapathError> {
        Array::try_from(Map::Array(self.open(name)?)).map_err(failed(name))
    }

    fn hash<K: Pod, V: Pod>(&self, name: &'static str) -> Result<Table<K, V>, DatapathError> {
        let map = HashMap::try_from(Map::HashMap(self.open(name)?)).map_err(failed(name))?;
        Ok(Table { name, map })
    }

    fn open(&self, name: &'static str) -> Result<MapData, DatapathError> {
        let path = self.pins.map(name);
        let failed = |source: MapError| DatapathError::Pin {
            path: path.clone(),
            source: source.into(),
        };
        let map = MapData::from_pin(&path).map_err(failed)?;
        let info = map.info().map_err(failed)?;
        layout::compare(name, path, &info)?;
        Ok(map)
    }
}

/// The maps of one family.
pub(crate) struct FamilyTables<'a, A> {
    tables: &'a Tables,
    family: PhantomData<A>,
}

impl<A: Family> FamilyTables<'_, A> {
    pub(crate) fn pods(&self) -> Result<Table<A, PodEntry>, DatapathError> {
        self.tables.hash(A::MAPS.pods)
    }

    pub(crate) fn ifaces(&self) -> Result<Table<u32, IfaceEntry<A>>, DatapathError> {
        self.tables.hash(A::MAPS.ifaces)
    }

    pub(crate) fn flows(&self) -> Result<Table<FlowKey<A>, FlowEntry<A>>, DatapathError> {
        self.tables.hash(A::MAPS.flows)
    }

    pub(crate) fn usage(&self) -> Result<Table<A, Usage>, DatapathError> {
        self.tables.hash(A::MAPS.usage)
    }

    pub(crate) fn range_map(&self) -> Result<LpmTrie<MapData, RangeKey<A>, RangeEntry>, DatapathError> {
        let name = A::MAPS.ranges;
        LpmTrie::try_from(Map::LpmTrie(self.tables.open(name)?)).map_err(failed(name))
    }

    pub(crate) fn config(&self) -> Result<Config<A>, DatapathError> {
        let name = A::MAPS.config;
        self.tables.array(name)?.get(&0, 0).map_err(failed(name))
    }

    pub(crate) fn set_config(&self, config: &Config<A>) -> Result<(), DatapathError> {
        let name = A::MAPS.config;
        self.tables
            .array::<Config<A>>(name)?
            .set(0, config, 0)
            .map_err(failed(name))
    }
}

/// Calls `each` with every element of a map, as [`Table::for_each`].
pub(crate) fn for_each<K: Pod, V: Pod>(
    name: &'static str,
    map: &HashMap<MapData, K, V>,
    mut each: impl FnMut(K, V),
) -> Result<(), DatapathError> {
    match batch::for_each(map.map().fd().as_fd(), &mut each) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            for element in map {
                let (key, value) = element.map_err(failed(name))?;
                each(key, value);
            }
            Ok(())
        }
        Err(source) => Err(DatapathError::Batch { name, source }),
    }
}

/// A hash map.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod + Debug, V: Pod> Table<K, V> {
    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, DatapathError> {
        match self.map.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(self.name)(error)),
        }
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Result<(), DatapathError> {
        self.map.insert(key, value, 0).map_err(failed(self.name))
    }

    /// As [`Self::insert`], unless the key is not there any more.
    #[cfg(feature = "cli")]
    pub(crate) fn replace(&mut self, key: K, value: V) -> Result<(), DatapathError> {
        /// Of `linux/bpf.h`.
        const BPF_EXIST: u64 = 2;
        match self.map.insert(key, value, BPF_EXIST) {
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
            replaced => replaced.map_err(failed(self.name)),
        }
    }

    /// Returns whether the key was there.
    pub(crate) fn remove(&mut self, key: &K) -> Result<bool, DatapathError> {
        match self.map.remove(key) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(failed(self.name)(error)),
        }
    }

    /// Calls `each` with every element, in no order. Elements that come and go meanwhile may be missed.
    pub(crate) fn for_each(&self, each: impl FnMut(K, V)) -> Result<(), DatapathError> {
        for_each(self.name, &self.map, each)
    }

    /// Runs an iterator program over every element.
    pub(crate) fn iterate(&self, program: &Path) -> Result<(), DatapathError> {
        let run = || {
            let program = bpf::open_pin(program)?;
            iterate::over_map(program.as_fd(), self.map.map().fd().as_fd())
        };
        run().map_err(|source| DatapathError::Batch {
            name: self.name,
            source,
        })
    }

    /// How many elements it has room for.
    pub(crate) fn capacity(&self) -> Result<usize, DatapathError> {
        let info = self.map.map().info().map_err(failed(self.name))?;
        Ok(info.max_entries() as usize)
    }

    /// An estimate of how many elements there are, from a few of the buckets; at most twice `capacity`, which is
    /// [`Self::capacity`]. `None` where the kernel does not say.
    pub(crate) fn estimate(&self, capacity: usize) -> Option<usize> {
        const SAMPLE: usize = 1024;
        let buckets = capacity.next_power_of_two();
        let sample = SAMPLE.min(buckets);
        let found = batch::sample::<K, V>(
            4 * SAMPLE,
            self.map.map().fd().as_fd(),
            u32::try_from(buckets).ok()?,
            sample as u32,
        );
        Some((found.ok()? * (buckets / sample)).min(2 * capacity))
    }

    /// Every element.
    pub(crate) fn all(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut all = Vec::new();
        self.for_each(|key, value| all.push((key, value)))?;
        Ok(all)
    }
}

pub(crate) fn failed(name: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { name, source }
}

/// The number of the system call's error.
pub(crate) fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    }
}

fn add(left: Count, right: Count) -> Count {
    Count {
        from_pod: left.from_pod.wrapping_add(right.from_pod),
        to_pod: left.to_pod.wrapping_add(right.to_pod),
        from_uplink: left.from_uplink.wrapping_add(right.from_uplink),
        to_uplink: left.to_uplink.wrapping_add(right.to_uplink),
    }
}

fn reserved_words(ports: &[RangeInclusive<u16>], single: &[HostPort]) -> Vec<PortWord> {
    let mut words = vec![PortWord { reserved: 0 }; RESERVED_ENTRIES];
    let mut reserve = |is_udp: bool, port: u16| {
        let (index, bit) = reserved_bit(is_udp, port);
        if let Some(word) = words.get_mut(index as usize) {
            word.reserved |= bit;
        }
    };
    for port in ports.iter().cloned().flatten() {
        reserve(false, port);
        reserve(true, port);
    }
    for HostPort { is_udp, port } in single {
        reserve(*is_udp, *port);
    }
    words
}

/// Whether a map refused an element because it is full.
pub(crate) fn is_full(error: &DatapathError) -> bool {
    let DatapathError::Map {
        source: MapError::SyscallError(call),
        ..
    } = error
    else {
        return false;
    };
    call.io_error.raw_os_error() == Some(libc::E2BIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_marked_for_both_protocols_ends_included_and_single_ones_for_theirs() {
        let single = HostPort {
            is_udp: true,
            port: 53,
        };
        let words = reserved_words(&[30_000..=32_767, 80..=80], &[single]);
        let is_reserved = |udp, port| {
            let (index, bit) = reserved_bit(udp, port);
            words[index as usize].reserved & bit != 0
        };
        for udp in [false, true] {
            for port in [80, 30_000, 31_234, 32_767] {
                assert!(is_reserved(udp, port), "{port}");
            }
            for port in [0, 79, 81, 29_999, 32_768, 65_535] {
                assert!(!is_reserved(udp, port), "{port}");
            }
            assert_eq!(is_reserved(udp, 53), udp);
        }
        assert_eq!(
            words.iter().map(|word| word.reserved.count_ones()).sum::<u32>(),
            2 * 2769 + 1
        );
    }
}
