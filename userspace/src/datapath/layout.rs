//! What each map must look like, and the check of a pin before it is trusted: aya compares nothing.

use std::{fmt, path::PathBuf};

use aya::maps::{MapInfo, MapType};
use causeway_common::{
    balance::BACKEND_SLOTS,
    crowd::{CROWD_SLOTS, Crowd},
    flow::FlowEntry,
    fragment::{FRAGMENT_ENTRIES, FragmentEntry, FragmentKey},
    maps::{
        AGE_ENTRIES, Backend, Balancer, Budget, Config, Count, EVENT_BYTES, FLOW_ENTRIES, FLOWS_LEAST, HOOKS,
        IPV6_MAP, IfaceEntry, POD_ENTRIES, PodEntry, PortWord, RANGE_ENTRIES, RangeEntry, RangeKey, SweepJob,
        USAGE_ENTRIES, Usage,
    },
    moved::{MOVED_ENTRIES, Moved},
    ports::RESERVED_ENTRIES,
    reason::COUNT_ENTRIES,
    scratch::Scratch,
    tuple::FlowKey,
};

use super::{DatapathError, family::Family, pins::PinTree, tables::errno};

/// Type, sizes in bytes, capacity and flags of a map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    map_type: MapType,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            map_type,
            key,
            value,
            entries,
            flags,
        } = self;
        write!(
            f,
            "{map_type:?} with {key}-byte keys, {value}-byte values, {entries} entries, flags {flags:#x}"
        )
    }
}

/// `BPF_F_NO_PREALLOC`, which the kernel demands of an LPM trie.
const NO_PREALLOC: u32 = 1;

impl Layout {
    fn is(self, name: &str, expected: Self) -> bool {
        let is_chosen = SIZED.contains(&name) && self.entries >= FLOWS_LEAST;
        let entries = if is_chosen { self.entries } else { expected.entries };
        self == Self { entries, ..expected }
    }
}

fn layout(map_type: MapType, key: usize, value: usize, entries: usize, flags: u32) -> Layout {
    Layout {
        map_type,
        key: key as u32,
        value: value as u32,
        entries: entries as u32,
        flags,
    }
}

/// What the programs expect of the map `name`.
pub(crate) fn expected(name: &str) -> Option<Layout> {
    type Address = [u8; 4];
    if let Some(layout) = of_family::<Address>(name, "").or_else(|| of_family::<[u8; 16]>(name, "6")) {
        return Some(layout);
    }
    let index = size_of::<u32>();
    Some(match name {
        "cwy_ports" => layout(MapType::Array, index, size_of::<PortWord>(), RESERVED_ENTRIES, 0),
        "cwy_balancer" => layout(MapType::Array, index, size_of::<Balancer>(), 1, 0),
        "cwy_backends" => layout(
            MapType::Array,
            index,
            size_of::<Backend<Address>>(),
            BACKEND_SLOTS,
            0,
        ),
        "cwy_budgets" => layout(MapType::PerCpuArray, index, size_of::<Budget>(), COUNT_ENTRIES, 0),
        "cwy_events" => layout(MapType::RingBuf, 0, 0, EVENT_BYTES, 0),
        "cwy_sweep_job" => layout(MapType::Array, index, size_of::<SweepJob>(), 1, 0),
        IPV6_MAP => layout(MapType::ProgramArray, index, size_of::<u32>(), HOOKS, 0),
        "cwy_count" => layout(MapType::PerCpuArray, index, size_of::<Count>(), COUNT_ENTRIES, 0),
        _ => return None,
    })
}

/// Of the maps that each family has, whose names end with `suffix`.
fn of_family<A: Family>(name: &str, suffix: &str) -> Option<Layout> {
    let index = size_of::<u32>();
    let (key, addr) = (size_of::<FlowKey<A>>(), size_of::<A>());
    Some(match name.strip_suffix(suffix)? {
        "cwy_flows" => layout(MapType::Hash, key, size_of::<FlowEntry<A>>(), FLOW_ENTRIES, 0),
        "cwy_pods" => layout(MapType::Hash, addr, size_of::<PodEntry>(), POD_ENTRIES, 0),
        "cwy_ifaces" => layout(MapType::Hash, index, size_of::<IfaceEntry<A>>(), POD_ENTRIES, 0),
        "cwy_usage" => layout(MapType::Hash, addr, size_of::<Usage>(), USAGE_ENTRIES, 0),
        "cwy_age_queue" => layout(MapType::Queue, 0, key, AGE_ENTRIES, 0),
        "cwy_cfg" => layout(MapType::Array, index, size_of::<Config<A>>(), 1, 0),
        "cwy_ranges" => layout(
            MapType::LpmTrie,
            size_of::<u32>() + size_of::<RangeKey<A>>(),
            size_of::<RangeEntry>(),
            RANGE_ENTRIES,
            NO_PREALLOC,
        ),
        "cwy_frags" => layout(
            MapType::LruHash,
            size_of::<FragmentKey<A>>(),
            size_of::<FragmentEntry<A>>(),
            FRAGMENT_ENTRIES,
            0,
        ),
        "cwy_crowds" => layout(MapType::Array, index, size_of::<Crowd<A>>(), CROWD_SLOTS, 0),
        "cwy_moved" => layout(MapType::Array, index, size_of::<Moved>(), MOVED_ENTRIES, 0),
        "cwy_scratch" => layout(MapType::PerCpuArray, index, size_of::<Scratch<A>>(), 1, 0),
        _ => return None,
    })
}

/// Maps that are made for as many flows as was chosen when they were.
const SIZED: [&str; 4] = ["cwy_flows", "cwy_age_queue", "cwy_flows6", "cwy_age_queue6"];
/// Maps that a tree may lack: its programs do without.
const OPTIONAL: [&str; 8] = [
    "cwy_moved",
    "cwy_scratch",
    IPV6_MAP,
    "cwy_ranges6",
    "cwy_frags6",
    "cwy_crowds6",
    "cwy_moved6",
    "cwy_scratch6",
];
/// Maps that a tree of an earlier build may lack as well, and that few nodes need: they are compared when they are opened.
const ON_DEMAND: [&str; 2] = ["cwy_balancer", "cwy_backends"];

/// Compares these maps of a tree with what the programs expect.
pub(crate) fn check(pins: &PinTree, names: &[&'static str]) -> Result<(), DatapathError> {
    let always = names.iter().copied().filter(|name| !ON_DEMAND.contains(name));
    for name in always {
        let path = pins.map(name);
        let info = match MapInfo::from_pin(&path) {
            Ok(info) => info,
            Err(error) if OPTIONAL.contains(&name) && errno(&error) == Some(libc::ENOENT) => continue,
            Err(source) => {
                let source = source.into();
                return Err(DatapathError::Pin { path, source });
            }
        };
        compare(name, path, &info)?;
    }
    Ok(())
}

/// Compares one map with what the programs expect of it.
pub(crate) fn compare(name: &'static str, path: PathBuf, info: &MapInfo) -> Result<(), DatapathError> {
    let found = match of(info) {
        Ok(found) => found,
        Err(error) => {
            let source = error.into();
            return Err(DatapathError::Pin { path, source });
        }
    };
    match expected(name) {
        Some(expected) if found.is(name, expected) => Ok(()),
        Some(expected) => Err(DatapathError::Layout {
            name,
            path,
            expected: Box::new(expected),
            found: Box::new(found),
        }),
        None => Err(DatapathError::UnknownMap(name)),
    }
}

fn of(info: &MapInfo) -> Result<Layout, aya::maps::MapError> {
    Ok(Layout {
        map_type: info.map_type()?,
        key: info.key_size(),
        value: info.value_size(),
        entries: info.max_entries(),
        flags: info.map_flags(),
    })
}

#[cfg(test)]
mod tests {
    use causeway_common::maps::{MAP_NAMES, V6_MAP_NAMES};

    use super::*;

    #[test]
    fn every_map_has_a_layout() {
        let all = MAP_NAMES.iter().chain(&V6_MAP_NAMES);
        assert!(all.copied().all(|name| expected(name).is_some()));
        assert_ne!(expected("cwy_flows"), expected("cwy_flows6"));
        assert_eq!(expected("cwy_other"), None);
    }

    #[test]
    fn only_tables_of_flows_may_have_another_size() {
        let found = |name: &str, entries| {
            let expected = expected(name).unwrap();
            Layout { entries, ..expected }.is(name, expected)
        };
        assert!(found("cwy_flows", 1 << 21) && found("cwy_age_queue6", FLOWS_LEAST));
        assert!(!found("cwy_flows", 1024) && !found("cwy_pods", 1 << 21));
    }

    #[test]
    fn a_layout_reads_as_a_sentence() {
        assert_eq!(
            expected("cwy_ranges").unwrap().to_string(),
            "LpmTrie with 9-byte keys, 4-byte values, 32768 entries, flags 0x1"
        );
    }
}
