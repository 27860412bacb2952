//! The uplink, compared with what the programs know of it.

use std::net::Ipv4Addr;

use causeway::{datapath::Direction, links::WayOut};

use super::{Code, Finding, Snapshot, bypass::Before};

pub(super) fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let Some(loaded) = snapshot.loaded() else {
        return Vec::new();
    };
    let config = &loaded.config;
    let Some(uplink) = snapshot.uplink() else {
        let about = format!("there is no interface with the index {}", config.uplink_ifindex);
        return vec![Finding::new(Code::UplinkGone, about)];
    };
    let name = uplink.name.as_str();
    let find = |code, about: String| Finding::new(code, about).with("INTERFACE", name);
    let mut found = Vec::new();
    if !uplink.is_up {
        found.push(find(Code::UplinkDown, format!("{name} is down")));
    }
    let addr = Ipv4Addr::from(config.node_addr);
    let has_it = |own: &causeway::links::Address| own.ifindex == uplink.index && own.addr == addr;
    if !snapshot.addresses.iter().any(has_it) {
        let about = format!("the programs translate to {addr}, and {name} does not have it");
        found.push(find(Code::UplinkAddress, about).with("ADDRESS", addr));
    }
    if uplink.mtu != config.uplink_mtu {
        let about = format!(
            "{name} has an MTU of {}, the programs know {}",
            uplink.mtu, config.uplink_mtu
        );
        found.push(find(Code::UplinkMtu, about).with("VALUE", config.uplink_mtu));
    }
    let hooks = loaded.hooks.iter().filter(|hook| hook.ifindex == uplink.index);
    for hook in hooks {
        let code = match hook.direction {
            Direction::Ingress => Code::UplinkIngress,
            Direction::Egress => Code::UplinkEgress,
        };
        found.extend(hook.missing().map(|about| find(code, about)));
    }
    if loaded.xdp == Some(false) {
        let about = format!(
            "{} is not in the driver of {name}",
            causeway_common::maps::XDP_PROGRAM
        );
        found.push(find(Code::XdpMissing, about));
    }
    found.extend(loaded.before_ours.iter().map(other_first));
    if let Some(route) = &snapshot.default_route
        && route.ifindex != uplink.index
    {
        let other = snapshot
            .link_by_index(route.ifindex)
            .map_or_else(|| route.ifindex.to_string(), |link| link.name.clone());
        let about = format!("the default route leaves by {other}, the uplink is {name}");
        found.push(Finding::new(Code::DefaultRoute, about).with("INTERFACE", other));
    }
    found.extend(other_ways_out(snapshot));
    found
}

/// Routes by other interfaces to destinations that are masqueraded, where the kernel's own rule does not see to them.
fn other_ways_out(snapshot: &Snapshot) -> Vec<Finding> {
    let default = snapshot.default_route.as_ref().map(|route| route.ifindex);
    let is_untranslated = |way: &&WayOut| {
        let is_ipv4 = way.to.addr().is_ipv4();
        // The node's default route elsewhere, and a rule that was asked for and is missing, are findings of their own.
        let is_known = is_ipv4
            && (snapshot.wants_exact_rule() || way.to.prefix_len() == 0 && default == Some(way.ifindex));
        !is_known && !snapshot.has_own_rule(is_ipv4)
    };
    let ways = snapshot.ways_past.iter().filter(is_untranslated);
    ways.map(|way| {
        let about = format!("packets to {} leave by {}, untranslated", way.to, way.interface);
        Finding::new(Code::OtherWayOut, about)
            .with("INTERFACE", &way.interface)
            .with("VALUE", way.to)
    })
    .collect()
}

fn other_first(before: &Before) -> Finding {
    let Before {
        interface,
        direction,
        program_id,
        name,
    } = before;
    let id = program_id.map_or_else(String::new, |id| format!(" (program {id})"));
    let about = format!(
        "{name}{id} stands before ours on {interface} {}",
        direction.name()
    );
    let finding = Finding::new(Code::OtherFirst, about).with("INTERFACE", interface);
    match program_id {
        Some(id) => finding.with("VALUE", id),
        None => finding,
    }
}
