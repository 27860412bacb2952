//! How full the flow table is, and counters that should stand still.

use std::net::Ipv4Addr;

use causeway_common::{
    maps::{Count, Usage},
    reason::Reason,
};

use super::{Code, Finding, Snapshot, snapshot::Loaded};

pub(super) fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let Some(loaded) = snapshot.loaded() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    if let Some(flows) = &loaded.flows
        && is_nearly(flows.entries, flows.capacity)
    {
        let about = format!("{} of {} entries are taken", flows.entries, flows.capacity);
        found.push(Finding::new(Code::TableFilling, about));
    }
    found.extend(loaded.usage.iter().filter_map(|usage| near_quota(loaded, usage)));
    found.extend(
        COUNTERS
            .iter()
            .filter_map(|(code, reasons)| counted(loaded, *code, reasons)),
    );
    found
}

fn is_nearly(used: usize, room: usize) -> bool {
    used * 10 > room * 9
}

/// The wire's account has the address 0.0.0.0.
fn near_quota(loaded: &Loaded, (addr, usage): &(Ipv4Addr, Usage)) -> Option<Finding> {
    let quota = if addr.is_unspecified() {
        loaded.config.wire_quota
    } else {
        loaded.config.pod_quota
    };
    let flows = usize::try_from(usage.flows).unwrap_or(0);
    let finding = || {
        let who = if addr.is_unspecified() {
            "hosts outside have".to_owned()
        } else {
            format!("{addr} has")
        };
        let about = format!("{who} {flows} of {quota} flows");
        Finding::new(Code::PodNearQuota, about).with("ADDRESS", addr)
    };
    is_nearly(flows, quota as usize).then(finding)
}

/// What these reasons say since the datapath was loaded.
const COUNTERS: [(Code, &[Reason]); 7] = [
    (Code::PortsRanOut, &[Reason::SnatNoPort]),
    (
        Code::TableWasFull,
        &[Reason::SnatTableFull, Reason::OfferRefused, Reason::RecordRefused],
    ),
    (Code::QuotaReached, &[Reason::SnatQuota]),
    (Code::RewriteFailed, &[Reason::RewriteFailed]),
    (Code::Collisions, &[Reason::SnatCollision]),
    (Code::UnknownInterface, &[Reason::UnknownInterface]),
    (
        Code::Spoofed,
        &[Reason::SourceAddress, Reason::SourceMac, Reason::ArpSpoofed],
    ),
];

fn counted(loaded: &Loaded, code: Code, reasons: &[Reason]) -> Option<Finding> {
    let total = |count: &Count| count.from_pod + count.to_pod + count.from_uplink + count.to_uplink;
    let given: Vec<String> = loaded
        .counts
        .iter()
        .filter(|(reason, count)| reasons.contains(reason) && total(count) > 0)
        .map(|(reason, count)| format!("{} {}", reason.name(), total(count)))
        .collect();
    let finding = || {
        Finding::new(
            code,
            format!("since the datapath was loaded: {}", given.join(", ")),
        )
    };
    (!given.is_empty()).then(finding)
}
