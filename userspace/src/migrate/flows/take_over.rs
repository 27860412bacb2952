//! From conntrack to Causeway.

use std::{collections::BTreeSet, net::Ipv4Addr};

use causeway_common::{
    flow::{Flags, FlowEntry, State},
    tuple::TCP,
};
use serde::Serialize;

use super::{
    super::conntrack::{Connection, Conntrack, Tuple},
    Flows, Result,
    entries::{Direction, key, progress},
    held::held,
    let_packets_pass,
};
use crate::datapath::now;

/// How many flows were taken over.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Imported {
    /// Carried from now on.
    pub(crate) carried: usize,
    /// Of services: the kernel's, with our translation.
    pub(crate) kernel: usize,
}

/// A connection that the kernel translates as it leaves the node.
struct Masqueraded {
    connection: Connection,
    direction: Direction,
}

impl Flows {
    /// Notes the flows that others have opened towards these pods: what the pods answer keeps their addresses. Returns how
    /// many were not noted yet.
    pub(crate) fn note_answers(
        &mut self,
        pods: &BTreeSet<Ipv4Addr>,
        conntrack: &mut Conntrack,
    ) -> Result<usize> {
        let mut noted = 0;
        for Connection { original, reply, .. } in conntrack.connections()? {
            let is_inbound = pods.contains(&original.dst.0) && !pods.contains(&original.src.0);
            if !is_inbound || reply != original.reversed() || original.src.0 == self.node() {
                continue;
            }
            let (question, answer) = (key(&original, true), key(&reply, false));
            if self.get(&answer).is_none_or(|entry| !entry.has(Flags::ANSWER)) {
                self.put(question, FlowEntry::kernel(0, now()))?;
                self.put(answer, FlowEntry::kernel(Flags::ANSWER, now()))?;
                noted += 1;
            }
        }
        Ok(noted)
    }

    /// Makes the flows of pods that the kernel translates as they leave the node Causeway's. No new ones of that kind may
    /// come meanwhile.
    pub(crate) fn take_over(&mut self, conntrack: &mut Conntrack) -> Result<Imported> {
        self.release_held(conntrack)?;
        let (mut once, mut twice, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for connection in conntrack.connections()? {
            let Some(direction) = self.leaving(&connection) else {
                // What is masqueraded ends with the address that it is masqueraded with; what is translated by itself stays.
                if connection.has_source_translation() && connection.reply.dst.0 == self.node() {
                    others.push(connection);
                }
                continue;
            };
            let of = if connection.destination().is_none() {
                &mut once
            } else {
                &mut twice
            };
            of.push(Masqueraded {
                connection,
                direction,
            });
        }
        self.carry(&once, conntrack)?;
        self.share(&twice, conntrack)?;
        for connection in &others {
            conntrack.remove(connection)?;
            conntrack.create(connection)?;
        }
        Ok(Imported {
            carried: once.len(),
            kernel: twice.len(),
        })
    }

    /// The directions of a pod's connection that leaves by the uplink with the node's address.
    fn leaving(&self, connection: &Connection) -> Option<Direction> {
        let source = connection.source().filter(|source| source.0 == self.node())?;
        let remote = connection.reply.src;
        let stays = |address: Ipv4Addr| address == self.node() || self.pods.contains_key(&address);
        if stays(remote.0) {
            return None;
        }
        let inside = Tuple {
            dst: remote,
            ..connection.original
        };
        self.direction(&inside, source)
    }

    /// Flows without a service are carried. Of TCP the answers' entry comes first: conntrack must not see answers to what it
    /// has not seen, and what is still on its way through the kernel is left alone. Of others it comes last, because a
    /// first packet on its way would be taken for the node's, and be given another port.
    fn carry(&mut self, flows: &[Masqueraded], conntrack: &mut Conntrack) -> Result<()> {
        for first_pass in [true, false] {
            for Masqueraded {
                connection,
                direction,
            } in flows
            {
                let (state, progress) = (self.state_for(&direction.pod), progress(connection));
                let is_tcp = direction.key.protocol == TCP;
                if first_pass == is_tcp {
                    // What the programs noted of the kernel's translation.
                    self.remove(&direction.answer.reversed())?;
                    self.put(direction.answer, self.reverse(direction, state, progress))?;
                }
                if first_pass {
                    self.put(direction.key, self.forward(direction, state, progress))?;
                }
            }
            if !flows.is_empty() {
                let_packets_pass();
            }
        }
        flows.iter().try_for_each(
            |Masqueraded {
                 connection,
                 direction,
             }| {
                self.remember(&direction.key, direction.port)?;
                conntrack.remove(connection)
            },
        )
    }

    /// Of a flow that a service leads outside, the kernel keeps the service's translation. Its connection has to be made
    /// anew for that, and meanwhile no packet may come.
    fn share(&mut self, flows: &[Masqueraded], conntrack: &mut Conntrack) -> Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        for Masqueraded {
            connection,
            direction,
        } in flows
        {
            let progress = progress(connection);
            self.put(
                key(&connection.original, true),
                held(self.forward(direction, State::CARRIED, progress)),
            )?;
            self.put(
                direction.answer,
                held(self.reverse(direction, State::CARRIED, progress)),
            )?;
        }
        let_packets_pass();
        for Masqueraded {
            connection,
            direction,
        } in flows
        {
            self.keep_service(connection, direction, conntrack)?;
        }
        Ok(())
    }
}
