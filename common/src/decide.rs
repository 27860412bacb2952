//! Who may open a flow, who may be carried, who is masqueraded, and what a pod must never reach.

use crate::{
    addr::Address,
    maps::{RangeClass, RangeEntry},
    tuple::{self, FlowKey},
};

/// TCP flag bits as they stand in byte 13 of the header (RFC 9293 section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
}

/// What a packet is to its flow.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// May open a flow: a SYN alone, any datagram, an ICMP question.
    Opens,
    /// First answer: SYN with ACK, or the answer to an ICMP question. It completes a flow and never opens one.
    Answers,
    /// Anything else. It never opens a flow and never takes a port.
    Continues,
}

/// The role of a packet. `flags` are the TCP flags of a TCP packet, the ICMP type of an ICMP packet.
#[inline(always)]
pub fn role<A: Address>(protocol: u8, flags: u8) -> Role {
    use tcp_flags::{ACK, FIN, RST, SYN};
    match protocol {
        tuple::TCP => match flags & (SYN | ACK | FIN | RST) {
            SYN => Role::Opens,
            both if both == SYN | ACK => Role::Answers,
            _ => Role::Continues,
        },
        _ if protocol == A::ICMP && A::icmp_query(flags, 0).is_none_or(|query| !query.asks) => Role::Answers,
        _ => Role::Opens,
    }
}

/// Whether this tuple may be offered to the kernel with the aim of carrying its flow.
///
/// A second lock only, since the kernel decides in any case: link-local services (IMDS, node-local DNS),
/// the wireserver, multicast and broadcast, and a pod that talks to itself are never carried.
#[inline(always)]
pub fn may_be_offered<A: Address>(key: &FlowKey<A>) -> bool {
    !key.dst.is_special() && !key.src.is_special() && key.src != key.dst && key.dst != A::WIRESERVER
}

/// [`Address::WIRESERVER`] of IPv4.
pub const WIRESERVER: [u8; 4] = <[u8; 4]>::WIRESERVER;

/// Whether a pod must not send this: TCP to the wireserver's ports 80 (goal state) and 32526 (HostGAPlugin).
/// `dst_port` is `None` for a fragment that does not hold it: such a packet might carry either port.
#[inline(always)]
pub fn is_guarded<A: Address>(dst: A, protocol: u8, dst_port: Option<[u8; 2]>) -> bool {
    A::WIRESERVER != A::UNSPECIFIED
        && dst == A::WIRESERVER
        && protocol == tuple::TCP
        && match dst_port.map(u16::from_be_bytes) {
            Some(port) => port == 80 || port == 32_526,
            None => true,
        }
}

/// Whether a flow that a pod opens towards a destination of this range leaves with the node's address.
///
/// Follows `-m iprange ! --dst-range 168.63.129.16 -m addrtype ! --dst-type local ! -d 10.0.0.0/8 -j MASQUERADE`:
/// masquerade unless the destination is excluded; one of a class that this version does not know is not. A local destination never reaches the uplink.
#[inline(always)]
pub fn masquerade(range: Option<&RangeEntry>) -> bool {
    match range {
        Some(range) => !matches!(
            range.class,
            RangeClass::EXCLUDED | RangeClass::API_SERVER | RangeClass::BALANCED | RangeClass::RETIRED
        ),
        None => true,
    }
}

/// Whether a TCP connection that begins now must not be opened to a destination of this class.
#[inline(always)]
pub fn is_given_up(class: u8) -> bool {
    matches!(class, RangeClass::RETIRED | RangeClass::CLOSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lone_syn_opens_a_tcp_flow() {
        use tcp_flags::{ACK, FIN, RST, SYN};
        let ece_cwr = 0xc0;
        assert_eq!(role::<[u8; 4]>(tuple::TCP, SYN), Role::Opens);
        assert_eq!(
            role::<[u8; 4]>(tuple::TCP, SYN | ece_cwr),
            Role::Opens,
            "ECN setup, RFC 3168 section 6.1.1"
        );
        assert_eq!(role::<[u8; 4]>(tuple::TCP, SYN | ACK), Role::Answers);
        for flags in [
            ACK,
            FIN | ACK,
            RST,
            RST | ACK,
            SYN | FIN,
            SYN | RST,
            SYN | ACK | RST,
            0,
            0xff,
        ] {
            assert_eq!(role::<[u8; 4]>(tuple::TCP, flags), Role::Continues, "{flags:#x}");
        }
    }

    #[test]
    fn icmp_questions_open_and_replies_answer() {
        for (question, answer) in [(8, 0), (13, 14), (15, 16), (17, 18)] {
            assert_eq!(role::<[u8; 4]>(tuple::ICMP, question), Role::Opens);
            assert_eq!(role::<[u8; 4]>(tuple::ICMP, answer), Role::Answers);
        }
        assert_eq!(role::<[u8; 16]>(58, 128), Role::Opens);
        assert_eq!(role::<[u8; 16]>(58, 129), Role::Answers);
        assert_eq!(
            role::<[u8; 4]>(47, 0),
            Role::Opens,
            "GRE has nothing that tells the first packet"
        );
    }

    #[test]
    fn the_guard_covers_both_ports_and_fragments_and_leaves_dns_open() {
        let port = |p: u16| Some(p.to_be_bytes());
        assert!(is_guarded(WIRESERVER, tuple::TCP, port(80)));
        assert!(is_guarded(WIRESERVER, tuple::TCP, port(32_526)));
        assert!(is_guarded(WIRESERVER, tuple::TCP, None));
        assert!(!is_guarded(WIRESERVER, tuple::TCP, port(53)));
        assert!(!is_guarded(WIRESERVER, tuple::UDP, port(80)));
        assert!(!is_guarded([168, 63, 129, 17], tuple::TCP, port(80)));
    }

    #[test]
    fn flows_to_special_destinations_or_to_oneself_are_never_offered() {
        let key = |dst| FlowKey {
            src: [10, 240, 0, 5],
            dst,
            src_port: [1, 1],
            dst_port: [0, 80],
            protocol: tuple::TCP,
            _pad: [0; 3],
        };
        assert!(may_be_offered(&key([10, 240, 0, 6])));
        for dst in [
            [10, 240, 0, 5],
            WIRESERVER,
            [169, 254, 169, 254],
            [224, 0, 0, 1],
            [255; 4],
            [127, 0, 0, 1],
        ] {
            assert!(!may_be_offered(&key(dst)), "{dst:?}");
        }
    }

    #[test]
    fn only_excluded_destinations_keep_the_pods_address() {
        let range = |class| RangeEntry { class, _pad: [0; 3] };
        assert!(masquerade(None));
        for class in [
            RangeClass::EXCLUDED,
            RangeClass::API_SERVER,
            RangeClass::BALANCED,
            RangeClass::RETIRED,
        ] {
            assert!(!masquerade(Some(&range(class))), "{class}");
        }
        for class in [RangeClass::MASQUERADED, RangeClass::CLOSED, 200] {
            assert!(masquerade(Some(&range(class))), "{class}");
        }
    }
}
