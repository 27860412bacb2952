//! Schema 1: one list of ranges, and a `cwy_cfg` that does not name it. All other maps are as today's.

use aya::maps::{Array, LpmTrie, Map, MapData};
use causeway_common::{
    lifetime::Timeouts,
    maps::{Config, FLOW_ENTRIES, MAP_NAMES, RangeEntry},
};
use ipnet::Ipv4Net;

use super::switch;
use crate::{
    datapath::{
        DatapathError, Range, bpf, layout, load,
        pins::{self, PinTree},
        tables::{Tables, failed},
    },
    root::Root,
};

/// The maps whose layouts have changed.
const CHANGED: [&str; 2] = ["cwy_cfg", "cwy_ranges"];

/// `cwy_cfg` of schema 1.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config1 {
    node_addr: [u8; 4],
    uplink_ifindex: u32,
    uplink_mtu: u32,
    seed: u32,
    pod_quota: u32,
    wire_quota: u32,
    timeouts: Timeouts,
}

const _: () = assert!(size_of::<Config1>() == 6 * 4 + 8 * 4);

// SAFETY: `repr(C)`, integers and byte arrays only, no padding by the size above.
unsafe impl aya::Pod for Config1 {}

/// Builds today's tree beside the old one, changes every hook over, and removes the old tree. Returns how many hooks.
/// On an error the old tree and its programs are in force.
pub(super) fn take_over(root: &Root, before: &PinTree) -> Result<usize, DatapathError> {
    let staging = PinTree::staging(root);
    staging.remove()?;
    let hooks = build(&staging, before).and_then(|()| switch(&staging, |name| staging.program(name)));
    match hooks.and_then(|hooks| staging.rename(&PinTree::live(root)).map(|()| hooks)) {
        Ok(hooks) => {
            before.remove()?;
            Ok(hooks)
        }
        Err(error) => {
            if let Err(error) = switch(before, |name| before.program(name)) {
                tracing::warn!(%error, "cannot give every hook its old program again");
            }
            staging.remove()?;
            Err(error)
        }
    }
}

fn build(staging: &PinTree, before: &PinTree) -> Result<(), DatapathError> {
    staging.create()?;
    let kept = MAP_NAMES.into_iter().filter(|name| !CHANGED.contains(name));
    for (from, to) in kept.map(|name| (before.map(name), staging.map(name))) {
        share(&from, &to)?;
    }
    load::load_object(staging, FLOW_ENTRIES as u32 / 2)?;
    layout::check(staging, &MAP_NAMES)?;
    convert(before, &Tables::new(staging.clone()))?;
    for from in before.link_pins()? {
        if let Some(name) = from.file_name() {
            let to = staging.link_directory().join(name);
            share(&from, &to)?;
            pins::restrict(&to, 0o600)?;
        }
    }
    Ok(())
}

/// Pins at `to` as well what is pinned at `from`. A tree may lack a map that is optional.
fn share(from: &std::path::Path, to: &std::path::Path) -> Result<(), DatapathError> {
    if !from.exists() {
        return Ok(());
    }
    let object = bpf::open_pin(from).map_err(|source| DatapathError::file(from, source))?;
    bpf::pin(&object, to).map_err(|source| DatapathError::file(to, source))
}

fn convert(before: &PinTree, tables: &Tables) -> Result<(), DatapathError> {
    let Config1 {
        node_addr,
        uplink_ifindex,
        uplink_mtu,
        seed,
        pod_quota,
        wire_quota,
        timeouts,
    } = Array::try_from(Map::Array(open(before, "cwy_cfg")?))
        .and_then(|map: Array<_, Config1>| map.get(&0, 0))
        .map_err(failed("cwy_cfg"))?;
    tables.set_config(&Config {
        node_addr,
        uplink_ifindex,
        uplink_mtu,
        seed,
        pod_quota,
        wire_quota,
        range_list: 0,
        timeouts,
    })?;
    let ranges: LpmTrie<_, [u8; 4], RangeEntry> =
        LpmTrie::try_from(Map::LpmTrie(open(before, "cwy_ranges")?)).map_err(failed("cwy_ranges"))?;
    let range = |element: Result<_, _>| -> Result<Option<Range>, DatapathError> {
        let (key, entry): (aya::maps::lpm_trie::Key<[u8; 4]>, RangeEntry) =
            element.map_err(failed("cwy_ranges"))?;
        let length = u8::try_from(key.prefix_len()).unwrap_or(u8::MAX);
        Ok(Ipv4Net::new(key.data().into(), length)
            .ok()
            .map(|net| (net, entry.class)))
    };
    let ranges: Vec<Range> = ranges
        .iter()
        .filter_map(|element| range(element).transpose())
        .collect::<Result<_, _>>()?;
    tables.of::<[u8; 4]>().exchange_ranges(&ranges).map(drop)
}

fn open(pins: &PinTree, name: &str) -> Result<MapData, DatapathError> {
    let path = pins.map(name);
    MapData::from_pin(&path).map_err(|source| DatapathError::Pin {
        path,
        source: source.into(),
    })
}
