//! Compares what came out of the two lanes, packet by packet. The node's ports are the only thing that may differ, and they
//! must pair one to one.

use std::{collections::HashSet, fmt::Write as _, net::IpAddr};

use causeway_tests::frame::{Frame, checksums_good};

use crate::{
    archetypes::Archetype,
    canonical::{canonical, fragment_id, fragment_offset, reset_to, source, trimmed},
    differences::Difference,
    family::Family,
    frames::{Output, Outputs},
    lane::WIRE,
    ledger::{CAUSEWAY, Ledger, NF_NAT},
    mappings::{Inside, Mappings},
    packet::Flaw,
    ports::{Paired, Ports},
    report::Report,
    script::{Outlived, Shot},
};

/// A packet that was sent to both lanes.
#[derive(Debug)]
pub(crate) struct Sent<'a> {
    pub(crate) flow: u64,
    /// Its number, and its name.
    pub(crate) kind: (usize, Archetype),
    pub(crate) step: usize,
    pub(crate) shot: &'a Shot,
    /// Its mark: identification of IPv4, flow label of IPv6.
    pub(crate) id: u16,
    pub(crate) protocol: u8,
    pub(crate) remote: (IpAddr, u16),
    pub(crate) pod_port: u16,
    /// The flow leaves with the node's address.
    pub(crate) translated: bool,
}

/// The comparison's memory, of one pair of lanes.
#[derive(Debug)]
pub(crate) struct Judge {
    pub(crate) ports: Ports,
    ledger: Ledger,
    pub(crate) report: Report,
    /// Where packets are made alike.
    desk: [Vec<u8>; 2],
}

impl Judge {
    /// Of a pair of lanes that nothing has gone through.
    pub(crate) fn new(report: Report) -> Self {
        Self {
            ports: Ports::default(),
            ledger: Ledger::default(),
            report,
            desk: Default::default(),
        }
    }

    /// Compares what both lanes made of one batch.
    pub(crate) fn compare(&mut self, batch: &[Sent<'_>], outputs: [&Outputs; 2], context: &str) {
        let by_cause = outputs.map(ByCause::new);
        let mut known = 0;
        for sent in batch {
            self.report.tally(sent.kind.0).sent += 1;
            if sent.shot.same_id {
                continue;
            }
            let [left, right] = by_cause.each_ref().map(|by| by.of(sent.id));
            known += left.len() + right.len();
            self.report.tally(sent.kind.0).came_out += u64::from(!left.is_empty());
            self.report.compared += 1;
            if let Err(what) = self.compare_one(sent, left, right) {
                let allowed = sent
                    .shot
                    .differs
                    .filter(|row| row.describes(sent.shot, left, right));
                if let Some(row) = allowed {
                    *self.report.allowed.entry(row).or_default() += 1;
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
            self.report
                .find(format!("a mapping: {kind}"), || format!("{context}\n  {text}\n"));
        }
        self.report.tables[0] += 1;
        self.report.tables[1] += self.ledger.len() as u64;
    }

    /// What no packet of the batch is known to have caused, such as a RST of the node: the same list on both sides.
    fn compare_unasked(
        &mut self,
        batch: &[Sent<'_>],
        by_cause: &[ByCause<'_>; 2],
        known: usize,
        context: &str,
    ) {
        let total: usize = by_cause.iter().map(|by| by.0.len()).sum();
        let [left, right] = by_cause.each_ref().map(|by| by.of(0));
        let known = known + left.len();
        // What conntrack calls INVALID is for the node, which knows no such connection.
        let reset: HashSet<_> = batch
            .iter()
            .filter(|sent| sent.shot.differs == Some(Difference::InvalidFromOutside))
            .map(|sent| sent.remote)
            .collect();
        let left: Vec<Output<'_>> = left
            .iter()
            .copied()
            .filter(|output| reset_to(output.bytes).is_none_or(|remote| !reset.contains(&remote)))
            .collect();
        let same = left.len() == right.len() && left.iter().zip(right).all(|(a, b)| self.are_alike(a, b));
        if !same || known + right.len() != total {
            self.report.find("packets of the node's own".to_owned(), || {
                let mut example = format!("{context}\n");
                describe(&mut example, "nf_nat", &left);
                describe(&mut example, "causeway", right);
                example
            });
        }
    }

    /// The same packet, with the two ports of one flow if it has any.
    fn are_alike(&mut self, left: &Output<'_>, right: &Output<'_>) -> bool {
        let [left_port, right_port] = self.made_alike([left, right]);
        let are_one_flows = match (left_port, right_port) {
            (Some(left), Some(right)) => left == right || self.ports.has([left, right]),
            _ => true,
        };
        left.point == right.point && self.desk[0] == self.desk[1] && are_one_flows
    }

    fn compare_one(
        &mut self,
        sent: &Sent<'_>,
        left: &[Output<'_>],
        right: &[Output<'_>],
    ) -> Result<(), String> {
        if left.len() != right.len() {
            return Err(format!("{} against {} packets came out", left.len(), right.len()));
        }
        for (left, right) in left.iter().zip(right) {
            self.compare_packets(sent, left, right)?;
        }
        Ok(())
    }

    fn compare_packets(
        &mut self,
        sent: &Sent<'_>,
        left: &Output<'_>,
        right: &Output<'_>,
    ) -> Result<(), String> {
        if left.point != right.point {
            return Err(format!(
                "came out elsewhere: at point {} against {}",
                left.point, right.point
            ));
        }
        let are_same_bytes = left.bytes == right.bytes;
        let right_good = checksums_good(right.bytes);
        let left_good = if are_same_bytes {
            right_good
        } else {
            checksums_good(left.bytes)
        };
        let (Some(left_good), Some(right_good)) = (left_good, right_good) else {
            return Err("an unreadable packet came out".to_owned());
        };
        if left_good != right_good {
            return Err(format!("checksum right: {left_good} against {right_good}"));
        }
        if !right_good && sent.shot.spec.flaw == Flaw::None {
            return Err("wrong checksums on both sides".to_owned());
        }
        let [left_port, right_port] = self.made_alike([left, right]);
        let ports = match (left_port, right_port) {
            (Some(left), Some(right)) => Some([left, right]),
            (None, None) => None,
            _ => return Err("the node's address stands in other places".to_owned()),
        };
        if let Some(ports) = ports {
            self.pair(sent, ports)?;
        }
        let [a, b] = &self.desk;
        if a.len() != b.len() {
            return Err(format!("lengths: {} against {} bytes", a.len(), b.len()));
        }
        if fragment_id(right.bytes).is_some_and(|id| id != u32::from(sent.id)) {
            return Err("Causeway has changed a fragment's identification".to_owned());
        }
        if let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) {
            return Err(format!(
                "bytes differ: from {at} on, counted from the frame's start"
            ));
        }
        let node = Family::of(sent.remote.0).node();
        if sent.shot.point != WIRE && right.point == WIRE && source(right.bytes) == Some(node) {
            self.show_mapping(sent, ports);
        }
        Ok(())
    }

    /// Puts what may not differ of either on the desk, and returns the node's ports that stood in them.
    fn made_alike(&mut self, outputs: [&Output<'_>; 2]) -> [Option<u16>; 2] {
        let mut ports = [None; 2];
        for ((output, desk), port) in outputs.into_iter().zip(&mut self.desk).zip(&mut ports) {
            desk.clear();
            desk.extend_from_slice(trimmed(output.bytes));
            *port = canonical(desk);
        }
        ports
    }

    /// The node's ports of one flow, on either side.
    fn pair(&mut self, sent: &Sent<'_>, ports: [u16; 2]) -> Result<(), String> {
        let opens = sent.translated && sent.shot.point != WIRE;
        if let Paired::Anew { kept } = self.ports.pair(sent, ports, opens)? {
            self.report.mappings += 1;
            for (count, kept) in self.report.kept_ports.iter_mut().zip(kept) {
                *count += u64::from(kept);
            }
        }
        Ok(())
    }

    /// A pod's packet has left with these ports of the node's. A later fragment has none.
    fn show_mapping(&mut self, sent: &Sent<'_>, ports: Option<[u16; 2]>) {
        let Some(inside) = Inside::of(&sent.shot.spec) else {
            return;
        };
        match ports {
            Some(ports) => self.ledger.shown(inside, ports),
            None if !inside.has_port() => self.ledger.shown(inside, [0; 2]),
            None => {}
        }
    }

    fn note(
        &mut self,
        sent: &Sent<'_>,
        what: &str,
        left: &[Output<'_>],
        right: &[Output<'_>],
        context: &str,
    ) {
        // What follows the colon is one example's.
        let kind = what.split(':').next().unwrap_or_default();
        let title = format!("{}, step {}: {kind}", sent.kind.1, sent.step);
        self.report.find(title, || {
            let mut example = format!(
                "{context}\n  {what}\n  sent at point {}: {:?}\n",
                sent.shot.point, sent.shot.spec
            );
            describe(&mut example, "nf_nat", left);
            describe(&mut example, "causeway", right);
            example
        });
    }
}

fn describe(text: &mut String, name: &str, outputs: &[Output<'_>]) {
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
        let ip = Frame::parse(false, output.bytes).and_then(|frame| frame.ip);
        writeln!(text, "  {name}: at point {}, {ip:?}\n    {hex}", output.point).ok();
    }
}

/// A lane's packets in the order of what caused them.
struct ByCause<'a>(Vec<Output<'a>>);

impl<'a> ByCause<'a> {
    fn new(outputs: &'a Outputs) -> Self {
        let mut outputs: Vec<Output<'a>> = outputs.iter().collect();
        // The fragments of a datagram may take turns.
        outputs.sort_by_key(|output| (output.cause, output.point, fragment_offset(output.bytes)));
        Self(outputs)
    }

    fn of(&self, cause: u16) -> &[Output<'a>] {
        let start = self.0.partition_point(|output| output.cause < cause);
        let len = self.0[start..].partition_point(|output| output.cause == cause);
        &self.0[start..start + len]
    }
}
