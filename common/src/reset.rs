//! The TCP reset that answers a segment (RFC 9293 section 3.10.7.1).

use crate::{
    checksum,
    decide::tcp_flags::{ACK, FIN, RST, SYN},
    tuple::{self, FlowKey},
};

/// Bytes of a TCP header without options.
pub const HEADER_LEN: usize = 20;

/// What a reset has to know of the segment that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number, network order.
    pub seq: [u8; 4],
    /// Acknowledgment number, network order.
    pub ack: [u8; 4],
    /// TCP flags ([`crate::decide::tcp_flags`]).
    pub flags: u8,
    /// Bytes of data.
    pub len: u32,
}

/// The header of the reset in words as they lie in memory, with its checksum; `key` is the tuple of the segment. `None` for a reset: none is ever
/// answered.
///
/// The receiver takes it (RFC 5961 section 3.2): its sequence number is the one that the segment acknowledges, or it
/// acknowledges the SYN.
#[inline(always)]
pub fn answer(key: &FlowKey<[u8; 4]>, segment: &Segment) -> Option<[u32; HEADER_LEN / 4]> {
    if segment.flags & RST != 0 {
        return None;
    }
    // Without branches: the verifier would go through the rest once for each.
    let bit = |flag: u8| u32::from(segment.flags >> flag.trailing_zeros() & 1);
    let acknowledges = bit(ACK);
    let next = u32::from_be_bytes(segment.seq)
        .wrapping_add(segment.len)
        .wrapping_add(bit(SYN) + bit(FIN));
    let seq = u32::from_be_bytes(segment.ack)
        .wrapping_mul(acknowledges)
        .to_be_bytes();
    let ack = next.wrapping_mul(1 - acknowledges).to_be_bytes();
    let flags = RST | (1 - acknowledges as u8) << ACK.trailing_zeros();
    let ([s0, s1], [d0, d1]) = (key.dst_port, key.src_port);
    let ports = u32::from_ne_bytes([s0, s1, d0, d1]);
    let offset_and_flags = u32::from_ne_bytes([DATA_OFFSET, flags, 0, 0]);
    let (seq, ack) = (u32::from_ne_bytes(seq), u32::from_ne_bytes(ack));
    let pseudo = [
        u32::from_ne_bytes(key.src),
        u32::from_ne_bytes(key.dst),
        u32::from_ne_bytes([0, tuple::TCP, 0, HEADER_LEN as u8]),
    ];
    let [high, low] = checksum::of([ports, seq, ack, offset_and_flags], pseudo).to_ne_bytes();
    let check = u32::from_ne_bytes([high, low, 0, 0]);
    Some([ports, seq, ack, offset_and_flags, check])
}

/// The length of a header without options, in words, in the upper half of its byte.
const DATA_OFFSET: u8 = ((HEADER_LEN / 4) << 4) as u8;

#[cfg(test)]
mod tests {
    use etherparse::{TcpHeader, TcpSlice};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_reset_is_what_the_rfc_asks_for_with_a_checksum_that_etherparse_finds_right(
            src: [u8; 4], dst: [u8; 4], src_port: u16, dst_port: u16, seq: u32, ack: u32, flags in 0u8..64, len in 0u32..65_000,
        ) {
            let key = FlowKey {
                src, dst,
                src_port: src_port.to_be_bytes(),
                dst_port: dst_port.to_be_bytes(),
                protocol: tuple::TCP,
                _pad: [0; 3],
            };
            let segment = Segment { seq: seq.to_be_bytes(), ack: ack.to_be_bytes(), flags, len };
            let Some(words) = answer(&key, &segment) else {
                prop_assert!(flags & RST != 0);
                return Ok(());
            };
            let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
            prop_assert_eq!(flags & RST, 0);
            let reset: TcpHeader = TcpSlice::from_slice(&bytes).unwrap().to_header();
            prop_assert_eq!((reset.source_port, reset.destination_port), (dst_port, src_port));
            prop_assert!(reset.rst && !reset.syn && !reset.fin && !reset.psh);
            if flags & ACK != 0 {
                prop_assert_eq!((reset.sequence_number, reset.ack), (ack, false));
            } else {
                let phantom = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
                let next = seq.wrapping_add(len).wrapping_add(phantom);
                prop_assert_eq!((reset.sequence_number, reset.ack, reset.acknowledgment_number), (0, true, next));
            }
            prop_assert_eq!(reset.checksum, reset.calc_checksum_ipv4_raw(dst, src, &[]).unwrap());
        }
    }
}
