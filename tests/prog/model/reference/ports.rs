//! Who holds which port, for how long, and when a connection has ended.

use super::{Ended, Flow, Hold, Model, Stage, Verdict, wrong};
use crate::model::operation::{Protocol, Says, Stack, Tuple, USABLE};

impl Model {
    /// A first packet was given to the stack and nothing came out of it.
    pub(super) fn offered(&mut self, tuple: Tuple, opens: bool, stack: Stack) {
        let is_over = self.is_over(tuple);
        let flow = self.flows.entry(tuple).or_default();
        if stack == Stack::Translates {
            return;
        }
        flow.is_idle = false;
        match flow.stage {
            _ if !opens => {}
            Stage::Absent => flow.stage = Stage::Offered,
            Stage::Carried | Stage::Kernel if is_over => {
                (flow.stage, flow.port, flow.ended) = (Stage::Offered, None, Ended::No);
            }
            _ if flow.ended != Ended::No => flow.unsure = true,
            _ => {}
        }
    }

    /// A port was claimed for a packet that opens a flow.
    ///
    /// A flow that has lost its forward half finds its port again, unless the server is crowded: what opens a flow there
    /// is given a free port without a search for one of its own.
    pub(super) fn claimed(&mut self, tuple: Tuple, port: u16, stage: Stage, is_crowded: bool) -> Verdict {
        let Flow {
            released,
            ended,
            port: before,
            ..
        } = self.flow(tuple);
        let mine: Vec<u16> = self
            .holds
            .iter()
            .filter(|(_, hold)| hold.owner == tuple)
            .map(|((_, _, port), _)| *port)
            .collect();
        let now = self.released;
        if self.is_free(tuple, tuple.port) {
            let goes_on = ended == Ended::Perhaps && before == Some(port);
            if port != tuple.port && !goes_on {
                return wrong(format!("its own port is free and it got {port}"));
            }
        } else if !self.is_free(tuple, port) {
            let hold = self.holds.get(&(tuple.protocol, tuple.server, port));
            return wrong(format!("it got port {port}, held by {hold:?}"));
        } else if tuple.protocol != Protocol::Icmp && !USABLE.contains(&port) {
            return wrong(format!("it got port {port}, which is reserved"));
        } else if !mine.is_empty() && released == now && !is_crowded && !mine.contains(&port) {
            return wrong(format!("it held {mine:?} and got {port}"));
        }
        let hold = Hold {
            owner: tuple,
            stage,
            is_idle: false,
        };
        if let Some(previous) = self.holds.insert((tuple.protocol, tuple.server, port), hold)
            && previous.owner != tuple
        {
            self.released += 1;
            let owner = self.flows.entry(previous.owner).or_default();
            if owner.port == Some(port) {
                *owner = Flow::default();
            } else {
                owner.unsure = true;
            }
        }
        let goes_on = ended == Ended::Perhaps && before == Some(port);
        let flow = self.flows.entry(tuple).or_default();
        (flow.stage, flow.port, flow.is_idle) = (stage, Some(port), false);
        flow.released = now;
        flow.unsure |= goes_on;
        if !goes_on {
            (flow.ended, flow.fins) = (Ended::No, [false; 2]);
        }
        Ok(())
    }

    pub(super) fn is_free(&self, tuple: Tuple, port: u16) -> bool {
        match self.holds.get(&(tuple.protocol, tuple.server, port)) {
            None => true,
            Some(&hold) => hold.owner == tuple || self.is_expired(port, hold),
        }
    }

    /// Neither half was used within its lifetime. A forward half that names another port is another mapping's.
    pub(super) fn is_expired(&self, port: u16, hold: Hold) -> bool {
        let flow = self.flow(hold.owner);
        hold.is_idle && (flow.port != Some(port) || flow.is_idle)
    }

    /// Whether both directions of the flow have been idle.
    pub(super) fn is_over(&self, tuple: Tuple) -> bool {
        let flow = self.flow(tuple);
        let hold = flow
            .port
            .and_then(|port| self.holds.get(&(tuple.protocol, tuple.server, port)));
        flow.is_idle && hold.is_none_or(|hold| hold.is_idle)
    }

    /// `side`: 0 the client, 1 the server.
    pub(super) fn heard(&mut self, tuple: Tuple, says: Says, side: usize) {
        if tuple.protocol != Protocol::Tcp {
            return;
        }
        let flow = self.flows.entry(tuple).or_default();
        match says {
            Says::Fin => flow.fins[side] = true,
            Says::Reset => flow.ended = Ended::Perhaps,
            Says::Open | Says::Continue => {}
        }
        if flow.fins == [true; 2] && flow.ended == Ended::No {
            flow.ended = Ended::Yes;
        }
    }
}
