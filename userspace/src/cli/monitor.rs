//! `causeway monitor`: what the programs drop and refuse, and the flows that begin, as it happens.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use causeway::datapath::{Datapath, Events};
use causeway_common::{
    event::{Event, EventHook, EventKind},
    reason::Reason,
};
use clap::{Args, ValueEnum};
use etherparse::{LaxPacketHeaders, NetHeaders, TransportHeader};
use serde::Serialize;

use super::{Failure, output::API_VERSION, pods::interface_names};

/// What to print, and when to stop.
#[derive(Args)]
pub(crate) struct Options {
    /// drops, refusals or flows; repeatable
    #[arg(long, value_name = "KIND", value_enum, hide_possible_values = true)]
    only: Vec<Kind>,
    /// Stop after so many events
    #[arg(short, long, value_name = "COUNT")]
    count: Option<u64>,
    /// Print what has been kept, and do not wait for more
    #[arg(long)]
    no_wait: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Drops,
    Refusals,
    Flows,
}

impl Kind {
    /// Whether an event with this reason is of the kind. One that only a newer version knows is taken for a drop.
    fn includes(self, reason: Option<Reason>) -> bool {
        let kind = match reason.and_then(EventKind::of) {
            Some(EventKind::Refusal) => Self::Refusals,
            Some(EventKind::Flow) => Self::Flows,
            Some(EventKind::Drop) | None => Self::Drops,
        };
        kind == self
    }
}

/// Prints events until there is no reader any more.
pub(crate) fn run(datapath: &Datapath, options: &Options, json: bool) -> Result<(), Failure> {
    let mut events = datapath.events()?;
    let clock = Clock::new();
    let mut names = Names::default();
    let mut printed = 0;
    while options.count.is_none_or(|count| printed < count) {
        let Some(event) = next(&mut events, options.no_wait)? else {
            return Ok(());
        };
        let reason = Reason::ALL.get(usize::from(event.reason)).copied();
        if !options.only.is_empty() && !options.only.iter().any(|kind| kind.includes(reason)) {
            continue;
        }
        let told = Told::new(&event, &clock, &mut names)?;
        let mut out = io::stdout().lock();
        let written = if json {
            serde_json::to_string(&told)
                .map_err(io::Error::from)
                .and_then(|line| writeln!(out, "{line}"))
        } else {
            writeln!(out, "{}", told.line())
        };
        written.and_then(|()| out.flush()).map_err(Failure::Output)?;
        printed += 1;
    }
    Ok(())
}

fn next(events: &mut Events, no_wait: bool) -> Result<Option<Event>, Failure> {
    loop {
        let event = events.next();
        if event.is_some() || no_wait {
            return Ok(event);
        }
        events.wait(Duration::from_mins(1)).map_err(Failure::Events)?;
    }
}

/// What was told of a packet, as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    api_version: &'static str,
    kind: &'static str,
    /// Seconds since 1970.
    time: f64,
    hook: &'static str,
    interface: Option<String>,
    ifindex: u32,
    reason: &'static str,
    meaning: &'static str,
    length: u32,
    #[serde(flatten)]
    packet: Packet,
}

impl Told {
    fn new(event: &Event, clock: &Clock, names: &mut Names) -> Result<Self, Failure> {
        let reason = Reason::ALL.get(usize::from(event.reason)).copied();
        Ok(Self {
            api_version: API_VERSION,
            kind: match reason.and_then(EventKind::of) {
                Some(EventKind::Refusal) => "Refused",
                Some(EventKind::Flow) => "NewFlow",
                Some(EventKind::Drop) | None => "Dropped",
            },
            time: clock.wall(event.time).as_secs_f64(),
            hook: EventHook::name(event.hook),
            interface: names.of(event.ifindex)?,
            ifindex: event.ifindex,
            reason: reason.map_or("unknown", Reason::name),
            meaning: reason.map_or("not known to this version of the command", Reason::meaning),
            length: event.length,
            packet: Packet::read(&event.packet[..usize::from(event.captured).min(event.packet.len())]),
        })
    }

    fn line(&self) -> String {
        let interface = self.interface.clone().unwrap_or_else(|| self.ifindex.to_string());
        format!(
            "{:.3} {:<11} {:<15} {:<18} {}, {} bytes",
            self.time,
            self.hook,
            interface,
            self.reason,
            self.packet.line(),
            self.length
        )
    }
}

/// What can be read of the packet's headers.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Packet {
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    protocol: Option<u8>,
    src_port: Option<u16>,
    dst_port: Option<u16>,
}

impl Packet {
    /// From its network header on, as far as it was copied.
    fn read(bytes: &[u8]) -> Self {
        let Ok(headers) = LaxPacketHeaders::from_ip(bytes) else {
            return Self::default();
        };
        let mut packet = Self::default();
        match &headers.net {
            Some(NetHeaders::Ipv4(ip, _)) => {
                packet.src = Some(IpAddr::from(ip.source));
                packet.dst = Some(IpAddr::from(ip.destination));
                packet.protocol = Some(ip.protocol.0);
            }
            Some(NetHeaders::Ipv6(ip, extensions)) => {
                packet.src = Some(IpAddr::from(ip.source));
                packet.dst = Some(IpAddr::from(ip.destination));
                let behind = extensions.next_header(ip.next_header);
                packet.protocol = Some(behind.unwrap_or(ip.next_header).0);
            }
            _ => {}
        }
        let ports = match &headers.transport {
            Some(TransportHeader::Tcp(tcp)) => Some((tcp.source_port, tcp.destination_port)),
            Some(TransportHeader::Udp(udp)) => Some((udp.source_port, udp.destination_port)),
            _ => None,
        };
        (packet.src_port, packet.dst_port) = ports.unzip();
        packet
    }

    fn line(&self) -> String {
        let (Some(src), Some(dst), Some(protocol)) = (self.src, self.dst, self.protocol) else {
            return "not an IP packet".to_owned();
        };
        let end = |addr: IpAddr, port: Option<u16>| {
            port.map_or_else(
                || addr.to_string(),
                |port| SocketAddr::new(addr, port).to_string(),
            )
        };
        let protocol = super::flows::protocol_name(protocol);
        format!(
            "{protocol} {} > {}",
            end(src, self.src_port),
            end(dst, self.dst_port)
        )
    }
}

/// Turns times of `CLOCK_MONOTONIC` into those of the wall.
struct Clock {
    /// Wall time at which the monotonic clock began.
    start: Duration,
}

impl Clock {
    fn new() -> Self {
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let monotonic = Duration::try_from(monotonic).unwrap_or_default();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            start: wall.saturating_sub(monotonic),
        }
    }

    fn wall(&self, nanoseconds: u64) -> Duration {
        self.start + Duration::from_nanos(nanoseconds)
    }
}

/// Names of interfaces. Asked for again when an unknown one appears.
#[derive(Default)]
struct Names(HashMap<u32, String>);

impl Names {
    fn of(&mut self, ifindex: u32) -> Result<Option<String>, Failure> {
        if !self.0.contains_key(&ifindex) {
            self.0.extend(interface_names()?);
        }
        Ok(self.0.get(&ifindex).cloned())
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn event(packet: &[u8]) -> Event {
        let mut event = Event {
            time: 1_500_000_000,
            ifindex: 1,
            length: packet.len() as u32 + 14,
            reason: Reason::SnatNoPort as u8,
            hook: EventHook::TO_UPLINK,
            captured: packet.len().min(64) as u16,
            _pad: 0,
            packet: [0; 64],
        };
        let copied = usize::from(event.captured);
        event.packet[..copied].copy_from_slice(&packet[..copied]);
        event
    }

    #[test]
    fn an_event_is_one_line_with_hook_reason_and_both_ends() {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 240, 0, 5], [203, 0, 113, 10], 64)
            .udp(40_000, 53)
            .write(&mut packet, &[0; 100])
            .unwrap();
        let clock = Clock {
            start: Duration::from_secs(1000),
        };
        let told = Told::new(&event(&packet), &clock, &mut Names::default()).unwrap();
        let line = told.line();
        assert!(line.starts_with("1001.500 to_uplink"), "{line}");
        assert!(line.contains(" snat_no_port "), "{line}");
        assert!(
            line.ends_with("udp 10.240.0.5:40000 > 203.0.113.10:53, 142 bytes"),
            "{line}"
        );
    }

    #[test]
    fn an_event_of_ipv6_shows_both_ends_as_well() {
        let [src, dst] =
            ["fd00::5", "fd00::6"].map(|addr| addr.parse::<std::net::Ipv6Addr>().unwrap().octets());
        let mut packet = Vec::new();
        PacketBuilder::ipv6(src, dst, 64)
            .udp(40_000, 53)
            .write(&mut packet, &[0; 100])
            .unwrap();
        let line = Packet::read(&packet[..64]).line();
        assert_eq!(line, "udp [fd00::5]:40000 > [fd00::6]:53");
    }

    #[test]
    fn every_reason_that_is_told_of_is_of_one_kind() {
        for reason in Reason::ALL.iter().copied() {
            let kinds = [Kind::Drops, Kind::Refusals, Kind::Flows];
            let of = kinds.iter().filter(|kind| kind.includes(Some(reason))).count();
            assert_eq!(of, 1, "{}", reason.name());
        }
        assert!(Kind::Flows.includes(Some(Reason::SnatPromoted)));
        assert!(Kind::Refusals.includes(Some(Reason::OfferQuota)));
        assert!(Kind::Drops.includes(Some(Reason::SnatQuota)) && Kind::Drops.includes(None));
    }

    #[test]
    fn a_packet_that_cannot_be_read_is_said_to_be_none() {
        for bytes in [&[][..], &[0x45, 0], &[0xff; 64]] {
            assert_eq!(Packet::read(bytes), Packet::default());
        }
        assert_eq!(Packet::default().line(), "not an IP packet");
    }
}
