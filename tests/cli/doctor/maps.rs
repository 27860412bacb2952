//! Maps of a scene, as somebody with root would damage or fill them.

use anyhow::{Result, anyhow};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use causeway_common::{
    flow::{FlowEntry, State},
    maps::{Count, FLOW_ENTRIES, PortWord},
    ports::RESERVED_ENTRIES,
    reason::Reason,
    tuple::{FlowKey, UDP},
};

use crate::scene::Scene;

fn open(scene: &Scene, name: &str) -> Result<MapData> {
    Ok(MapData::from_pin(scene.pin("maps").join(name))?)
}

pub(super) fn hash<K: Pod, V: Pod>(scene: &Scene, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(HashMap::try_from(Map::HashMap(open(scene, name)?))?)
}

/// No translated flow finds a port.
pub(super) fn reserve_every_port(scene: &Scene) -> Result<()> {
    let mut ports: Array<_, PortWord> = Array::try_from(Map::Array(open(scene, "cwy_ports")?))?;
    (0..RESERVED_ENTRIES as u32)
        .try_for_each(|word| Ok(ports.set(word, PortWord { reserved: u64::MAX }, 0)?))
}

/// Gives a reason once.
pub(super) fn count(scene: &Scene, reason: Reason) -> Result<()> {
    let mut counts: PerCpuArray<_, Count> =
        PerCpuArray::try_from(Map::PerCpuArray(open(scene, "cwy_count")?))?;
    let cpus = nr_cpus().map_err(|(_, error)| anyhow!("cannot count CPUs: {error}"))?;
    let mut values = vec![Count::default(); cpus];
    values[0].to_uplink = 1;
    Ok(counts.set(reason as u32, PerCpuValues::try_from(values)?, 0)?)
}

/// Adds live flows of hosts that do not exist, until so many entries are there or the table is full.
pub(super) fn fill_flows(scene: &Scene, share: f64) -> Result<Vec<FlowKey<[u8; 4]>>> {
    let mut flows = hash::<FlowKey<[u8; 4]>, FlowEntry<[u8; 4]>>(scene, "cwy_flows")?;
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let entry = FlowEntry {
        state: State::KERNEL,
        ..FlowEntry::offer(1, [2; 6], u32::try_from(clock.tv_sec)?)
    };
    let mut keys = Vec::new();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "half a million"
    )]
    let wanted = (FLOW_ENTRIES as f64 * share) as u32;
    for n in 0..wanted {
        let [_, a, b, c] = n.to_be_bytes();
        let key = FlowKey {
            src: [100, a, b, c],
            dst: [100, 64, 0, 1],
            src_port: [0, 1],
            dst_port: [0, 1],
            protocol: UDP,
            _pad: [0; 3],
        };
        if flows.insert(key, entry, 0).is_err() {
            break;
        }
        keys.push(key);
    }
    Ok(keys)
}

pub(super) fn remove_flows(scene: &Scene, keys: &[FlowKey<[u8; 4]>]) -> Result<()> {
    let mut flows = hash::<FlowKey<[u8; 4]>, FlowEntry<[u8; 4]>>(scene, "cwy_flows")?;
    keys.iter().try_for_each(|key| Ok(flows.remove(key)?))
}
