//! Compares what came out of the two lanes, packet by packet. The node's ports are the only thing that may differ, and they
//! must pair one to one.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    net::Ipv4Addr,
};

use causeway_tests::{fabric::NODE, frame::Frame};

use crate::{
    archetypes::Archetype,
    differences::Difference,
    lane::{Output, WIRE},
    packet::{ETH, Flaw, ICMP, TCP, UDP},
    script::Shot,
};

/// Type of service of the errors that a kernel makes itself: precedence "internetwork control". No sender here sets it.
const OWN_ERROR: u8 = 0xc0;

/// A packet that was sent to both lanes.
#[derive(Debug)]
pub(crate) struct Sent<'a> {
    pub(crate) flow: u64,
    pub(crate) archetype: Archetype,
    pub(crate) step: usize,
    pub(crate) shot: &'a Shot,
    /// Identification in its IPv4 header.
    pub(crate) id: u16,
    pub(crate) protocol: u8,
    pub(crate) remote: (Ipv4Addr, u16),
    pub(crate) pod_port: u16,
    /// The flow leaves with the node's address.
    pub(crate) translated: bool,
}

/// What an archetype has shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) flows: u64,
    pub(crate) sent: u64,
    pub(crate) came_out: u64,
    pub(crate) abandoned: u64,
}

/// A difference that no row describes, with how often it was seen and the first example.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) times: u64,
    pub(crate) example: String,
}

/// Who holds a port: flow by protocol, remote and port.
type Holders = HashMap<(u8, Ipv4Addr, u16, u16), u64>;

/// The comparison's memory.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// Ports of the living flows, left and right.
    ports: HashMap<u64, [u16; 2]>,
    holders: [Holders; 2],
    /// Protocol, remote and port of what Causeway has ever given to a flow, through this pair of lanes.
    used: HashSet<(u8, (Ipv4Addr, u16), u16)>,
    pub(crate) tally: BTreeMap<Archetype, Tally>,
    pub(crate) allowed: BTreeMap<Difference, u64>,
    pub(crate) found: BTreeMap<String, Found>,
    pub(crate) compared: u64,
    pub(crate) mappings: u64,
    /// Mappings with the pod's own port, left and right.
    pub(crate) kept_ports: [u64; 2],
}

impl Judge {
    /// Differences so far that no row describes.
    pub(crate) fn times_found(&self) -> u64 {
        self.found.values().map(|found| found.times).sum()
    }

    /// The next packets take fresh lanes.
    pub(crate) fn start_over(&mut self) {
        self.ports.clear();
        self.holders = Default::default();
        self.used.clear();
    }

    /// The ports that the lanes gave a flow.
    pub(crate) fn ports(&self, flow: u64) -> Option<[u16; 2]> {
        self.ports.get(&flow).copied()
    }

    /// A flow has ended: its ports may serve others.
    pub(crate) fn forget(&mut self, flow: u64, protocol: u8, remote: (Ipv4Addr, u16)) {
        if let Some(ports) = self.ports.remove(&flow) {
            for (holders, port) in self.holders.iter_mut().zip(ports) {
                holders.remove(&(protocol, remote.0, remote.1, port));
            }
        }
    }

    /// Compares what both lanes made of one batch.
    pub(crate) fn compare(&mut self, batch: &[Sent<'_>], outputs: [&[Output]; 2], context: &str) {
        let by_cause = outputs.map(sort_by_cause);
        let mut known = 0;
        for sent in batch {
            let tally = self.tally.entry(sent.archetype).or_default();
            tally.sent += 1;
            if sent.shot.same_id {
                continue;
            }
            let none = Vec::new();
            let [left, right] = by_cause
                .each_ref()
                .map(|by| by.get(&sent.id).unwrap_or(&none).as_slice());
            known += left.len() + right.len();
            tally.came_out += u64::from(!left.is_empty());
            self.compared += 1;
            if let Err(what) = self.compare_one(sent, left, right) {
                let allowed = sent
                    .shot
                    .differs
                    .filter(|row| row.describes(sent.shot, left, right));
                if let Some(row) = allowed {
                    *self.allowed.entry(row).or_default() += 1;
                } else {
                    self.note(sent, &what, left, right, context);
                }
            } else if let Some(row) = sent.shot.differs {
                let what = format!("the lanes agree, but {row:?} says they differ");
                self.note(sent, &what, left, right, context);
            }
        }
        self.compare_unasked(by_cause, known, context);
    }

    /// What no packet of the batch is known to have caused, such as a RST of the node: the same list on both sides.
    fn compare_unasked(&mut self, by_cause: [HashMap<u16, Vec<&Output>>; 2], known: usize, context: &str) {
        let total: usize = by_cause.iter().flat_map(HashMap::values).map(Vec::len).sum();
        let none = Vec::new();
        let [left, right] = by_cause
            .each_ref()
            .map(|by| by.get(&0).unwrap_or(&none).as_slice());
        let same = left.len() == right.len()
            && left
                .iter()
                .zip(right)
                .all(|(a, b)| a.point == b.point && packet(&a.bytes) == packet(&b.bytes));
        if !same || known + left.len() + right.len() != total {
            let mut example = format!("{context}\n");
            for (name, outputs) in [("nf_nat", left), ("causeway", right)] {
                describe(&mut example, name, outputs);
            }
            self.found
                .entry("packets of the node's own".to_owned())
                .or_insert(Found { times: 0, example })
                .times += 1;
        }
    }

    fn compare_one(&mut self, sent: &Sent<'_>, left: &[&Output], right: &[&Output]) -> Result<(), String> {
        if left.len() != right.len() {
            return Err(format!("{} against {} packets came out", left.len(), right.len()));
        }
        for (left, right) in left.iter().zip(right) {
            self.compare_packets(sent, left, right)?;
        }
        Ok(())
    }

    fn compare_packets(&mut self, sent: &Sent<'_>, left: &Output, right: &Output) -> Result<(), String> {
        if left.point != right.point {
            return Err(format!(
                "came out elsewhere: at point {} against {}",
                left.point, right.point
            ));
        }
        let good = [left, right].map(|output| {
            let frame = Frame::parse(false, &output.bytes).and_then(|frame| frame.ip);
            frame.map(|ip| ip.checksums_good)
        });
        let [Some(left_good), Some(right_good)] = good else {
            return Err("an unreadable packet came out".to_owned());
        };
        if left_good != right_good {
            return Err(format!("checksum right: {left_good} against {right_good}"));
        }
        if !right_good && sent.shot.spec.flaw == Flaw::None {
            return Err("wrong checksums on both sides".to_owned());
        }
        let (mut a, mut b) = (left.bytes.clone(), right.bytes.clone());
        for bytes in [&mut a, &mut b] {
            trim(bytes);
        }
        let (left_ports, right_ports) = (canonical(&mut a), canonical(&mut b));
        if left_ports.len() != right_ports.len() {
            return Err("the node's address stands in other places".to_owned());
        }
        for (&left_port, &right_port) in left_ports.iter().zip(&right_ports) {
            self.pair(sent, [left_port, right_port])?;
        }
        match a.iter().zip(&b).position(|(a, b)| a != b) {
            _ if a.len() != b.len() => Err(format!("lengths: {} against {} bytes", a.len(), b.len())),
            Some(at) => Err(format!(
                "bytes differ: from {at} on, counted from the frame's start"
            )),
            None => Ok(()),
        }
    }

    /// The node's ports of one flow, on either side.
    fn pair(&mut self, sent: &Sent<'_>, ports: [u16; 2]) -> Result<(), String> {
        if let Some(known) = self.ports.get(&sent.flow) {
            return if *known == ports {
                Ok(())
            } else {
                Err(format!("a flow changed its port: {ports:?}, not {known:?}"))
            };
        }
        if !sent.translated || sent.shot.point == WIRE {
            return if ports[0] == ports[1] {
                Ok(())
            } else {
                Err(format!("ports where nothing was translated: {ports:?}"))
            };
        }
        for (holders, port) in self.holders.iter_mut().zip(ports) {
            let holder = holders.insert((sent.protocol, sent.remote.0, sent.remote.1, port), sent.flow);
            if holder.is_some_and(|holder| holder != sent.flow) {
                return Err(format!(
                    "port {port} towards {:?} belongs to another flow",
                    sent.remote
                ));
            }
        }
        self.ports.insert(sent.flow, ports);
        let kept = ports.map(|port| port == sent.pod_port);
        for (count, kept) in self.kept_ports.iter_mut().zip(kept) {
            *count += u64::from(kept);
        }
        self.mappings += 1;
        // nf_nat gives a free port up for the one that the pod's port has towards other remotes, so the right lane alone
        // tells whether the port was free there.
        let own = (sent.protocol, sent.remote, sent.pod_port);
        if !kept[1] && !self.used.contains(&own) {
            return Err(format!(
                "a free port was not kept: {} became {}",
                sent.pod_port, ports[1]
            ));
        }
        self.used.insert((sent.protocol, sent.remote, ports[1]));
        if class(ports[0]) != class(ports[1]) && sent.protocol != ICMP {
            return Err(format!("classes of ports: {ports:?}"));
        }
        Ok(())
    }

    fn note(&mut self, sent: &Sent<'_>, what: &str, left: &[&Output], right: &[&Output], context: &str) {
        // What follows the colon is one example's.
        let kind = what.split(':').next().unwrap_or_default();
        let title = format!("{}, step {}: {kind}", sent.archetype, sent.step);
        let found = self.found.entry(title).or_insert_with(|| {
            let mut example = format!(
                "{context}\n  {what}\n  sent at point {}: {:?}\n",
                sent.shot.point, sent.shot.spec
            );
            for (name, outputs) in [("nf_nat", left), ("causeway", right)] {
                describe(&mut example, name, outputs);
            }
            Found { times: 0, example }
        });
        found.times += 1;
    }
}

fn describe(text: &mut String, name: &str, outputs: &[&Output]) {
    if outputs.is_empty() {
        let _ = writeln!(text, "  {name}: nothing");
    }
    for output in outputs {
        let hex: String = output
            .bytes
            .iter()
            .take(110)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let ip = Frame::parse(false, &output.bytes).and_then(|frame| frame.ip);
        let _ = writeln!(text, "  {name}: at point {}, {ip:?}\n    {hex}", output.point);
    }
}

/// nf_nat's classes of ports.
fn class(port: u16) -> u8 {
    match port {
        0..=511 => 0,
        512..=1023 => 1,
        _ => 2,
    }
}

fn sort_by_cause(outputs: &[Output]) -> HashMap<u16, Vec<&Output>> {
    let mut by_cause: HashMap<u16, Vec<&Output>> = HashMap::new();
    for output in outputs {
        by_cause.entry(cause(&output.bytes)).or_default().push(output);
    }
    by_cause
}

/// The identification of the packet that led to this one: its own, or of the packet that an error of the node quotes.
fn cause(bytes: &[u8]) -> u16 {
    let ip = &bytes[ETH..];
    let inner = usize::from(ip[0] & 0x0f) * 4 + 8;
    if is_own_error(ip) && ip.len() >= inner + 20 {
        u16_at(ip, inner + 4)
    } else {
        u16_at(ip, 4)
    }
}

fn is_own_error(ip: &[u8]) -> bool {
    ip[9] == ICMP && ip[1] & OWN_ERROR == OWN_ERROR
}

/// Source of the packet in a frame.
pub(crate) fn source(bytes: &[u8]) -> Ipv4Addr {
    addr_at(&bytes[ETH..], 12)
}

fn packet(bytes: &[u8]) -> &[u8] {
    let len = usize::from(u16_at(bytes, ETH + 2));
    &bytes[..bytes.len().min(ETH + len)]
}

/// Cuts off what follows the IP packet.
fn trim(bytes: &mut Vec<u8>) {
    let len = packet(bytes).len();
    bytes.truncate(len);
}

/// Puts 0 in place of every port of the node's and of the identification of its own errors, with every checksum that
/// covers it, and returns the ports. What differs afterwards differs in more than these.
fn canonical(bytes: &mut [u8]) -> Vec<u16> {
    let mut ports = Vec::new();
    let header = usize::from(bytes[ETH] & 0x0f) * 4;
    if is_own_error(&bytes[ETH..]) {
        set(bytes, ETH + 4, 0, &[ETH + 10]);
    }
    let l4 = ETH + header;
    let is_first = u16_at(bytes, ETH + 6) & 0x1fff == 0;
    if !is_first {
        return ports;
    }
    let is_error =
        bytes[ETH + 9] == ICMP && bytes.get(l4).is_some_and(|&kind| matches!(kind, 3 | 4 | 11 | 12));
    let inner = l4 + 8;
    if is_error {
        if bytes.len() >= inner + 28 {
            let inner_l4 = inner + usize::from(bytes[inner] & 0x0f) * 4;
            ports.extend(clear_port(bytes, inner, inner_l4, Some(l4 + 2)));
        }
    } else {
        ports.extend(clear_port(bytes, ETH, l4, None));
    }
    ports
}

/// Clears the port beside the node's address in the IPv4 packet at `l3`, inside an error if `outer` is its checksum.
fn clear_port(bytes: &mut [u8], l3: usize, l4: usize, outer: Option<usize>) -> Option<u16> {
    let ends = [addr_at(bytes, l3 + 12), addr_at(bytes, l3 + 16)];
    let is_node = ends.map(|end| end == NODE);
    if bytes.len() < l4 + 8 || is_node == [false; 2] {
        return None;
    }
    let (port_at, check_at) = match bytes[l3 + 9] {
        TCP => (if is_node[0] { l4 } else { l4 + 2 }, l4 + 16),
        UDP => (if is_node[0] { l4 } else { l4 + 2 }, l4 + 6),
        ICMP if bytes[l4] == 8 && is_node[0] || bytes[l4] == 0 && is_node[1] => (l4 + 4, l4 + 2),
        _ => return None,
    };
    let port = u16_at(bytes, port_at);
    let no_checksum = bytes[l3 + 9] == UDP && u16_at(bytes, check_at) == 0;
    let outer: Vec<usize> = outer.into_iter().collect();
    // A TCP checksum is carried along only where the whole header is quoted.
    let is_kept = !outer.is_empty() && bytes[l3 + 9] == TCP && bytes.len() < l4 + 20;
    if no_checksum || is_kept || bytes.len() < check_at + 2 {
        set(bytes, port_at, 0, &outer);
    } else {
        let before = u16_at(bytes, check_at);
        set(bytes, port_at, 0, &[check_at]);
        let after = u16_at(bytes, check_at);
        // Port and checksum changed under the outer checksum, which covers both.
        for &at in &outer {
            adjust(bytes, at, port, 0);
            adjust(bytes, at, before, after);
        }
    }
    Some(port)
}

/// Writes two bytes and keeps the checksums at the places given right.
fn set(bytes: &mut [u8], at: usize, value: u16, checks: &[usize]) {
    let old = u16_at(bytes, at);
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    for &check in checks {
        adjust(bytes, check, old, value);
    }
}

/// RFC 1624, equation 3. Of the two zeros of one's complement the result is always the same one.
fn adjust(bytes: &mut [u8], at: usize, old: u16, new: u16) {
    let mut sum = u32::from(!u16_at(bytes, at)) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let check = match !(sum as u16) {
        0 => 0xffff,
        check => check,
    };
    bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn addr_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}
