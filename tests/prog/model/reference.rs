//! What the documentation promises of ports and states, as plain bookkeeping. No decision of the programs is used.
//!
//! The model is told what an operation came to, says whether that was allowed, and follows. Where more than one outcome is right (a
//! reset is tentative, a port that somebody else gave back may be taken) it follows the one that it was shown.

mod ports;
mod sent;

use std::collections::{BTreeMap, BTreeSet};

use super::operation::{Client, Protocol, Says, Server, Tuple};

/// What became of a client's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Went {
    /// Dropped by the datapath.
    Refused,
    /// Dropped by the stack, to which it was given.
    Stopped,
    /// It left with the node's address; `carried`: past the stack.
    AsNode { port: u16, carried: bool },
    /// It left with the client's own address.
    AsItself { port: u16 },
}

/// What became of a server's packet to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Left to the node's own stack, untouched.
    Node,
    Client {
        client: Client,
        port: u16,
        carried: bool,
    },
}

/// State of a flow's forward half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    #[default]
    Absent,
    Offered,
    Carried,
    Kernel,
}

/// Whether a TCP connection has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ended {
    #[default]
    No,
    /// After a reset, which later packets may call back.
    Perhaps,
    Yes,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    stage: Stage,
    /// Port of the node's that the forward half names.
    port: Option<u16>,
    /// No packet of the client within the lifetime.
    is_idle: bool,
    ended: Ended,
    /// Who has sent a FIN: client, server.
    fins: [bool; 2],
    /// The stack translates the client's packets.
    by_service: bool,
    /// How often a port had been given back when this one was claimed.
    released: u32,
    /// The table is read, not judged, after the next operation.
    unsure: bool,
    /// The port that it was given in place of its own. Stays when the forward half is lost.
    moved: Option<Moved>,
}

/// A port that a flow comes back with.
#[derive(Clone, Copy, Debug)]
struct Moved {
    port: u16,
    /// Otherwise it may have begun anew.
    is_certain: bool,
}

/// Who gets what arrives at a port of the node.
#[derive(Clone, Copy, Debug)]
struct Hold {
    owner: Tuple,
    stage: Stage,
    /// No packet of the server within the lifetime.
    is_idle: bool,
    /// Perhaps it is not idle: it depends on whether the connection has ended.
    is_doubtful: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    flows: BTreeMap<Tuple, Flow>,
    holds: BTreeMap<(Protocol, Server, u16), Hold>,
    /// How often a port has been given back.
    released: u32,
    /// Tuples under which a server has opened a flow to the pod.
    called: BTreeSet<Tuple>,
}

type Verdict = Result<(), String>;

fn wrong(what: impl Into<String>) -> Verdict {
    Err(what.into())
}

impl Model {
    pub(crate) fn answered(
        &mut self,
        protocol: Protocol,
        server: Server,
        port: u16,
        says: Says,
        came: Came,
    ) -> Verdict {
        let hold = self.holds.get(&(protocol, server, port)).copied();
        match (came, hold) {
            (Came::Node, None) => Ok(()),
            // The node's own port needs no translation.
            (Came::Node, Some(hold)) if (hold.owner.client, hold.owner.port) == (Client::Node, port) => {
                self.heard(hold.owner, says, 1);
                self.keep(protocol, server, port);
                Ok(())
            }
            (Came::Node, Some(hold)) if self.is_expired(port, hold) => Ok(()),
            (
                Came::Client {
                    client,
                    port: to,
                    carried,
                },
                Some(hold),
            ) => {
                if (hold.owner.client, hold.owner.port) != (client, to) {
                    return wrong(format!(
                        "an answer for {:?} was delivered to {client:?} {to}",
                        hold.owner
                    ));
                }
                if carried != (hold.stage == Stage::Carried) {
                    return wrong(format!(
                        "an answer of a flow that is {:?}: carried {carried}",
                        hold.stage
                    ));
                }
                self.heard(hold.owner, says, 1);
                self.keep(protocol, server, port);
                Ok(())
            }
            (came, hold) => wrong(format!(
                "port {port} is held by {hold:?}, and what arrived went to {came:?}"
            )),
        }
    }

    /// An answer has come by a port of the node's.
    fn keep(&mut self, protocol: Protocol, server: Server, port: u16) {
        if let Some(hold) = self.holds.get_mut(&(protocol, server, port)) {
            (hold.is_idle, hold.is_doubtful) = (false, false);
        }
    }

    pub(crate) fn called(&mut self, tuple: Tuple, says: Says) {
        let opens = says == Says::Open || tuple.protocol == Protocol::Udp;
        // It is the flow's own server that says so, past the translation: it is believed.
        if matches!(says, Says::Fin | Says::Reset)
            && let Some(flow) = self.flows.get_mut(&tuple)
        {
            flow.ended = Ended::Perhaps;
        }
        // The answer to an echo request has no tuple of a pod's own request.
        if opens && tuple.protocol != Protocol::Icmp && self.flow(tuple).port.is_none() {
            self.called.insert(tuple);
            self.unsure(tuple);
        }
    }

    pub(crate) fn lost(&mut self, tuple: Tuple) {
        let flow = self.flows.entry(tuple).or_default();
        // What the other half knows of the connection's end is not looked into.
        let is_open = flow.ended == Ended::No && flow.fins == [false; 2];
        *flow = Flow {
            released: flow.released,
            by_service: flow.by_service,
            moved: flow.moved.map(|moved| Moved {
                is_certain: moved.is_certain && is_open,
                ..moved
            }),
            ..Flow::default()
        };
        if self.called.remove(&tuple) {
            self.unsure(tuple);
        }
    }

    pub(crate) fn aged(&mut self, tuple: Tuple, forward: bool, reverse: bool) {
        if self.called.contains(&tuple) {
            self.unsure(tuple);
        }
        let Some(flow) = self.flows.get_mut(&tuple) else {
            return;
        };
        flow.is_idle |= forward;
        if let Some(port) = flow.port
            && reverse
            && let Some(hold) = self.holds.get_mut(&(tuple.protocol, tuple.server, port))
            && hold.owner == tuple
        {
            (hold.is_idle, hold.is_doubtful) = (true, false);
        }
    }

    pub(crate) fn replaced(&mut self, client: Client) {
        self.flows.retain(|tuple, _| tuple.client != client);
        self.called.retain(|tuple| tuple.client != client);
        self.holds.retain(|_, hold| hold.owner.client != client);
        self.released += 1;
    }

    /// Compares what the table says of a tuple, or follows it where both are right.
    pub(crate) fn compare(&mut self, tuple: Tuple, (stage, port): (Stage, Option<u16>)) -> Verdict {
        // What is over may have been forgotten to make room, both halves.
        if stage == Stage::Absent && self.flow(tuple).stage != Stage::Absent && self.is_over(tuple) {
            // Nobody looks for a half that was left behind by an earlier connection.
            if let Some(port) = self.flow(tuple).port {
                self.holds.remove(&(tuple.protocol, tuple.server, port));
            }
            self.lost(tuple);
            self.released += 1;
            return Ok(());
        }
        let flow = self.flows.entry(tuple).or_default();
        if tuple.server == Server::Vnet || tuple.client == Client::Node {
            return Ok(());
        }
        if flow.unsure || self.called.contains(&tuple) {
            (flow.stage, flow.port, flow.unsure) = (stage, port, false);
            if stage == Stage::Offered {
                flow.port = None;
            }
            if let Some(moved) = &mut flow.moved {
                moved.is_certain = false;
            }
            return Ok(());
        }
        if (flow.stage, flow.port) == (stage, port) {
            Ok(())
        } else {
            wrong(format!(
                "{:?} by {:?} stands in the table as {stage:?} by {port:?}",
                flow.stage, flow.port
            ))
        }
    }

    /// Tuples to compare: those that are not certain, or all.
    pub(crate) fn tuples(&self, all: bool) -> Vec<Tuple> {
        let flows = self.flows.iter().filter(|(_, flow)| all || flow.unsure);
        flows.map(|(tuple, _)| *tuple).collect()
    }

    pub(crate) fn is_by_service(&self, protocol: Protocol, server: Server, port: u16) -> bool {
        let hold = self.holds.get(&(protocol, server, port));
        hold.is_some_and(|hold| self.flow(hold.owner).by_service)
    }

    pub(crate) fn port_of(&self, tuple: Tuple) -> Option<u16> {
        self.flow(tuple).port
    }

    fn flow(&self, tuple: Tuple) -> Flow {
        self.flows.get(&tuple).copied().unwrap_or_default()
    }

    fn unsure(&mut self, tuple: Tuple) {
        self.flows.entry(tuple).or_default().unsure = true;
    }
}
