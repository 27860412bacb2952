//! Connections to what is gone are ended: the programs answer their next segment with a reset.

use std::{net::Ipv4Addr, os::fd::AsFd as _};

use causeway_common::{
    flow::{Flags, FlowEntry, Nat, Progress, State},
    tuple::{FlowKey, TCP},
};

use super::{Datapath, DatapathError, bpf, load};

/// What is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// An address that connections were opened to.
    Address(Ipv4Addr),
    /// A backend that connections to the API server's virtual address were spread to.
    Backend(Ipv4Addr),
}

/// A connection that is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Its opener, address and port.
    pub client: (Ipv4Addr, u16),
    /// What it was opened to, as it is seen at the uplink.
    pub server: (Ipv4Addr, u16),
    /// It is of the node itself, not of a pod.
    pub of_node: bool,
    /// Its opener has no connection any more: asked for it, it has answered with a reset.
    pub is_told: bool,
}

impl End {
    fn is_of(self, key: &FlowKey<[u8; 4]>, entry: &FlowEntry<[u8; 4]>) -> bool {
        // The answers to a connection that was opened from there are another matter.
        let opened_here = key.protocol == TCP && !entry.has(Flags::ANSWER);
        opened_here
            && match self {
                Self::Address(address) => key.dst == address.octets(),
                Self::Backend(address) => entry.nat == Nat::TO_BACKEND && entry.nat_addr == address.octets(),
            }
    }
}

impl Datapath {
    /// How many connections each end has that are not over.
    pub fn count_connections(&self, ends: &[End]) -> Result<Vec<usize>, DatapathError> {
        let mut counts = vec![0; ends.len()];
        self.tables.flows()?.for_each(|key, entry| {
            for (end, count) in ends.iter().zip(&mut counts) {
                *count += usize::from(end.is_of(&key, &entry) && !entry.progress().is_over());
            }
        })?;
        Ok(counts)
    }

    /// Marks every connection to `end`, so that its opener is told by a reset at its next segment. Returns them.
    pub fn end_connections(&self, end: End) -> Result<Vec<Ending>, DatapathError> {
        let mut flows = self.tables.flows()?;
        let mut ending = Vec::new();
        flows.for_each(|key, entry| {
            if end.is_of(&key, &entry) && !entry.progress().both(Progress::FIN) {
                ending.push((key, entry));
            }
        })?;
        for (key, entry) in &ending {
            if entry.state != State::RESET {
                let told_nothing = entry.progress().without(Progress::RST).bits();
                let reset = FlowEntry {
                    state: State::RESET,
                    progress: told_nothing,
                    ..*entry
                };
                flows.replace(*key, reset)?;
            }
        }
        let node = self.tables.config()?.node_addr;
        let port = u16::from_be_bytes;
        Ok(ending
            .iter()
            .map(|(key, entry)| Ending {
                client: (key.src.into(), port(key.src_port)),
                server: (key.dst.into(), port(key.dst_port)),
                of_node: key.src == node || entry.has(Flags::HOST),
                is_told: entry.state == State::RESET && entry.progress().has(Progress::RST),
            })
            .collect())
    }

    /// Sends frames, each on the interface with its index. Returns how many the kernel took.
    pub fn inject(&self, frames: &[(u32, Vec<u8>)]) -> Result<usize, DatapathError> {
        let path = load::inject_program(&self.pins)?;
        let failed = |source| DatapathError::file(&path, source);
        let program = bpf::open_pin(&path).map_err(failed)?;
        let mut sent = 0;
        for (ifindex, frame) in frames {
            /// `TC_ACT_SHOT`: the program has sent a copy.
            const SENT: u32 = 2;
            let result = bpf::run::on_frame(program.as_fd(), frame, *ifindex).map_err(failed)?;
            sent += usize::from(result == SENT);
        }
        Ok(sent)
    }
}
