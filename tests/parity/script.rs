//! A flow as a list of steps, written before anything is sent. A step is sent in one go, and what comes out of it is compared
//! before the next.

use std::net::IpAddr;

use crate::{
    archetypes::Archetype,
    differences::Difference,
    family::Family,
    lane::WIRE,
    mappings::Inside,
    packet::{Body, End, Flaw, Spec, flag},
};

/// A packet and where it enters.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    pub(crate) point: usize,
    pub(crate) spec: Spec,
    /// A fragment of the datagram of the shot before: it has the same identification.
    pub(crate) same_id: bool,
    /// The identification, where it must be the same in several steps: from 0x8000 on.
    pub(crate) id: Option<u16>,
    /// Opens a new connection on the tuple of one that is over: the lanes may choose anew.
    pub(crate) anew: bool,
    /// The difference that is right here.
    pub(crate) differs: Option<Difference>,
    /// With this packet conntrack forgets the mapping, and Causeway does not.
    pub(crate) forgets: Option<Inside>,
    /// Comes when the flow has been forgotten.
    pub(crate) late: bool,
}

/// Who still has a flow's mapping after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlived {
    Both,
    CausewayAlone,
    Neither,
}

/// A pause in which nothing is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// Number of the step that comes after it.
    pub(crate) before: usize,
    pub(crate) outlived: Outlived,
}

/// A flow's packets, in their order.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) archetype: Archetype,
    /// The pod's end, the remote's end: for translated flows, who shares the remote must not share the port.
    pub(crate) pod_port: u16,
    pub(crate) protocol: u8,
    pub(crate) remote: (IpAddr, u16),
    /// The remote sees the node's address.
    pub(crate) translated: bool,
    pub(crate) steps: Vec<Vec<Shot>>,
    pub(crate) rests: Vec<Rest>,
}

impl Script {
    pub(crate) fn push(&mut self, point: usize, spec: Spec) -> &mut Shot {
        self.steps.push(vec![Shot::new(point, spec)]);
        self.last()
    }

    /// Adds to the last step.
    pub(crate) fn also(&mut self, point: usize, spec: Spec) -> &mut Shot {
        if self.steps.is_empty() {
            self.steps.push(Vec::new());
        }
        let last = self.steps.len() - 1;
        self.steps[last].push(Shot::new(point, spec));
        self.last()
    }

    pub(crate) fn rest(&mut self, outlived: Outlived) {
        self.rests.push(Rest {
            before: self.steps.len(),
            outlived,
        });
    }

    /// Sends nothing when the flow has been forgotten.
    pub(crate) fn leave_out_late_ones(&mut self) {
        for step in &mut self.steps {
            step.retain(|shot| !shot.late);
        }
    }

    /// What may have a mapping: whatever a pod sends.
    pub(crate) fn insides(&self) -> impl Iterator<Item = Inside> {
        let shots = self.steps.iter().flatten();
        shots
            .filter(|shot| shot.point != WIRE)
            .filter_map(|shot| Inside::of(&shot.spec))
    }

    fn last(&mut self) -> &mut Shot {
        let step = self.steps.last_mut().expect("a step was just added");
        step.last_mut().expect("a shot was just added")
    }
}

impl Shot {
    fn new(point: usize, spec: Spec) -> Self {
        Self {
            point,
            spec,
            same_id: false,
            id: None,
            anew: false,
            differs: None,
            forgets: None,
            late: false,
        }
    }
}

/// The two ends of a flow between a pod and a remote, and how far TCP has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    /// The pod's point, from 1 on.
    pub(crate) pod: usize,
    /// The pod's own end.
    pub(crate) own: End,
    /// The pod's end as the remote sees it.
    pub(crate) seen: End,
    pub(crate) remote: End,
    /// Next sequence number of the pod.
    pub(crate) up: u32,
    /// Next sequence number of the remote.
    pub(crate) down: u32,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Pod,
    Remote,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Pod => Self::Remote,
            Self::Remote => Self::Pod,
        }
    }
}

impl Talk {
    pub(crate) fn family(&self) -> Family {
        self.spec(
            Side::Pod,
            Body::Udp {
                len: 0,
                checksum: true,
            },
        )
        .family()
    }

    /// A packet of one side.
    pub(crate) fn spec(&self, side: Side, body: Body) -> Spec {
        match side {
            Side::Pod => Spec::new(self.own, self.remote, body),
            Side::Remote => Spec::new(self.remote, self.seen, body),
        }
    }

    pub(crate) fn point(&self, side: Side) -> usize {
        match side {
            Side::Pod => self.pod,
            Side::Remote => WIRE,
        }
    }

    /// The segment that this side sends now, with `len` bytes. The sequence number goes on.
    pub(crate) fn segment(&mut self, side: Side, flags: u8, len: usize) -> Spec {
        let (next, other) = match side {
            Side::Pod => (&mut self.up, self.down),
            Side::Remote => (&mut self.down, self.up),
        };
        let body = Body::Tcp {
            seq: *next,
            ack: if flags & flag::ACK == 0 { 0 } else { other },
            flags,
            len,
        };
        let takes = u32::from(flags & flag::SYN != 0) + u32::from(flags & flag::FIN != 0);
        *next = next.wrapping_add(len as u32 + takes);
        self.spec(side, body)
    }

    /// Adds a step with the next segment of a side.
    pub(crate) fn tcp(&mut self, script: &mut Script, side: Side, flags: u8, len: usize) {
        let spec = self.segment(side, flags, len);
        script.push(self.point(side), spec);
    }

    /// SYN, SYN-ACK, ACK.
    pub(crate) fn open(&mut self, script: &mut Script, by: Side) {
        self.tcp(script, by, flag::SYN, 0);
        self.tcp(script, by.other(), flag::SYN | flag::ACK, 0);
        self.tcp(script, by, flag::ACK, 0);
    }

    /// Data of one side and its acknowledgement.
    pub(crate) fn data(&mut self, script: &mut Script, side: Side, len: usize) {
        self.tcp(script, side, flag::PSH | flag::ACK, len);
        self.tcp(script, side.other(), flag::ACK, 0);
    }

    /// FIN of one side, FIN of the other, and the last ACK.
    pub(crate) fn close(&mut self, script: &mut Script, by: Side) {
        self.tcp(script, by, flag::FIN | flag::ACK, 0);
        self.tcp(script, by.other(), flag::FIN | flag::ACK, 0);
        self.tcp(script, by, flag::ACK, 0);
    }

    /// Adds a step with a datagram.
    pub(crate) fn udp<'a>(&self, script: &'a mut Script, side: Side, len: usize) -> &'a mut Shot {
        let spec = self.spec(side, Body::Udp { len, checksum: true });
        script.push(self.point(side), spec)
    }

    /// Adds a step with an echo request or reply.
    pub(crate) fn echo<'a>(
        &self,
        script: &'a mut Script,
        side: Side,
        reply: bool,
        seq: u16,
        len: usize,
    ) -> &'a mut Shot {
        let (question, answer) = self.family().echo();
        let kind = if reply { answer } else { question };
        script.push(self.point(side), self.spec(side, Body::query(kind, seq, len)))
    }

    /// A packet of the pod as the remote's side saw it, one hop on.
    pub(crate) fn as_seen_outside(&self, sent: &Spec) -> Spec {
        Spec {
            src: self.seen,
            ttl: sent.ttl - 1,
            flaw: Flaw::None,
            padding: 0,
            ..sent.clone()
        }
    }

    /// A packet of the remote as the pod received it.
    pub(crate) fn as_seen_inside(&self, sent: &Spec) -> Spec {
        Spec {
            dst: self.own,
            ttl: sent.ttl - 1,
            flaw: Flaw::None,
            padding: 0,
            ..sent.clone()
        }
    }
}
