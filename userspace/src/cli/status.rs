//! `causeway status`.

mod counts;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::Ipv4Addr,
    path::PathBuf,
};

use causeway::{
    datapath::{Datapath, HookState},
    root::Root,
};
use causeway_common::{
    maps::{Count, SCHEMA, XDP_PROGRAM},
    reason::Reason,
};
use serde::Serialize;

pub(super) use self::counts::{FlowCount, count_flows};
use self::counts::{PodCount, Usages, count_flows_v6, count_pods, usages};

use super::{
    Failure, doctor,
    output::{self, Report, duration},
    pods::interface_names,
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    loaded: bool,
    schema: u32,
    healthy: bool,
    /// Codes of what is wrong.
    problems: Vec<&'static str>,
    #[serde(flatten)]
    datapath: Option<Loaded>,
    /// What the doctor says in one line.
    #[serde(skip)]
    summary: String,
    #[serde(skip)]
    verbose: bool,
    #[serde(skip)]
    root: Root,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Loaded {
    pins: PathBuf,
    uplink: UplinkStatus,
    attached: &'static str,
    /// Whether `cwy_xdp_uplink` is in the uplink's driver; null if nobody asked for it.
    xdp: Option<bool>,
    hooks: Vec<HookStatus>,
    pods: PodCount,
    flows: FlowCount,
    /// Null until a pod has an address of IPv6.
    flows_v6: Option<FlowCount>,
    timeouts: BTreeMap<&'static str, u32>,
    usage: Usages,
    counters: Vec<Counter>,
}

#[derive(Serialize)]
struct UplinkStatus {
    interface: Option<String>,
    ifindex: u32,
    address: Ipv4Addr,
    mtu: u32,
}

#[derive(Serialize)]
struct HookStatus {
    interface: Option<String>,
    ifindex: u32,
    direction: &'static str,
    program: &'static str,
    /// `tcx`, `clsact`, or null.
    attached: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Counter {
    reason: &'static str,
    verdict: &'static str,
    meaning: &'static str,
    from_pod: u64,
    to_pod: u64,
    from_uplink: u64,
    to_uplink: u64,
}

/// With `verbose`, also the reasons that were never given, the timeouts and who has how many flows.
pub(crate) fn gather(root: &Root, verbose: bool) -> Result<Status, Failure> {
    let datapath = Datapath::open(root)?
        .map(|datapath| loaded(&datapath, verbose))
        .transpose()?;
    let diagnosis = doctor::gather(root, doctor::Depth::Quick)?;
    Ok(Status {
        loaded: datapath.is_some(),
        schema: SCHEMA,
        healthy: diagnosis.is_healthy(),
        problems: diagnosis.codes(),
        datapath,
        summary: diagnosis.summary(),
        verbose,
        root: root.clone(),
    })
}

fn loaded(datapath: &Datapath, all: bool) -> Result<Loaded, Failure> {
    let config = datapath.config()?;
    let hooks: Vec<_> = datapath.hooks()?.into_iter().map(hook).collect();
    Ok(Loaded {
        pins: datapath.directory().to_owned(),
        uplink: UplinkStatus {
            interface: interface_names()?.remove(&config.uplink_ifindex),
            ifindex: config.uplink_ifindex,
            address: config.node_addr.into(),
            mtu: config.uplink_mtu,
        },
        attached: attached(&hooks),
        xdp: datapath.xdp()?,
        hooks,
        pods: count_pods(&datapath.pods()?),
        flows: count_flows(datapath)?,
        flows_v6: count_flows_v6(datapath)?,
        timeouts: BTreeMap::from(config.timeouts.named()),
        usage: usages(datapath, &config)?,
        counters: datapath
            .counts()?
            .into_iter()
            .filter(|(_, count)| all || *count != Count::default())
            .map(|(reason, count)| counter(reason, count))
            .collect(),
    })
}

impl Report for Status {
    const KIND: &'static str = "Status";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "node      {}", self.summary)?;
        let Some(loaded) = &self.datapath else {
            return Ok(());
        };
        let Loaded {
            pins,
            uplink,
            attached,
            xdp,
            hooks,
            pods,
            flows,
            flows_v6,
            counters,
            timeouts,
            usage,
        } = loaded;
        let interface = uplink.interface.as_deref().unwrap_or("GONE");
        writeln!(
            out,
            "datapath  loaded, schema {}, {}",
            self.schema,
            pins.display()
        )?;
        writeln!(
            out,
            "uplink    {interface} ({}), {}, MTU {}",
            uplink.ifindex, uplink.address, uplink.mtu
        )?;
        writeln!(out, "attached  {attached}")?;
        if let Some(attached) = xdp {
            let place = if *attached {
                "in the uplink's driver"
            } else {
                "NOT ATTACHED"
            };
            writeln!(out, "xdp       {XDP_PROGRAM}, {place}")?;
        }
        write!(out, "pods      {} ready, {} departed", pods.ready, pods.departed)?;
        if pods.attaching > 0 {
            write!(out, ", {} attaching", pods.attaching)?;
        }
        writeln!(out, " (room for {})", pods.capacity)?;
        write_flows(out, "flows", flows)?;
        if let Some(flows) = flows_v6 {
            write_flows(out, "IPv6", flows)?;
        }
        if self.verbose {
            write_limits(out, timeouts, usage)?;
        }
        writeln!(out)?;
        write_hooks(out, hooks)?;
        writeln!(out)?;
        write_counters(out, counters)
    }

    fn failure(self) -> Option<Failure> {
        (!self.loaded).then_some(Failure::NotLoaded(self.root))
    }
}

fn write_flows(out: &mut dyn Write, heading: &str, flows: &FlowCount) -> io::Result<()> {
    writeln!(
        out,
        "{heading:<9} {} carried, {} kernel, {} offered: {} of {} entries, {:.1} % full",
        flows.carried,
        flows.kernel,
        flows.offered,
        flows.entries,
        flows.capacity,
        flows.fill_ratio * 100.0
    )
}

fn write_limits(out: &mut dyn Write, timeouts: &BTreeMap<&str, u32>, usage: &Usages) -> io::Result<()> {
    let times: Vec<String> = timeouts
        .iter()
        .map(|(name, seconds)| format!("{name} {}", duration(*seconds)))
        .collect();
    writeln!(out, "timeouts  {}", times.join(", "))?;
    let Usages {
        pod_quota,
        wire_quota,
        wire,
        pods,
    } = usage;
    writeln!(
        out,
        "quota     {pod_quota} flows a pod, {wire} of {wire_quota} opened from outside"
    )?;
    for (addr, flows) in pods {
        writeln!(out, "usage     {addr} {flows}")?;
    }
    Ok(())
}

fn write_hooks(out: &mut dyn Write, hooks: &[HookStatus]) -> io::Result<()> {
    let rows = hooks.iter().map(|hook| {
        [
            hook.interface
                .clone()
                .unwrap_or_else(|| format!("GONE ({})", hook.ifindex)),
            hook.direction.to_owned(),
            hook.program.to_owned(),
            hook.attached.unwrap_or("NOT ATTACHED").to_owned(),
        ]
    });
    output::write_table(out, ["INTERFACE", "HOOK", "PROGRAM", "ATTACHED"], rows)
}

fn write_counters(out: &mut dyn Write, counters: &[Counter]) -> io::Result<()> {
    let rows = counters.iter().map(|counter| {
        [
            counter.verdict.to_owned(),
            counter.reason.to_owned(),
            counter.from_pod.to_string(),
            counter.to_pod.to_string(),
            counter.from_uplink.to_string(),
            counter.to_uplink.to_string(),
            counter.meaning.to_owned(),
        ]
    });
    let heading = [
        "VERDICT",
        "REASON",
        "FROM POD",
        "TO POD",
        "FROM UPLINK",
        "TO UPLINK",
        "MEANING",
    ];
    output::write_table(out, heading, rows)
}

fn hook(state: HookState) -> HookStatus {
    let HookState {
        interface,
        ifindex,
        direction,
        program,
        attached,
    } = state;
    HookStatus {
        interface,
        ifindex,
        direction: direction.name(),
        program,
        attached: attached.map(causeway::datapath::Mechanism::name),
    }
}

/// All hooks in one word.
fn attached(hooks: &[HookStatus]) -> &'static str {
    let mut mechanisms = hooks.iter().map(|hook| hook.attached);
    let first = mechanisms.next().flatten();
    match first {
        Some(mechanism) if mechanisms.clone().all(|other| other == first) => mechanism,
        _ if hooks.iter().any(|hook| hook.attached.is_none()) => "incomplete",
        _ => "mixed",
    }
}

fn counter(reason: Reason, count: Count) -> Counter {
    Counter {
        reason: reason.name(),
        verdict: reason.verdict().name(),
        meaning: reason.meaning(),
        from_pod: count.from_pod,
        to_pod: count.to_pod,
        from_uplink: count.from_uplink,
        to_uplink: count.to_uplink,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(attached: &[Option<&'static str>]) -> Vec<HookStatus> {
        let hook = |&attached| HookStatus {
            interface: Some("eth0".to_owned()),
            ifindex: 2,
            direction: "ingress",
            program: "cwy_from_uplink",
            attached,
        };
        attached.iter().map(hook).collect()
    }

    #[test]
    fn hooks_are_summed_up_in_one_word() {
        assert_eq!(attached(&hooks(&[Some("tcx"), Some("tcx")])), "tcx");
        assert_eq!(attached(&hooks(&[Some("tcx"), Some("clsact")])), "mixed");
        assert_eq!(attached(&hooks(&[Some("tcx"), None])), "incomplete");
        assert_eq!(attached(&hooks(&[None, Some("tcx")])), "incomplete");
    }

    #[test]
    fn a_node_without_datapath_is_a_status_and_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let status = gather(&Root::new(directory.path()), false).unwrap();
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(
            (&json["loaded"], &json["schema"]),
            (&false.into(), &SCHEMA.into())
        );
        assert_eq!(json["pins"], serde_json::Value::Null);
        assert!(matches!(status.failure(), Some(Failure::NotLoaded(_))));
    }
}
