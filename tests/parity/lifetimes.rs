//! How long either lane remembers an idle flow: the same figures for both, each in its own words.

use anyhow::Result;
use aya::maps::{Array, Map, MapData};
use causeway::datapath::Datapath;
use causeway_common::{addr::Address, lifetime::Timeouts, maps::Config};
use causeway_tests::{netns::Netns, node::Node};

use crate::family::Family;

/// Idle times in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetimes {
    /// Whatever only one side has spoken in, ICMP, and TCP during the handshake or after its end.
    pub(crate) short: u32,
    /// UDP and protocols without ports, both sides have spoken.
    pub(crate) stream: u32,
    /// TCP after the handshake.
    pub(crate) established: u32,
}

impl Lifetimes {
    /// Nothing expires while packets are compared.
    pub(crate) const LASTING: Self = Self {
        short: 86_400,
        stream: 86_400,
        established: 86_400,
    };
    /// For flows that rest until they have expired.
    pub(crate) const BRIEF: Self = Self {
        short: 4,
        stream: 8,
        established: 86_400,
    };

    /// Sets the timeouts of conntrack in a namespace where it is in use.
    pub(crate) fn tell_conntrack(&self, ns: &Netns) -> Result<()> {
        let Self {
            short,
            stream,
            established,
        } = *self;
        for (name, seconds) in [
            ("tcp_timeout_syn_sent", short),
            ("tcp_timeout_syn_recv", short),
            ("tcp_timeout_last_ack", short),
            ("tcp_timeout_time_wait", short),
            ("tcp_timeout_close", short),
            ("tcp_timeout_established", established),
            ("tcp_timeout_fin_wait", established),
            ("tcp_timeout_close_wait", established),
            ("tcp_timeout_max_retrans", established),
            ("tcp_timeout_unacknowledged", established),
            ("udp_timeout", short),
            ("udp_timeout_stream", stream),
            ("icmp_timeout", short),
            ("icmpv6_timeout", short),
            ("generic_timeout", stream),
            ("gre_timeout", stream),
            ("gre_timeout_stream", stream),
            ("sctp_timeout_closed", stream),
            ("sctp_timeout_cookie_wait", stream),
            ("sctp_timeout_cookie_echoed", stream),
            ("sctp_timeout_established", stream),
        ] {
            ns.sysctl(
                &format!("net/netfilter/nf_conntrack_{name}"),
                &seconds.to_string(),
            )?;
        }
        Ok(())
    }

    /// Writes the same into the configuration of a node's programs, below the floors that the plug-in keeps to.
    pub(crate) fn tell_causeway(&self, node: &Node, family: Family) -> Result<()> {
        match family {
            Family::V4 => self.write::<[u8; 4]>(node, "cwy_cfg"),
            Family::V6 => self.write::<[u8; 16]>(node, "cwy_cfg6"),
        }
    }

    fn write<A: Address>(&self, node: &Node, map: &str) -> Result<()>
    where
        Config<A>: aya::Pod,
    {
        let pin = datapath(node)?.directory().join("maps").join(map);
        let mut map: Array<_, Config<A>> = Array::try_from(Map::Array(MapData::from_pin(pin)?))?;
        let timeouts = Timeouts {
            offered: self.short,
            tcp_opening: self.short,
            tcp_established: self.established,
            tcp_closing: self.short,
            tcp_reset: self.short,
            udp: self.short,
            udp_stream: self.stream,
            icmp: self.short,
        };
        let config = map.get(&0, 0)?;
        Ok(map.set(0, Config { timeouts, ..config }, 0)?)
    }
}

/// What is pinned on a node.
pub(crate) fn datapath(node: &Node) -> Result<Datapath> {
    use anyhow::Context as _;
    use causeway::root::Root;
    Datapath::open(&Root::new(node.root.path()))?.context("the node has no datapath")
}
