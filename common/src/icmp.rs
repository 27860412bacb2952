//! Messages of ICMP and ICMPv6: which have flows of their own, and which are about the flows of others.

use crate::tuple::FlowKey;

/// ICMP type of an echo request (RFC 792).
pub const ECHO_REQUEST: u8 = 8;
/// ICMP type of an echo reply (RFC 792).
pub const ECHO_REPLY: u8 = 0;
/// ICMPv6 type of an echo request (RFC 4443 section 4.1).
pub const V6_ECHO_REQUEST: u8 = 128;
/// ICMPv6 type of an echo reply (RFC 4443 section 4.2).
pub const V6_ECHO_REPLY: u8 = 129;

/// An ICMP message with an identifier: a question, or the answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpQuery {
    /// It is the question.
    pub asks: bool,
    /// What tells apart two questions with one identifier, in place of the port of the end that answers: how the
    /// question's type differs from an echo's, and the code. Zero for a ping.
    pub kind: [u8; 2],
}

/// The packet that an error quotes: its header and the first eight bytes behind it (RFC 792, RFC 4443 section 2.4).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Quoted<A> {
    /// Its flow.
    pub key: FlowKey<A>,
    /// Offset of its IP header from the start of the frame, bytes.
    pub l3: u16,
    /// Offset of its transport header, bytes.
    pub l4: u16,
    /// Checksum of its IPv4 header, as in memory; zero of IPv6.
    pub check: u16,
    /// 1: it is a question of ICMP.
    pub asks: u16,
}

/// The ICMP messages that have flows, as nf_conntrack has them (`nf_conntrack_proto_icmp.c`, Linux 6.18): echo,
/// timestamp and information (RFC 792), address mask (RFC 950). An answer has its question's code.
#[inline(always)]
pub(crate) fn v4_query(kind: u8, code: u8) -> Option<IcmpQuery> {
    let question = match kind {
        ECHO_REPLY => ECHO_REQUEST,
        14 | 16 | 18 => kind - 1,
        _ => kind,
    };
    matches!(question, ECHO_REQUEST | 13 | 15 | 17).then_some(IcmpQuery {
        asks: question == kind,
        kind: [question ^ ECHO_REQUEST, code],
    })
}

/// The ICMPv6 messages that have flows: echo (RFC 4443). Of node information (RFC 4620) nf_conntrack has flows, too (Linux
/// 6.18), but where an echo has its identifier that has what is asked, which no translation may change.
#[inline(always)]
pub(crate) fn v6_query(kind: u8, code: u8) -> Option<IcmpQuery> {
    matches!(kind, V6_ECHO_REQUEST | V6_ECHO_REPLY).then_some(IcmpQuery {
        asks: kind == V6_ECHO_REQUEST,
        kind: [0, code],
    })
}

/// Whether an ICMP type quotes a packet of another flow: destination unreachable, source quench, time exceeded,
/// parameter problem (RFC 792). A redirect is none: it is for the first hop and is never translated.
#[inline(always)]
pub(crate) fn is_v4_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 11 | 12)
}

/// Whether an ICMPv6 type quotes a packet of another flow: destination unreachable, packet too big, time exceeded,
/// parameter problem (RFC 4443 section 3).
#[inline(always)]
pub(crate) fn is_v6_error(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_belongs_to_the_question_of_its_type_and_code() {
        let mut kinds = Vec::new();
        for (question, answer) in [(ECHO_REQUEST, ECHO_REPLY), (13, 14), (15, 16), (17, 18)] {
            for code in [0, 7] {
                let [asked, answered] = [question, answer].map(|kind| v4_query(kind, code).unwrap());
                assert!(asked.asks && !answered.asks, "{question} {answer}");
                assert_eq!(asked.kind, answered.kind);
                assert!(!kinds.contains(&asked.kind), "{question} {code}");
                kinds.push(asked.kind);
            }
        }
        assert_eq!(v4_query(ECHO_REQUEST, 0).unwrap().kind, [0; 2]);
        for other in [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 19, 42, 43, 255] {
            assert_eq!(v4_query(other, 0), None, "{other}");
        }
    }

    #[test]
    fn of_icmpv6_echo_alone_has_flows() {
        for code in [0, 7] {
            let [asked, answered] =
                [V6_ECHO_REQUEST, V6_ECHO_REPLY].map(|kind| v6_query(kind, code).unwrap());
            assert!(asked.asks && !answered.asks);
            assert_eq!(asked.kind, [0, code]);
            assert_eq!(answered.kind, asked.kind);
        }
        for other in (0..128).chain(130..=255) {
            assert_eq!(v6_query(other, 0), None, "{other}");
        }
    }

    #[test]
    fn no_message_is_both_a_query_and_an_error() {
        for kind in 0..=255 {
            assert!(!is_v4_error(kind) || v4_query(kind, 0).is_none(), "{kind}");
            assert!(!is_v6_error(kind) || v6_query(kind, 0).is_none(), "{kind}");
        }
    }
}
