//! What is attached where, for people who ask.

use std::io;

use causeway_common::maps::PodEntry;

use super::{
    Datapath, DatapathError, Pod,
    attach::{self, Direction, Hook, Mechanism},
    bpf,
    family::Family,
};
use crate::links::Netlink;

/// A hook that should have a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookState {
    /// Name of the interface; `None` when it is gone.
    pub interface: Option<String>,
    /// Index of the interface.
    pub ifindex: u32,
    /// Which side of it.
    pub direction: Direction,
    /// The program that belongs there.
    pub program: &'static str,
    /// How it is held there; `None` when it is not attached.
    pub attached: Option<Mechanism>,
}

impl HookState {
    /// What to say about a hook that has not its program.
    pub fn missing(&self) -> Option<String> {
        let interface = self.interface.as_deref().unwrap_or("an interface that is gone");
        let text = || {
            format!(
                "the program {} is not attached to {interface} {}",
                self.program,
                self.direction.name()
            )
        };
        self.attached.is_none().then(text)
    }
}

impl Datapath {
    /// The hooks of the uplink and of every pod that is there.
    pub fn hooks(&self) -> Result<Vec<HookState>, DatapathError> {
        let mut netlink = Netlink::new()?;
        let links = netlink.links()?;
        let name_of = |ifindex: u32| {
            links
                .iter()
                .find(|link| link.index == ifindex)
                .map(|link| link.name.as_str())
        };
        let mut hooks = Vec::new();
        let uplink = self.config()?.uplink_ifindex;
        hooks.extend(self.states(uplink, name_of(uplink), Hook::uplink)?);
        let mut pods = self.pods()?;
        pods.retain(|(_, entry)| entry.flags & PodEntry::DEPARTED == 0);
        pods.sort_unstable_by_key(|(addr, _)| *addr);
        for (_, entry) in pods {
            hooks.extend(self.states(entry.ifindex, name_of(entry.ifindex), Hook::pod)?);
        }
        Ok(hooks)
    }

    /// Compares what the programs know of a pod with what they should: its address, MAC and the host's end of its link.
    /// Returns what is wrong, each item by its name.
    pub fn inspect_pod(&self, pod: &Pod) -> Result<Vec<String>, DatapathError> {
        let mut wrong = Vec::new();
        if let Some(addr) = pod.addresses.v4() {
            wrong.extend(self.inspect_address(pod, addr.octets())?);
        }
        match pod.addresses.v6() {
            Some(addr) if self.has_ipv6() => wrong.extend(self.inspect_address(pod, addr.octets())?),
            Some(addr) if pod.addresses.v4().is_none() => {
                wrong.push(format!(
                    "there are no programs for IPv6, and {addr} is the pod's only address"
                ));
            }
            _ => {}
        }
        for hook in self.states(pod.ifindex, Some(&pod.host_if), Hook::pod)? {
            wrong.extend(hook.missing());
        }
        wrong.extend(self.inspect_uplink()?);
        Ok(wrong)
    }

    fn inspect_address<A: Family>(&self, pod: &Pod, addr: A) -> Result<Vec<String>, DatapathError> {
        let (tables, names, ip) = (self.tables.of::<A>(), A::MAPS, addr.ip());
        let mut wrong = Vec::new();
        match tables.pods()?.get(&addr)? {
            Some(entry) if entry.is_ready() => {
                let known = (entry.ifindex, entry.mac, entry.host_mac);
                if known != (pod.ifindex, pod.mac, pod.host_mac) {
                    wrong.push(format!("the entry {ip} of map {} is of another link", names.pods));
                }
            }
            _ => wrong.push(format!("the entry {ip} of map {} is missing", names.pods)),
        }
        match tables.ifaces()?.get(&pod.ifindex)? {
            Some(entry) if (entry.addr, entry.mac) == (addr, pod.mac) => {}
            found => {
                let what = found.map_or("missing", |_| "of another pod");
                wrong.push(format!(
                    "the entry {} of map {} is {what}",
                    pod.ifindex, names.ifaces
                ));
            }
        }
        if tables.usage()?.get(&addr)?.is_none() {
            wrong.push(format!("the entry {ip} of map {} is missing", names.usage));
        }
        Ok(wrong)
    }

    /// What is wrong with the programs on the uplink.
    pub fn inspect_uplink(&self) -> Result<Vec<String>, DatapathError> {
        let index = self.config()?.uplink_ifindex;
        let link = Netlink::new()?.link_by_index(index)?;
        let hooks = self.states(index, link.as_ref().map(|link| link.name.as_str()), Hook::uplink)?;
        let missing = hooks.iter().filter_map(HookState::missing);
        Ok(missing.chain(self.inspect_xdp()?).collect())
    }

    fn states<'a>(
        &self,
        ifindex: u32,
        interface: Option<&'a str>,
        hooks: impl Fn(&'a str, u32) -> [Hook<'a>; 2],
    ) -> Result<Vec<HookState>, DatapathError> {
        let state = |hook: Hook<'a>| {
            let attached = match interface {
                Some(_) => attach::attached(&self.pins, &hook)?,
                None => None,
            };
            Ok(HookState {
                interface: interface.map(ToOwned::to_owned),
                ifindex,
                direction: hook.direction,
                program: hook.program(),
                attached,
            })
        };
        hooks(interface.unwrap_or_default(), ifindex)
            .into_iter()
            .map(state)
            .collect()
    }
}

/// The ways to attach that the kernel has, the preferred one first: tcx from 6.6 on, unless built without.
///
/// # Errors
///
/// `PermissionDenied` without CAP_NET_ADMIN: the kernel does not say.
pub fn mechanisms() -> io::Result<Vec<Mechanism>> {
    let tcx = bpf::has_tcx()?.then_some(Mechanism::Tcx);
    Ok(tcx.into_iter().chain([Mechanism::Clsact]).collect())
}
