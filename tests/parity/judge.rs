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
    canonical::{canonical, cause, fragment_offset, reset_to, source, trim},
    differences::Difference,
    lane::{Output, WIRE},
    ledger::{CAUSEWAY, Ledger, NF_NAT},
    mappings::{Inside, Mappings},
    packet::{Flaw, ICMP},
    script::{Outlived, Shot},
};

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
    pub(crate) ledger: Ledger,
    /// How often the lanes' tables were compared, and the mappings that were in them.
    pub(crate) tables: [u64; 2],
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
        self.ledger = Ledger::default();
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
                    if row.is_mapped_by_nf_nat_alone()
                        && let Some(inside) = Inside::of(&sent.shot.spec)
                    {
                        self.ledger.only(inside, NF_NAT);
                    }
                } else {
                    self.note(sent, &what, left, right, context);
                }
            } else if let Some(row) = sent.shot.differs {
                let what = format!("the lanes agree, but {row:?} says they differ");
                self.note(sent, &what, left, right, context);
            }
        }
        self.compare_unasked(batch, &by_cause, known, context);
        for inside in batch.iter().filter_map(|sent| sent.shot.forgets) {
            self.ledger.only(inside, CAUSEWAY);
        }
    }

    /// A flow has rested.
    pub(crate) fn outlived(&mut self, outlived: Outlived, insides: impl Iterator<Item = Inside>) {
        for inside in insides {
            match outlived {
                Outlived::Both => {}
                Outlived::CausewayAlone => self.ledger.only(inside, CAUSEWAY),
                Outlived::Neither => self.ledger.over(inside),
            }
        }
    }

    /// Compares the lanes' tables with what the packets have shown.
    pub(crate) fn compare_tables(&mut self, tables: [&Mappings; 2], context: &str) {
        for (kind, text) in self.ledger.contradictions(tables) {
            let found = self.found.entry(format!("a mapping: {kind}"));
            let found = found.or_insert_with(|| Found {
                times: 0,
                example: format!("{context}\n  {text}\n"),
            });
            found.times += 1;
        }
        self.tables[0] += 1;
        self.tables[1] += self.ledger.len() as u64;
    }

    /// What no packet of the batch is known to have caused, such as a RST of the node: the same list on both sides.
    fn compare_unasked(
        &mut self,
        batch: &[Sent<'_>],
        by_cause: &[HashMap<u16, Vec<&Output>>; 2],
        known: usize,
        context: &str,
    ) {
        let total: usize = by_cause.iter().flat_map(HashMap::values).map(Vec::len).sum();
        let none = Vec::new();
        let [left, right] = by_cause
            .each_ref()
            .map(|by| by.get(&0).unwrap_or(&none).as_slice());
        // What conntrack calls INVALID is for the node, which knows no such connection.
        let reset: HashSet<_> = batch
            .iter()
            .filter(|sent| sent.shot.differs == Some(Difference::InvalidFromOutside))
            .map(|sent| sent.remote)
            .collect();
        let known = known + left.len();
        let left: Vec<&Output> = left
            .iter()
            .copied()
            .filter(|output| reset_to(&output.bytes).is_none_or(|remote| !reset.contains(&remote)))
            .collect();
        let left = left.as_slice();
        let same = left.len() == right.len() && left.iter().zip(right).all(|(a, b)| self.are_alike(a, b));
        if !same || known + right.len() != total {
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

    /// The same packet, with the two ports of one flow if it has any.
    fn are_alike(&self, left: &Output, right: &Output) -> bool {
        let (mut a, mut b) = (left.bytes.clone(), right.bytes.clone());
        for bytes in [&mut a, &mut b] {
            trim(bytes);
        }
        let (left_ports, right_ports) = (canonical(&mut a), canonical(&mut b));
        let mut pairs = left_ports.iter().zip(&right_ports);
        left.point == right.point
            && a == b
            && pairs.all(|(&left, &right)| {
                left == right || self.ports.values().any(|ports| *ports == [left, right])
            })
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
            _ if a.len() != b.len() => {
                return Err(format!("lengths: {} against {} bytes", a.len(), b.len()));
            }
            Some(at) => {
                return Err(format!(
                    "bytes differ: from {at} on, counted from the frame's start"
                ));
            }
            None => {}
        }
        if sent.shot.point != WIRE && right.point == WIRE && source(&right.bytes) == NODE {
            self.show_mapping(sent, &left_ports, &right_ports);
        }
        Ok(())
    }

    /// A pod's packet has left with these ports of the node's. A later fragment has none.
    fn show_mapping(&mut self, sent: &Sent<'_>, left: &[u16], right: &[u16]) {
        let Some(inside) = Inside::of(&sent.shot.spec) else {
            return;
        };
        match (left.first(), right.first()) {
            (Some(&left), Some(&right)) => self.ledger.shown(inside, [left, right]),
            _ if !inside.has_port() => self.ledger.shown(inside, [0; 2]),
            _ => {}
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
        // A port of 0 is none, and gets one.
        if !kept[1] && sent.pod_port != 0 && !self.used.contains(&own) {
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
        writeln!(text, "  {name}: nothing").ok();
    }
    for output in outputs {
        let hex = output
            .bytes
            .iter()
            .take(110)
            .fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").ok();
                hex
            });
        let ip = Frame::parse(false, &output.bytes).and_then(|frame| frame.ip);
        writeln!(text, "  {name}: at point {}, {ip:?}\n    {hex}", output.point).ok();
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
    for outputs in by_cause.values_mut() {
        // The fragments of a datagram may take turns.
        outputs.sort_by_key(|output| (output.point, fragment_offset(&output.bytes)));
    }
    by_cause
}
