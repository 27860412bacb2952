//! What a side remembers of a flow, and for how long: nobody waits five days for a timer.
//!
//! Causeway's table is made older than it is, and the sweep says what it forgets. The kernel's table shows the time
//! that is left.

use std::{net::SocketAddrV4, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use causeway::{
    datapath::{Datapath, now},
    root::Root,
};
use causeway_common::{
    flow::{FlowEntry, Nat},
    tuple::FlowKey,
};
use causeway_tests::conntrack;

use crate::side::Side;

pub(crate) use causeway_common::tuple::{ICMP, TCP, UDP};

type Key = FlowKey<[u8; 4]>;
type Entry = FlowEntry<[u8; 4]>;

/// Longer than any lifetime.
const EVER: u32 = 1 << 20;
/// Seconds that a table is aged by to see whether a packet makes it young again. Shorter than any lifetime.
const AGED: u32 = 30;
/// A TCP that has nothing to say acknowledges so much later at most (`TCP_DELACK_MAX`, Linux 6.18).
const LAST_ACK: Duration = Duration::from_millis(210);
/// Every timer of conntrack that the tests speak of.
const TIMERS: [&str; 10] = [
    "udp_timeout",
    "udp_timeout_stream",
    "icmp_timeout",
    "tcp_timeout_syn_sent",
    "tcp_timeout_established",
    "tcp_timeout_fin_wait",
    "tcp_timeout_close_wait",
    "tcp_timeout_last_ack",
    "tcp_timeout_time_wait",
    "tcp_timeout_close",
];

/// A flow by its protocol and its opener; for ICMP the port is the identifier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow(pub(crate) u8, pub(crate) SocketAddrV4);

impl Side {
    /// Whether anything is remembered of a flow.
    pub(crate) fn knows(&self, flow: Flow) -> Result<bool> {
        if self.is_causeway() {
            return Ok(!self.entries(flow)?.is_empty());
        }
        Ok(self.connection(flow)?.is_some())
    }

    /// Seconds for which an idle flow is remembered from here on.
    pub(crate) fn lifetime(&self, flow: Flow) -> Result<u32> {
        if flow.0 == TCP {
            thread::sleep(LAST_ACK);
        }
        if !self.is_causeway() {
            return Ok(self
                .connection(flow)?
                .context("conntrack has no such flow")?
                .remaining);
        }
        let entries = self.entries(flow)?;
        ensure!(!entries.is_empty(), "{flow:?} has no entry");
        let (mut kept, mut forgotten) = (0, EVER);
        while forgotten - kept > 1 {
            let idle = u32::midpoint(kept, forgotten);
            self.write(&entries, idle)?;
            self.rig.node.causeway(&["sweep"])?;
            if self.entries(flow)?.is_empty() {
                forgotten = idle;
            } else {
                kept = idle;
            }
        }
        self.write(&entries, 0)?;
        Ok(kept)
    }

    /// Makes a flow idle for longer than its `lifetime` and has Causeway forget what is over.
    pub(crate) fn age_beyond(&self, flow: Flow, lifetime: u32) -> Result<()> {
        self.write(&self.entries(flow)?, lifetime + 1)?;
        self.rig.node.causeway(&["sweep"]).map(drop)
    }

    /// Makes what is remembered of a flow older. [`Self::is_renewed`] tells whether a packet has undone that.
    pub(crate) fn age(&self, flow: Flow) -> Result<()> {
        if self.is_causeway() {
            return self.write(&self.entries(flow)?, AGED);
        }
        // A renewed flow gets what the timer says now.
        for timer in TIMERS {
            self.rig.node.ns.sysctl(&sysctl(timer), &EVER.to_string())?;
        }
        Ok(())
    }

    /// Whether a flow has been idle for less time than [`Self::age`] made it.
    pub(crate) fn is_renewed(&self, flow: Flow) -> Result<bool> {
        if self.is_causeway() {
            let entries = self.entries(flow)?;
            ensure!(!entries.is_empty(), "{flow:?} has no entry");
            return Ok(entries
                .iter()
                .any(|(_, entry)| now().saturating_sub(entry.last_seen) < AGED / 2));
        }
        if flow.0 == TCP {
            // Until everything is acknowledged conntrack has another timer.
            thread::sleep(LAST_ACK);
        }
        let connection = self.connection(flow)?.context("conntrack has no such flow")?;
        Ok(connection.remaining > EVER / 2)
    }

    /// Takes half of what Causeway remembers of a flow: the direction of the pod's packets.
    pub(crate) fn lose_forward_half(&self, flow: Flow) -> Result<()> {
        let entries = self.entries(flow)?;
        let forward = entries.iter().find(|(_, entry)| entry.nat == Nat::SOURCE);
        self.flows()?.remove(&forward.context("no forward half")?.0)?;
        Ok(())
    }

    /// The entries of a flow, both directions.
    fn entries(&self, flow: Flow) -> Result<Vec<(Key, Entry)>> {
        let Flow(protocol, client) = flow;
        let (addr, port) = (client.ip().octets(), client.port().to_be_bytes());
        let mut all = self.datapath()?.flows()?;
        all.retain(|(key, entry)| {
            let is_forward = (key.src, key.src_port) == (addr, port);
            let is_answer = (entry.nat_addr, entry.nat_port) == (addr, port) && entry.nat == Nat::DESTINATION;
            key.protocol == protocol && (is_forward || is_answer)
        });
        Ok(all)
    }

    fn write(&self, entries: &[(Key, Entry)], idle: u32) -> Result<()> {
        let mut flows = self.flows()?;
        for (key, entry) in entries {
            let entry = Entry {
                last_seen: now().wrapping_sub(idle),
                ..*entry
            };
            flows.insert(key, entry, 0)?;
        }
        Ok(())
    }

    fn flows(&self) -> Result<HashMap<MapData, Key, Entry>> {
        let pin = self.datapath()?.directory().join("maps/cwy_flows");
        Ok(HashMap::try_from(Map::HashMap(MapData::from_pin(pin)?))?)
    }

    fn datapath(&self) -> Result<Datapath> {
        Datapath::open(&Root::new(self.rig.node.root.path()))?.context("nothing is loaded")
    }

    fn connection(&self, Flow(protocol, client): Flow) -> Result<Option<conntrack::Connection>> {
        conntrack::find(&self.rig.node.ns, protocol, client)
    }
}

/// The path of a timer of conntrack below `/proc/sys`.
pub(crate) fn sysctl(timer: &str) -> String {
    format!("net/netfilter/nf_conntrack_{timer}")
}

/// Fails unless `seconds` is `expected`, or two less: a clock of whole seconds may have moved on.
pub(crate) fn expect_seconds(seconds: u32, expected: u32) -> Result<()> {
    ensure!(
        (expected.saturating_sub(2)..=expected).contains(&seconds),
        "{seconds} s, not {expected}"
    );
    Ok(())
}
