//! The metrics, made anew for whoever asks (OpenMetrics). docs/metrics.md says what each is.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use causeway::{
    apiserver,
    datapath::{Datapath, DatapathError},
    ipam::store,
};
use causeway_common::maps::{Count, PodEntry, RANGES, SCHEMA};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};

use super::{
    process,
    state::{Known, Shared},
};

/// The media type of OpenMetrics.
pub(super) const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything at this moment.
pub(super) fn text(shared: &Shared) -> Result<Vec<u8>, fmt::Error> {
    let mut registry = Registry::with_prefix("causeway");
    of_agent(&mut registry, &shared.known());
    of_api_server(&mut registry, &shared.known().api_server);
    of_process(&mut registry);
    // Without a datapath, or with one that cannot be read, its metrics are absent rather than zero.
    let datapath = Datapath::open(&shared.root).ok().flatten();
    number(
        &mut registry,
        "datapath_loaded",
        "1 if the datapath is loaded",
        u64::from(datapath.is_some()),
    );
    if let Some(datapath) = &datapath
        && let Err(error) = of_datapath(&mut registry, datapath)
    {
        tracing::warn!(%error, "some metrics are missing");
    }
    of_addresses(&mut registry, shared);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text.into_bytes())
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
    schema: u32,
    kernel: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Packets {
    hook: &'static str,
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hook {
    interface: String,
    direction: &'static str,
    program: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Vip {
    address: String,
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pool {
    pool: String,
    state: &'static str,
}

fn of_agent(registry: &mut Registry, known: &Known) {
    let build = Family::<Build, Gauge>::default();
    build
        .get_or_create(&Build {
            version: env!("CARGO_PKG_VERSION"),
            schema: SCHEMA,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        })
        .set(1);
    registry.register(
        "build_info",
        "Version of the program, of the map layouts and of the kernel",
        build,
    );
    number(
        registry,
        "config_last_reload_successful",
        "1 if what the configuration says is in force",
        u64::from(known.config_error.is_none()),
    );
    let reloads = Family::<Outcome, Counter>::default();
    for result in ["success", "failure"] {
        let count = known.reloads.get(result).copied().unwrap_or(0);
        reloads.get_or_create(&Outcome { result }).inc_by(count);
    }
    registry.register("config_reloads", "Readings of the configuration", reloads);
    registry.register_with_unit(
        "config_last_reload_success_timestamp",
        "When a configuration came into force last, since 1970",
        Unit::Seconds,
        ConstGauge::new(known.applied.map_or(0.0, since_1970)),
    );
    count(
        registry,
        "reconcile_passes",
        "Looks at the whole node",
        known.passes,
    );
    let seconds = ConstCounter::new(known.pass_seconds);
    registry.register_with_unit("reconcile", "Time that these took", Unit::Seconds, seconds);
    count(
        registry,
        "reconcile_mended",
        "Things that were put right",
        known.mended,
    );
    number(
        registry,
        "reconcile_faults",
        "Things that are wrong and could not be put right",
        known.last.faults.len() as u64,
    );
    count(
        registry,
        "attachments_collected",
        "Attachments that were ended because their pod was gone without a DEL",
        known.collected,
    );
    count(
        registry,
        "sweeps",
        "Sweeps of the flow table by the agent",
        known.sweeps,
    );
    count(
        registry,
        "sweep_entries_scanned",
        "Entries that sweeps looked at",
        known.swept,
    );
    count(
        registry,
        "sweep_entries_forgotten",
        "Entries that sweeps forgot",
        known.forgotten,
    );
}

fn of_api_server(registry: &mut Registry, known: &apiserver::Known) {
    let Some(vip) = known.vip else { return };
    let info = Family::<Vip, Gauge>::default();
    info.get_or_create(&Vip {
        address: vip.to_string(),
        mode: known.mode.name(),
    })
    .set(1);
    registry.register("apiserver_vip_info", "1; where the API server is", info);
    count(
        registry,
        "apiserver_vip_changes",
        "Changes of the API server's virtual address",
        known.changes,
    );
    number(
        registry,
        "apiserver_draining",
        "Addresses and backends whose connections are to end",
        known.gone.iter().filter(|gone| !gone.is_over).count() as u64,
    );
    if known.backends.is_empty() {
        return;
    }
    let healthy = Family::<Backend, Gauge>::default();
    for (address, state) in &known.backends {
        let labels = Backend {
            address: address.to_string(),
        };
        healthy.get_or_create(&labels).set(i64::from(state.is_healthy));
    }
    registry.register(
        "apiserver_backend_healthy",
        "1 if connections are opened to the backend",
        healthy,
    );
}

fn of_process(registry: &mut Registry) {
    registry.register_with_unit(
        "agent_resident_memory",
        "Resident memory of the agent",
        Unit::Bytes,
        ConstGauge::new(process::resident_bytes()),
    );
    let cpu = ConstCounter::new(process::cpu_seconds());
    registry.register_with_unit(
        "agent_cpu",
        "CPU time of the agent, user and system",
        Unit::Seconds,
        cpu,
    );
    number(
        registry,
        "agent_open_fds",
        "Descriptors that the agent has open",
        process::open_descriptors(),
    );
}

fn of_datapath(registry: &mut Registry, datapath: &Datapath) -> Result<(), DatapathError> {
    let packets = Family::<Packets, Counter>::default();
    for (reason, count) in datapath.counts()? {
        for (hook, packets_there) in by_hook(&count) {
            if packets_there > 0 {
                packets
                    .get_or_create(&Packets {
                        hook,
                        verdict: reason.verdict().name(),
                        reason: reason.name(),
                    })
                    .inc_by(packets_there);
            }
        }
    }
    registry.register(
        "packets",
        "Packets by where, what became of them and why",
        packets,
    );
    let attached = Family::<Hook, Gauge>::default();
    for hook in datapath.hooks()? {
        let labels = Hook {
            interface: hook.interface.unwrap_or_else(|| hook.ifindex.to_string()),
            direction: hook.direction.name(),
            program: hook.program,
        };
        attached
            .get_or_create(&labels)
            .set(i64::from(hook.attached.is_some()));
    }
    registry.register("datapath_attached", "1 if the program is on its hook", attached);
    let pods = Family::<State, Gauge>::default();
    let entries = datapath.pods()?;
    for (state, flag) in [("ready", PodEntry::READY), ("departed", PodEntry::DEPARTED)] {
        let there = entries
            .iter()
            .filter(|(_, entry)| entry.flags & flag != 0)
            .count();
        pods.get_or_create(&State { state })
            .set(i64::try_from(there).unwrap_or(i64::MAX));
    }
    registry.register("pods", "Pods that the programs know", pods);
    let (pod_flows, outside) = datapath.flow_counts()?;
    let flows = Family::<State, Gauge>::default();
    for (state, there) in [("of_pods", pod_flows), ("from_outside", outside)] {
        flows.get_or_create(&State { state }).set(there);
    }
    registry.register("flows", "Flows by who opened them", flows);
    number(
        registry,
        "flows_max",
        "Flows that the table has room for",
        datapath.flow_entries()? as u64 / 2,
    );
    number(
        registry,
        "ranges",
        "Ranges in force",
        datapath.ranges()?.len() as u64,
    );
    number(
        registry,
        "ranges_max",
        "Ranges that there is room for",
        RANGES as u64,
    );
    Ok(())
}

fn of_addresses(registry: &mut Registry, shared: &Shared) {
    let Ok(space) = store::snapshot(&shared.root) else {
        return;
    };
    let addresses = Family::<Pool, Gauge>::default();
    for pool in space.pools.keys() {
        let usage = space.usage(pool, 0, 0);
        for (state, there) in [
            ("used", usage.used),
            ("free", usage.total.saturating_sub(usage.used)),
        ] {
            let labels = Pool {
                pool: pool.clone(),
                state,
            };
            addresses
                .get_or_create(&labels)
                .set(i64::try_from(there).unwrap_or(i64::MAX));
        }
    }
    registry.register("ipam_addresses", "Addresses of the pools", addresses);
}

fn by_hook(count: &Count) -> [(&'static str, u64); 4] {
    [
        ("from_pod", count.from_pod),
        ("to_pod", count.to_pod),
        ("from_uplink", count.from_uplink),
        ("to_uplink", count.to_uplink),
    ]
}

fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

fn number(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstGauge::new(value));
}

fn count(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstCounter::new(value));
}
