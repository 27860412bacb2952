//! What becomes of a packet, hook by hook: the programs' own decisions (`causeway_common`) on what the maps hold.
//!
//! Between the hooks stands the kernel. What its rules make of a packet is not known here: it is taken to leave it alone.
//! A packet is taken to be an ordinary one: sent by whom its address says, small, without options, with time to live.

mod uplink;

use std::net::IpAddr;

use causeway::datapath::{self, DatapathError};
use causeway_common::{
    decide::{Role, is_guarded, may_be_offered, tcp_flags},
    flow::{
        AtEgress, AtIngress, Exit, Flags, Frame, KEEPALIVE, Nat, Progress, State, at_driver, at_egress,
        at_ingress, completes,
    },
    maps::{Config, PodEntry},
    reason::{Reason, Verdict},
    tuple::{TCP, UDP},
};

use super::{
    family::Family,
    packet::Packet,
    view::{Entry, Key, View, is_local, mac},
};

/// A program and what it says of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    pub(super) program: &'static str,
    pub(super) reason: Reason,
    /// The address and port that the packet's source, or an answer's destination, has afterwards; port 0: another one.
    pub(super) translated: Option<(IpAddr, [u8; 2])>,
}

/// A packet on its way.
struct Walk<'a, A: Family> {
    view: &'a View<A>,
    config: Config<A>,
    role: Role,
    /// The tuple as it is now.
    key: Key<A>,
    /// The flow's entry as the programs passed so far have left it.
    entry: Option<Entry<A>>,
    /// The stack will be seen to have left it alone.
    is_tagged: bool,
    /// The flow begins again, and so does the entry of its answers.
    begins_again: bool,
    passages: Vec<Passage>,
}

type Judged<T> = Result<T, DatapathError>;

/// The programs that the packet passes, in their order.
pub(super) fn judge<A: Family>(view: &View<A>, packet: &Packet<A>) -> Judged<Vec<Passage>> {
    let config = view.config()?;
    let pod = view
        .pod(packet.key.src)?
        .filter(|pod| pod.flags & PodEntry::DEPARTED == 0);
    let entry = if packet.is_whole {
        view.flow(&packet.key)?
    } else {
        None
    };
    let mut walk = Walk {
        view,
        role: packet.role,
        key: packet.key,
        entry,
        is_tagged: false,
        begins_again: false,
        passages: Vec::new(),
        config,
    };
    match pod {
        Some(pod) => walk.leave_pod(&pod)?,
        // A socket of the node: its packets meet `cwy_to_uplink` only, which looks at nothing but its port.
        None if is_local(packet.key.src.ip())? => {}
        None => walk.enter_node()?,
    }
    Ok(walk.passages)
}

impl<A: Family> Walk<'_, A> {
    fn pass(&mut self, program: &'static str, reason: Reason) {
        self.passages.push(Passage {
            program,
            reason,
            translated: None,
        });
    }

    fn translate(&mut self, addr: A, port: [u8; 2]) {
        if let Some(last) = self.passages.last_mut() {
            last.translated = Some((addr.ip(), port));
        }
    }

    fn leave_pod(&mut self, pod: &PodEntry) -> Judged<()> {
        let reason = self.at_pods_link(pod)?;
        self.pass(A::PROGRAMS.from_pod, reason);
        if matches!(reason, Reason::CarriedToUplink | Reason::CarriedToPod) {
            self.note_translation();
        }
        if reason.verdict() != Verdict::Stack {
            return Ok(());
        }
        if let Some(to) = self.view.pod(self.key.dst)?.filter(PodEntry::is_ready) {
            return self.enter_pod(&to);
        }
        let is_delivered = self.key.dst.is_never_forwarded() || is_local(self.key.dst.ip())?;
        if is_delivered || self.view.other_exit(&self.key)?.is_some() {
            Ok(())
        } else {
            self.leave_node(pod)
        }
    }

    fn at_pods_link(&mut self, pod: &PodEntry) -> Judged<Reason> {
        let sender = self.view.sender(pod.ifindex)?;
        if self.key.has_ports()
            && let Some(reason) = self.carried(pod.ifindex)?
        {
            return Ok(reason);
        }
        match sender {
            None => return Ok(A::OF_STRANGER),
            Some(addr) if addr != self.key.src => return Ok(Reason::SourceAddress),
            Some(_) => {}
        }
        if is_guarded(self.key.dst, self.key.protocol, Some(self.key.dst_port)) {
            return Ok(Reason::Wireserver);
        }
        if !self.key.has_ports() {
            return Ok(Reason::OtherProtocol);
        }
        let reason = self.offer(pod.ifindex)?;
        let may_be_lost = reason == Reason::MidFlow && self.key.protocol == TCP && self.needs_snat()?;
        if may_be_lost {
            let mapping = self.view.mapping_of(&self.key, &self.config)?;
            if mapping.is_some_and(|answer| answer.state == State::CARRIED) {
                return Ok(Reason::FlowRestored);
            }
        }
        Ok(reason)
    }

    /// The reason if the packet is of a flow that is carried, whether or not this packet is.
    fn carried(&mut self, ifindex: u32) -> Judged<Option<Reason>> {
        let Some(entry) = self.entry else { return Ok(None) };
        if self.at_ingress(ifindex)? != AtIngress::Carry {
            return Ok(None);
        }
        let now = datapath::now();
        if entry.last_seen != now {
            if entry.nat == Nat::SOURCE && entry.nat_addr != self.config.node_addr {
                self.entry = None;
                return Ok(Some(Reason::AddressChanged));
            }
            let owner = self.view.flow(&entry.peer_key(&self.key))?;
            let has_lost_its_port = entry.nat == Nat::SOURCE
                && owner.is_some_and(|owner| {
                    owner.nat_addr != self.key.src || owner.nat_port != self.key.src_port
                });
            if has_lost_its_port {
                return Ok(Some(Reason::SnatNoMapping));
            }
            let is_datagram = entry.nat == Nat::NONE && self.key.protocol != TCP;
            if is_datagram && now.wrapping_sub(entry.last_up) >= KEEPALIVE {
                self.is_tagged = true;
                return Ok(Some(Reason::StackKeepalive));
            }
        }
        Ok(Some(if entry.exit == Exit::POD {
            Reason::CarriedToPod
        } else {
            Reason::CarriedToUplink
        }))
    }

    fn at_ingress(&self, ifindex: u32) -> Judged<AtIngress> {
        let idle = match &self.entry {
            Some(entry) => self.view.is_idle(&self.key, entry, &self.config)?,
            None => false,
        };
        Ok(at_ingress(
            self.entry.as_ref(),
            self.role,
            self.key.protocol,
            ifindex,
            idle,
        ))
    }

    /// What an ingress hook makes of a packet that it does not carry.
    fn offer(&mut self, ifindex: u32) -> Judged<Reason> {
        match self.at_ingress(ifindex)? {
            AtIngress::Offer => {
                if !may_be_offered(&self.key) {
                    return Ok(Reason::NeverOffered);
                }
                let is_counted = self.entry.is_some_and(|entry| entry.has(Flags::COUNTED));
                if !is_counted && !self.view.has_room(self.key.src, &self.config)? {
                    return Ok(Reason::OfferQuota);
                }
                self.begins_again = self.entry.is_some_and(|before| before.nat == Nat::NONE);
                self.entry = Some(Entry {
                    flags: Flags::WENT_UP | Flags::COUNTED,
                    progress: Progress::SPOKE.bits(),
                    ..Entry::offer(ifindex, [0; 6], datapath::now())
                });
            }
            AtIngress::Continue => {
                if let Some(entry) = &mut self.entry {
                    entry.flags |= Flags::WENT_UP;
                }
            }
            AtIngress::Carry => return Ok(Reason::CarriedTakesStack),
            AtIngress::Stack(reason) => return Ok(reason),
            AtIngress::Reset => return Ok(Reason::Drained),
        }
        self.is_tagged = true;
        Ok(Reason::Offered)
    }

    fn note_translation(&mut self) {
        if let Some(entry) = self.entry.filter(|entry| entry.nat != Nat::NONE) {
            self.translate(entry.nat_addr, entry.nat_port);
        }
    }

    fn enter_node(&mut self) -> Judged<()> {
        if self.view.has_xdp()? && self.may_be_redirected()? {
            self.pass("cwy_xdp_uplink", Reason::CarriedByXdp);
            self.note_translation();
            return Ok(());
        }
        let answers_kernel_flow = self.entry.is_some_and(|entry| {
            entry.state == State::KERNEL
                && matches!(entry.nat, Nat::DESTINATION | Nat::FROM_BACKEND)
                && entry.is_for(self.role, self.key.protocol)
        });
        if self.key.has_ports()
            && let Some(reason) = self.carried(self.config.uplink_ifindex)?
        {
            self.pass(A::PROGRAMS.from_uplink, reason);
            self.note_translation();
            return if reason == Reason::StackKeepalive {
                self.go_up()
            } else {
                Ok(())
            };
        }
        if answers_kernel_flow {
            let of_backend = self.entry.is_some_and(|entry| entry.nat == Nat::FROM_BACKEND);
            self.pass(
                A::PROGRAMS.from_uplink,
                if of_backend {
                    Reason::Balanced
                } else {
                    Reason::KernelFlowTranslated
                },
            );
            self.note_translation();
            if let Some(entry) = self.entry {
                let end = if of_backend {
                    (&mut self.key.src, &mut self.key.src_port)
                } else {
                    (&mut self.key.dst, &mut self.key.dst_port)
                };
                (*end.0, *end.1) = (entry.nat_addr, entry.nat_port);
            }
            self.is_tagged = true;
            self.entry = self.view.flow(&self.key)?;
            return self.go_up();
        }
        let reason = self.meet_stranger()?;
        self.pass(A::PROGRAMS.from_uplink, reason);
        if reason.verdict() == Verdict::Stack {
            self.go_up()
        } else {
            Ok(())
        }
    }

    /// Whether the frame is one for XDP: an ordinary one of a flow that tc has seen in this second.
    fn may_be_redirected(&self) -> Judged<bool> {
        let Some(entry) = self.entry.filter(|_| self.key.has_ports()) else {
            return Ok(false);
        };
        let flags = match self.role {
            Role::Opens => tcp_flags::SYN,
            Role::Answers => tcp_flags::SYN | tcp_flags::ACK,
            Role::Continues => tcp_flags::ACK,
        };
        let frame = Frame {
            role: self.role,
            protocol: self.key.protocol,
            ifindex: self.config.uplink_ifindex,
            dst_mac: mac(self.config.uplink_ifindex)?,
            ttl: 64,
            len: 0,
            seen: Progress::of_packet(self.key.protocol, flags),
            is_fresh: entry.last_seen == datapath::now(),
        };
        Ok(at_driver(&entry, &frame))
    }

    /// What the uplink says of a packet that belongs to no translated flow.
    fn meet_stranger(&mut self) -> Judged<Reason> {
        let may_be_lost = self.key.dst == self.config.node_addr
            && self.key.has_ports()
            && (self.key.protocol == UDP || self.role != Role::Opens);
        if may_be_lost && self.entry.is_none() && self.view.has_lost(&self.key)? {
            return Ok(Reason::FlowRestored);
        }
        let to = self.view.pod(self.key.dst)?;
        if to.is_none_or(|pod| !pod.is_ready()) {
            return Ok(Reason::NotToPod);
        }
        if self.key.src == self.config.node_addr {
            return Ok(Reason::SpoofedFromWire);
        }
        if !self.key.has_ports() {
            return Ok(Reason::OtherProtocol);
        }
        self.offer(self.config.uplink_ifindex)
    }

    fn go_up(&mut self) -> Judged<()> {
        match self.view.pod(self.key.dst)?.filter(PodEntry::is_ready) {
            Some(pod) => self.enter_pod(&pod),
            None => Ok(()),
        }
    }

    fn enter_pod(&mut self, pod: &PodEntry) -> Judged<()> {
        let from = self.view.pod(self.key.src)?;
        let may_be_carried = pod.may_be_carried() && from.is_none_or(|from| from.may_be_carried());
        let reason = self.learn(may_be_carried)?;
        self.pass(A::PROGRAMS.to_pod, reason);
        Ok(())
    }

    /// What an egress hook learns from a packet that keeps its tuple there.
    fn learn(&self, may_be_carried: bool) -> Judged<Reason> {
        let unchanged = self.is_tagged && may_be_carried;
        let answer = || {
            if self.begins_again {
                return Ok(Some(Entry::awaited(0, datapath::now())));
            }
            self.view.flow(&self.key.reversed())
        };
        Ok(
            match at_egress(self.entry.as_ref(), self.role, self.key.protocol, unchanged) {
                AtEgress::Promote => Reason::Promoted,
                AtEgress::AwaitAnswer if completes(answer()?.as_ref()) => Reason::Promoted,
                AtEgress::AwaitAnswer => Reason::SeenOneWay,
                AtEgress::Record | AtEgress::Demote => Reason::RecordedKernel,
                AtEgress::SettleQuestion => {
                    if answer()?.is_some_and(|question| question.state == State::OFFERED) {
                        Reason::RecordedKernel
                    } else {
                        Reason::MidFlow
                    }
                }
                AtEgress::Leave(reason) => reason,
            },
        )
    }
}
