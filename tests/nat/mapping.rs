//! What a side remembers of a flow, and for how long: nobody waits five days for a timer.
//!
//! Causeway's table is made older than it is, and the sweep says what it forgets. The kernel's table shows the time
//! that is left.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use causeway::{
    datapath::{Datapath, now},
    root::Root,
};
use causeway_common::{
    addr::Address,
    flow::{FlowEntry, Nat},
    tuple::FlowKey,
};
use causeway_tests::{conntrack, node::Node};

use crate::side::Side;

pub(crate) use causeway_common::tuple::{ICMP, TCP, UDP};

/// Longer than any lifetime.
const EVER: u32 = 1 << 20;
/// Seconds that a table is aged by to see whether a packet makes it young again. Shorter than any lifetime.
const AGED: u32 = 30;
/// A TCP that has nothing to say acknowledges so much later at most (`TCP_DELACK_MAX`, Linux 6.18).
const LAST_ACK: Duration = Duration::from_millis(210);
/// Every timer of conntrack that the tests speak of.
const TIMERS: [&str; 11] = [
    "udp_timeout",
    "udp_timeout_stream",
    "icmp_timeout",
    "icmpv6_timeout",
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
pub(crate) struct Flow(pub(crate) u8, pub(crate) SocketAddr);

impl Side {
    /// Whether anything is remembered of a flow.
    pub(crate) fn knows(&self, flow: Flow) -> Result<bool> {
        if self.is_causeway() {
            return Ok(!self.table(flow)?.is_empty()?);
        }
        Ok(self.connection(flow)?.is_some())
    }

    /// Seconds for which an idle flow is remembered from here on.
    pub(crate) fn lifetime(&self, flow: Flow) -> Result<u32> {
        if flow.0 == TCP {
            thread::sleep(LAST_ACK);
        }
        if self.is_causeway() {
            return self.table(flow)?.lifetime(&self.rig.node);
        }
        let connection = self.connection(flow)?;
        Ok(connection.context("conntrack has no such flow")?.remaining)
    }

    /// Makes a flow idle for longer than its `lifetime` and has Causeway forget what is over.
    pub(crate) fn age_beyond(&self, flow: Flow, lifetime: u32) -> Result<()> {
        self.table(flow)?.rest(lifetime + 1)?;
        self.rig.node.causeway(&["sweep"]).map(drop)
    }

    /// Makes what is remembered of a flow older. [`Self::is_renewed`] tells whether a packet has undone that.
    pub(crate) fn age(&self, flow: Flow) -> Result<()> {
        if self.is_causeway() {
            return self.table(flow)?.rest(AGED);
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
            return Ok(self.table(flow)?.idle()? < AGED / 2);
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
        self.table(flow)?.lose_forward_half()
    }

    /// What Causeway remembers of a flow.
    fn table(&self, flow: Flow) -> Result<Box<dyn Memory>> {
        let root = Root::new(self.rig.node.root.path());
        let datapath = Datapath::open(&root)?.context("nothing is loaded")?;
        let pin = |name: &str| MapData::from_pin(datapath.directory().join("maps").join(name));
        Ok(match flow.1 {
            SocketAddr::V4(_) => Box::new(Table::<[u8; 4]>::of(pin("cwy_flows")?, flow)?),
            SocketAddr::V6(_) => Box::new(Table::<[u8; 16]>::of(pin("cwy_flows6")?, flow)?),
        })
    }

    fn connection(&self, Flow(protocol, client): Flow) -> Result<Option<conntrack::Connection>> {
        conntrack::find(&self.rig.node.ns, protocol, client)
    }
}

/// What Causeway remembers of a flow of either family.
trait Memory {
    fn is_empty(&self) -> Result<bool>;

    /// Seconds for which it is remembered.
    fn lifetime(&mut self, node: &Node) -> Result<u32>;

    /// Makes it idle for so many seconds.
    fn rest(&mut self, idle: u32) -> Result<()>;

    /// Seconds since the last packet of either direction.
    fn idle(&self) -> Result<u32>;

    fn lose_forward_half(&mut self) -> Result<()>;
}

struct Table<A: Address> {
    flows: HashMap<MapData, FlowKey<A>, FlowEntry<A>>,
    flow: Flow,
}

impl<A: Address + aya::Pod + Into<IpAddr>> Table<A> {
    fn of(map: MapData, flow: Flow) -> Result<Self> {
        let flows = HashMap::try_from(Map::HashMap(map))?;
        Ok(Self { flows, flow })
    }

    /// The entries of the flow, both directions.
    fn entries(&self) -> Result<Vec<(FlowKey<A>, FlowEntry<A>)>> {
        let Flow(protocol, client) = self.flow;
        let is_client = |addr: A, port| SocketAddr::new(addr.into(), u16::from_be_bytes(port)) == client;
        let mut entries = Vec::new();
        for element in &self.flows {
            let (key, entry) = element?;
            let is_forward = is_client(key.src, key.src_port);
            let is_answer = is_client(entry.nat_addr, entry.nat_port) && entry.nat == Nat::DESTINATION;
            if key.protocol == protocol && (is_forward || is_answer) {
                entries.push((key, entry));
            }
        }
        Ok(entries)
    }

    fn write(&mut self, entries: &[(FlowKey<A>, FlowEntry<A>)], idle: u32) -> Result<()> {
        for (key, entry) in entries {
            let entry = FlowEntry {
                last_seen: now().wrapping_sub(idle),
                ..*entry
            };
            self.flows.insert(key, entry, 0)?;
        }
        Ok(())
    }
}

impl<A: Address + aya::Pod + Into<IpAddr>> Memory for Table<A> {
    fn is_empty(&self) -> Result<bool> {
        Ok(self.entries()?.is_empty())
    }

    fn lifetime(&mut self, node: &Node) -> Result<u32> {
        let entries = self.entries()?;
        ensure!(!entries.is_empty(), "{:?} has no entry", self.flow);
        let (mut kept, mut forgotten) = (0, EVER);
        while forgotten - kept > 1 {
            let idle = u32::midpoint(kept, forgotten);
            self.write(&entries, idle)?;
            node.causeway(&["sweep"])?;
            if self.is_empty()? {
                forgotten = idle;
            } else {
                kept = idle;
            }
        }
        self.write(&entries, 0)?;
        Ok(kept)
    }

    fn rest(&mut self, idle: u32) -> Result<()> {
        self.write(&self.entries()?, idle)
    }

    fn idle(&self) -> Result<u32> {
        let entries = self.entries()?;
        let idle = |(_, entry): &(FlowKey<A>, FlowEntry<A>)| now().saturating_sub(entry.last_seen);
        let least = entries.iter().map(idle).min();
        least.with_context(|| format!("{:?} has no entry", self.flow))
    }

    fn lose_forward_half(&mut self) -> Result<()> {
        let entries = self.entries()?;
        let forward = entries.iter().find(|(_, entry)| entry.nat == Nat::SOURCE);
        self.flows.remove(&forward.context("no forward half")?.0)?;
        Ok(())
    }
}

/// The path of a timer of conntrack below `/proc/sys`.
pub(crate) fn sysctl(timer: &str) -> String {
    format!("net/netfilter/nf_conntrack_{timer}")
}

/// Fails unless `seconds` is `expected`, or a little less: time goes on, and on a busy machine seconds pass unused.
pub(crate) fn expect_seconds(seconds: u32, expected: u32) -> Result<()> {
    ensure!(
        (expected.saturating_sub(5)..=expected).contains(&seconds),
        "{seconds} s, not {expected}"
    );
    Ok(())
}
