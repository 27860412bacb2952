//! What may become of a client's packet.

use super::{Ended, Hold, Model, Stage, Verdict, Went, wrong};
use crate::model::operation::{Client, Protocol, Says, Server, Stack, Tuple};

impl Model {
    /// `is_crowded`: there is a map of the ports towards the server.
    pub(crate) fn sent(
        &mut self,
        tuple: Tuple,
        says: Says,
        stack: Stack,
        went: Went,
        is_crowded: bool,
    ) -> Verdict {
        if tuple.server == Server::Vnet {
            return match went {
                Went::AsItself { port } if port == tuple.port => Ok(()),
                Went::AsNode { port, .. } if tuple.client == Client::Node && port == tuple.port => Ok(()),
                Went::Stopped => Ok(()),
                other => wrong(format!("towards an excluded range: {other:?}")),
            };
        }
        let opens = says == Says::Open || tuple.protocol != Protocol::Tcp;
        if tuple.client == Client::Node {
            return self.sent_by_node(tuple, says, opens, went, is_crowded);
        }
        let flow = self.flow(tuple);
        let is_over = self.is_over(tuple);
        let reopens = tuple.protocol == Protocol::Tcp && says == Says::Open && flow.ended != Ended::No;
        let has_mapping = matches!(flow.stage, Stage::Carried | Stage::Kernel);
        let asks_again = opens && is_over && stack != Stack::Translates;
        let is_settled = has_mapping && !asks_again && !reopens;
        if has_mapping && asks_again {
            self.flows.entry(tuple).or_default().moved = None;
        }
        let kept = self.kept(tuple).filter(|kept| kept.is_certain);
        match went {
            Went::Stopped => {
                if is_settled && flow.stage == Stage::Carried && stack != Stack::Translates {
                    return wrong("a packet of a carried flow was given to the stack");
                }
                self.offered(tuple, opens, stack);
                // An ingress hook hears what policy stops behind it, and so does conntrack.
                self.heard(tuple, says, 0);
                Ok(())
            }
            Went::AsItself { port } => {
                let answers =
                    self.called.contains(&tuple) && !(tuple.protocol == Protocol::Tcp && says == Says::Open);
                self.unsure(tuple);
                if answers && port == tuple.port {
                    Ok(())
                } else {
                    wrong("it left with the pod's address")
                }
            }
            Went::AsNode { port, carried } if is_settled => {
                let expected = flow.stage == Stage::Carried && stack != Stack::Translates;
                if Some(port) != flow.port {
                    return wrong(format!(
                        "a live mapping changed its port from {:?} to {port}",
                        flow.port
                    ));
                }
                if carried != expected {
                    return wrong(format!("{:?}: carried {carried}", flow.stage));
                }
                self.heard(tuple, says, 0);
                self.flows.entry(tuple).or_default().is_idle = false;
                Ok(())
            }
            Went::AsNode { port, .. } if opens => {
                let was_offered = stack != Stack::Translates && (flow.stage != Stage::Kernel || is_over);
                let stage = if was_offered {
                    Stage::Carried
                } else {
                    Stage::Kernel
                };
                if self.called.remove(&tuple) {
                    self.unsure(tuple);
                }
                self.claimed(tuple, port, stage, is_crowded)?;
                self.flows.entry(tuple).or_default().by_service = stack == Stack::Translates;
                Ok(())
            }
            Went::AsNode { port, .. } => {
                let hold = self.holds.get(&(tuple.protocol, tuple.server, port)).copied();
                let Some(hold) = hold.filter(|hold| hold.owner == tuple) else {
                    return wrong(format!(
                        "in mid-flow it left by port {port}, which is not its own"
                    ));
                };
                if let Some(kept) = kept
                    && kept.port != port
                {
                    return wrong(format!("in mid-flow it left by port {port}, not {}", kept.port));
                }
                let flow = self.flows.entry(tuple).or_default();
                (flow.port, flow.stage, flow.is_idle) = (Some(port), hold.stage, false);
                // What the lost half knew of the connection's end is lost with it.
                flow.ended = Ended::Perhaps;
                flow.unsure = true;
                Ok(())
            }
            Went::Refused => {
                let collides = stack == Stack::Translates && flow.stage == Stage::Carried && opens;
                let is_refused = if is_settled {
                    collides
                } else if opens {
                    collides || kept.is_none() && !self.is_free(tuple, tuple.port)
                } else {
                    !self.holds.values().any(|hold| hold.owner == tuple)
                };
                self.offered(tuple, opens, stack);
                if reopens || asks_again {
                    self.unsure(tuple);
                }
                if is_refused {
                    Ok(())
                } else {
                    wrong("it was refused")
                }
            }
        }
    }

    /// A socket of the node keeps its port unless another's flow holds it: a pod's, or that of a socket that was given it.
    fn sent_by_node(
        &mut self,
        tuple: Tuple,
        says: Says,
        opens: bool,
        went: Went,
        is_crowded: bool,
    ) -> Verdict {
        let flow = self.flow(tuple);
        let key = (tuple.protocol, tuple.server, tuple.port);
        let is_anothers = self.holds.get(&key).is_some_and(|hold| hold.owner != tuple);
        match went {
            Went::AsNode { port, .. } if flow.port == Some(port) => {
                self.heard(tuple, says, 0);
                self.flows.entry(tuple).or_default().is_idle = false;
                Ok(())
            }
            Went::AsNode { port, .. } if flow.port.is_some() && flow.ended == Ended::No => wrong(format!(
                "a live mapping of the node's changed its port from {:?} to {port}",
                flow.port
            )),
            Went::AsNode { port, .. } if is_anothers && opens => {
                self.began_anew(tuple);
                self.claimed(tuple, port, Stage::Kernel, is_crowded)
            }
            Went::AsNode { port, .. } if port == tuple.port => {
                self.began_anew(tuple);
                if tuple.protocol == Protocol::Icmp {
                    let hold = Hold {
                        owner: tuple,
                        stage: Stage::Offered,
                        is_idle: false,
                        is_doubtful: false,
                    };
                    self.holds.entry(key).or_insert(hold);
                }
                Ok(())
            }
            Went::Refused if is_anothers && opens => Ok(()),
            other => wrong(format!("of the node: {other:?}")),
        }
    }
}
