//! `cwy_to_uplink`: whether a pod's packet leaves with the node's address.

use causeway_common::{
    decide::{Role, is_given_up},
    flow::{Flags, Nat, State, keeps_address},
    maps::{PodEntry, RangeClass},
    reason::Reason,
    tuple::TCP,
};

use super::{
    super::{
        family::Family,
        view::{answer_key, is_answer_to, is_masqueraded},
    },
    Judged, Walk,
};

impl<A: Family> Walk<'_, A> {
    pub(super) fn needs_snat(&self) -> Judged<bool> {
        Ok(is_masqueraded(self.view.range(self.key.dst)?.as_ref()))
    }

    pub(super) fn leave_node(&mut self, pod: &PodEntry) -> Judged<()> {
        let program = A::PROGRAMS.to_uplink;
        let (role, protocol) = (self.role, self.key.protocol);
        let mut keeps = false;
        if let Some(entry) = self.entry {
            let is_translated = entry.nat == Nat::SOURCE && entry.nat_addr == self.config.node_addr;
            let reopens = protocol == TCP && role == Role::Opens && entry.progress().is_over();
            if is_translated && !entry.is_for(role, protocol) {
                self.pass(program, Reason::SnatNoMapping);
                return Ok(());
            }
            if is_translated && !reopens {
                let is_carried = entry.state == State::CARRIED;
                let collides = is_carried && role == Role::Opens && !self.is_tagged;
                let reason = match (collides, is_carried) {
                    (true, _) => Reason::SnatCollision,
                    (false, true) => Reason::CarriedTakesStack,
                    (false, false) => Reason::SnatKernel,
                };
                self.pass(program, reason);
                self.note_translation();
                return Ok(());
            }
            let is_stale = !self.key.has_ports() && self.view.is_idle(&self.key, &entry, &self.config)?;
            keeps = !is_stale && keeps_address(&entry, role, protocol);
        }
        if let Some(reason) = self.meet_api_server()? {
            self.pass(program, reason);
            return Ok(());
        }
        if keeps || !self.needs_snat()? {
            let reason = self.learn(pod.may_be_carried())?;
            self.pass(program, reason);
            return Ok(());
        }
        let reason = self.claim(pod)?;
        self.pass(program, reason);
        if matches!(reason, Reason::SnatPromoted | Reason::SnatKernel) {
            let port = self.port()?;
            self.translate(self.config.node_addr, port);
        }
        Ok(())
    }

    /// The reason if it is a matter of the API server's address.
    fn meet_api_server(&mut self) -> Judged<Option<Reason>> {
        let opens = self.role == Role::Opens;
        if self.key.protocol != TCP || !A::HAS_API_SERVER {
            return Ok(None);
        }
        if let Some(entry) = self.entry {
            if entry.state == State::RESET && !opens {
                return Ok(Some(Reason::Drained));
            }
            if entry.nat == Nat::TO_BACKEND && !(opens && entry.progress().is_over()) {
                self.note_translation();
                return Ok(Some(Reason::Balanced));
            }
            if !opens {
                return Ok(None);
            }
        }
        let class = self.view.range(self.key.dst)?.map_or(0, |(_, class)| class);
        if is_given_up(class) {
            return Ok(opens.then_some(Reason::RetiredAddress));
        }
        if class != RangeClass::BALANCED || !self.view.datapath().balancer()?.serves(self.key.dst_port) {
            return Ok(None);
        }
        if !opens {
            return Ok(Some(Reason::NotBalanced));
        }
        let backend = A::backend(self.view, self.key.hash(self.config.seed))?;
        if backend == A::UNSPECIFIED {
            return Ok(Some(Reason::NoBackend));
        }
        self.translate(backend, self.key.dst_port);
        Ok(Some(Reason::Balanced))
    }

    /// What the uplink says of a packet that needs a translation and has none.
    fn claim(&self, pod: &PodEntry) -> Judged<Reason> {
        if !pod.is_ready() || self.config.node_addr == A::UNSPECIFIED {
            return Ok(Reason::SnatNotReady);
        }
        if self.key.protocol == A::ICMP && self.role == Role::Answers {
            return Ok(Reason::SnatNoMapping);
        }
        let was_offered = self
            .entry
            .is_some_and(|entry| entry.state == State::OFFERED && entry.has(Flags::WENT_UP));
        let is_carried = self.is_tagged && was_offered && pod.may_be_carried();
        let mapping = if self.role == Role::Opens {
            None
        } else {
            self.view.mapping_of(&self.key, &self.config)?
        };
        if self.role != Role::Opens && mapping.is_none() {
            return Ok(Reason::SnatNoMapping);
        }
        let is_counted = self.entry.is_some_and(|entry| entry.has(Flags::COUNTED));
        if !is_counted && !self.view.has_room(self.key.src, &self.config)? {
            return Ok(Reason::SnatQuota);
        }
        if !self.key.has_ports() {
            let answer = self.view.flow(&answer_key(&self.key, self.config.node_addr, 0))?;
            let is_anothers = answer.is_some_and(|answer| !is_answer_to(&answer, &self.key));
            if is_anothers {
                return Ok(Reason::SnatProtocol);
            }
        }
        Ok(if is_carried {
            Reason::SnatPromoted
        } else {
            Reason::SnatKernel
        })
    }

    /// The port that the flow gets: its own if that is free, else 0, for one that is not known before.
    fn port(&self) -> Judged<[u8; 2]> {
        let own = u16::from_be_bytes(self.key.src_port);
        let answer = self
            .view
            .flow(&answer_key(&self.key, self.config.node_addr, own))?;
        let is_free = answer.is_none_or(|answer| is_answer_to(&answer, &self.key))
            && !self.view.is_reserved(self.key.protocol, own)?;
        Ok(if is_free { self.key.src_port } else { [0; 2] })
    }
}
