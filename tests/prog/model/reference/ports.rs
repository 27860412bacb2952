//! Who holds which port, for how long, and when a connection has ended.

use super::{Ended, Flow, Hold, Model, Moved, Stage, Verdict, wrong};
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
                flow.moved = None;
            }
            _ if flow.ended != Ended::No => flow.unsure = true,
            _ => {}
        }
    }

    /// A port was claimed for a packet that opens a flow.
    ///
    /// A flow that has lost its forward half finds its port again, whatever else is free. One that begins anew has its own
    /// port if it can; else one that it held before, unless the server is crowded, where no such is looked for.
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
        let kept = self.kept(tuple);
        if let Some(kept) = kept
            && (kept.is_certain || kept.port == port)
        {
            if port != kept.port {
                return wrong(format!("it had port {} and got {port}", kept.port));
            }
        } else if self.is_free(tuple, tuple.port) {
            let goes_on = ended == Ended::Perhaps && before == Some(port);
            if port != tuple.port && !goes_on {
                return wrong(format!("its own port is free and it got {port}"));
            }
        } else if !self.may_be_free(tuple, port) {
            let hold = self.holds.get(&(tuple.protocol, tuple.server, port));
            return wrong(format!("it got port {port}, held by {hold:?}"));
        } else if tuple.protocol != Protocol::Icmp && !USABLE.contains(&port) {
            return wrong(format!("it got port {port}, which is reserved"));
        } else if !mine.is_empty() && released == now && !is_crowded && !mine.contains(&port) {
            return wrong(format!("it held {mine:?} and got {port}"));
        }
        let goes_on = ended == Ended::Perhaps && before == Some(port);
        let key = (tuple.protocol, tuple.server, port);
        // A packet of a connection that goes on leaves the half of the answers alone.
        let stays_idle = goes_on && self.holds.get(&key).is_some_and(|hold| hold.is_idle);
        let hold = Hold {
            owner: tuple,
            stage,
            is_idle: stays_idle,
            is_doubtful: stays_idle,
        };
        if let Some(previous) = self.holds.insert(key, hold)
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
        let flow = self.flows.entry(tuple).or_default();
        (flow.stage, flow.port, flow.is_idle) = (stage, Some(port), false);
        flow.released = now;
        flow.moved = (port != tuple.port).then_some(Moved {
            port,
            is_certain: true,
        });
        flow.unsure |= goes_on;
        if !goes_on {
            (flow.ended, flow.fins) = (Ended::No, [false; 2]);
        }
        Ok(())
    }

    /// A socket of the node opens another connection: what an earlier one was translated to is nobody's.
    pub(super) fn began_anew(&mut self, tuple: Tuple) {
        if let Some(before) = self.flow(tuple).port {
            self.holds.remove(&(tuple.protocol, tuple.server, before));
            self.lost(tuple);
            self.released += 1;
        }
    }

    /// The port that is not the tuple's own and that it comes back with: what it was given last, if nobody has it since.
    pub(super) fn kept(&self, tuple: Tuple) -> Option<Moved> {
        let flow = self.flow(tuple);
        let moved = flow.moved?;
        let hold = self.holds.get(&(tuple.protocol, tuple.server, moved.port))?;
        let is_open = tuple.protocol != Protocol::Tcp || flow.ended == Ended::No;
        (hold.owner == tuple).then_some(Moved {
            is_certain: moved.is_certain && is_open,
            ..moved
        })
    }

    pub(super) fn is_free(&self, tuple: Tuple, port: u16) -> bool {
        let hold = self.holds.get(&(tuple.protocol, tuple.server, port));
        self.may_be_free(tuple, port) && hold.is_none_or(|hold| hold.owner == tuple || !hold.is_doubtful)
    }

    fn may_be_free(&self, tuple: Tuple, port: u16) -> bool {
        match self.holds.get(&(tuple.protocol, tuple.server, port)) {
            None => true,
            Some(&hold) => hold.owner == tuple || self.is_expired(port, hold),
        }
    }

    /// Neither half was used within its lifetime, or perhaps not. A forward half that names another port is another mapping's.
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
