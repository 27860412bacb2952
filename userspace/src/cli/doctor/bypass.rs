//! Programs of others that see a packet before ours do: they can drop it, or send it past us.

use aya::programs::{ProgramError, ProgramInfo, SchedClassifier, tc::TcAttachType};
use causeway::datapath::{Datapath, Direction, HookState, Mechanism};
use causeway_common::maps::XDP_PROGRAM;

use crate::cli::network::Network;

/// A program of somebody else before ours.
pub(super) struct Before {
    pub(super) interface: String,
    pub(super) direction: Direction,
    pub(super) program_id: Option<u32>,
    pub(super) name: String,
}

/// All of them on the interfaces that have programs of ours.
pub(super) fn find(
    datapath: &Datapath,
    hooks: &[HookState],
    network: &Network,
    skipped: &mut Vec<String>,
) -> Vec<Before> {
    let mut found = at_hooks(hooks, network, skipped);
    found.extend(foreign_xdp(datapath, hooks, network));
    found
}

/// Programs before ours: with tcx those before ours in the kernel's order, with clsact filters of a lower priority. Where a
/// program of ours is tcx, no filter comes before it.
fn at_hooks(hooks: &[HookState], network: &Network, skipped: &mut Vec<String>) -> Vec<Before> {
    let mut found = Vec::new();
    for hook in hooks {
        let (Some(interface), Some(attached)) = (&hook.interface, hook.attached) else {
            continue;
        };
        let before = |program_id, name| Before {
            interface: interface.clone(),
            direction: hook.direction,
            program_id,
            name,
        };
        match first_programs(interface, hook, attached) {
            Ok(programs) => found.extend(programs.into_iter().map(|(id, name)| before(Some(id), name))),
            Err(error) => skipped.push(format!("programs on {interface}: {error}")),
        }
        if attached == Mechanism::Clsact {
            let here = network.filters.iter().filter(|filter| {
                let is_egress = hook.direction == Direction::Egress;
                filter.ifindex == hook.ifindex && filter.egress == is_egress && filter.priority < PRIORITY
            });
            found.extend(here.map(|filter| {
                let name = format!("{} filter of priority {}", filter.kind, filter.priority);
                before(filter.program_id, name)
            }));
        }
    }
    found
}

/// XDP programs of others: they see frames before they are packets.
fn foreign_xdp(datapath: &Datapath, hooks: &[HookState], network: &Network) -> Vec<Before> {
    let ours = ProgramInfo::from_pin(datapath.directory().join("progs").join(XDP_PROGRAM));
    let ours = ours.ok().map(|program| program.id());
    let at_ingress = hooks.iter().filter(|hook| hook.direction == Direction::Ingress);
    at_ingress
        .filter_map(|hook| {
            let mut attached = network.xdp.iter().filter(|(ifindex, _)| *ifindex == hook.ifindex);
            let (_, id) = attached.find(|(_, id)| Some(*id) != ours)?;
            Some(Before {
                interface: hook.interface.clone()?,
                direction: hook.direction,
                program_id: Some(*id),
                name: "an XDP program".to_owned(),
            })
        })
        .collect()
}

/// Priority of our filters.
const PRIORITY: u16 = 50;

/// The tcx programs that are before ours; all of them, where ours is a filter.
fn first_programs(
    interface: &str,
    hook: &HookState,
    attached: Mechanism,
) -> Result<Vec<(u32, String)>, ProgramError> {
    let side = match hook.direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    let programs = match SchedClassifier::query_tcx(interface, side) {
        Ok((_, programs)) => programs,
        // No tcx: no program either.
        Err(_) if attached == Mechanism::Clsact => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let name = |program: &ProgramInfo| program.name_as_str().unwrap_or("unnamed").to_owned();
    Ok(programs
        .iter()
        .map(|program| (program.id(), name(program)))
        .take_while(|(_, name)| name != hook.program)
        .collect())
}
