//! The Internet checksum, updated for a changed word instead of computed again.
//!
//! One's complement addition does not depend on byte order (RFC 1071 section 2 (B)): words are taken from the
//! packet as they lie in memory and the result is stored the same way, so nothing here converts byte order.
//!
//! A transport checksum may hold just the sum of the pseudo header (`CHECKSUM_PARTIAL`), which of a packet only the kernel
//! knows: there it goes through `bpf_l4_csum_replace`. Of a frame ([`may_be_partial`]) it is computed here, if it is whole.

/// Updates `check` for one 16-bit word of the header that changed from `old` to `new`.
///
/// RFC 1624 section 3, equation 3: `HC' = ~(~HC + ~m + m')`.
#[inline(always)]
pub fn replace_u16(check: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!check) + u32::from(!old) + u32::from(new);
    !fold(sum)
}

/// Updates `check` for four bytes, such as an address, that changed from `old` to `new`.
#[inline(always)]
pub fn replace_u32(check: u16, old: [u8; 4], new: [u8; 4]) -> u16 {
    let half = |bytes: [u8; 4], i: usize| u32::from(u16::from_ne_bytes([bytes[i], bytes[i + 1]]));
    let inverted = |word: u32| !word & 0xffff;
    let sum =
        u32::from(!check) + inverted(half(old, 0)) + inverted(half(old, 2)) + half(new, 0) + half(new, 2);
    !fold(sum)
}

/// What the sum over a header changes by when an IPv6 address in it changes from `old` to `new`: `m' - m` of RFC 1624, not
/// folded to 16 bits, as the kernel's helpers take it.
#[inline(always)]
pub fn difference(old: &[u8; 16], new: &[u8; 16]) -> u32 {
    let word =
        |bytes: &[u8; 16], i: usize| u32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    let mut sum = 0u64;
    for i in [0, 4, 8, 12] {
        sum += u64::from(!word(old, i)) + u64::from(word(new, i));
    }
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// Updates `check` for words that changed the sum by `difference`.
#[inline(always)]
pub fn replace_by(check: u16, difference: u32) -> u16 {
    !fold(u32::from(!check) + (difference & 0xffff) + (difference >> 16))
}

/// Whether the checksum of an IPv4 header without options is right: its words, and the checksum among them, add up to
/// ones (RFC 1071 section 1 (3)).
#[inline(always)]
pub fn is_good(header: [u32; 5]) -> bool {
    let sum: u64 = header.into_iter().map(u64::from).sum();
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    fold(sum as u32) == 0xffff
}

/// Whether a TCP or UDP checksum is the sum of the pseudo header alone, as a sender leaves it that counts on its device for
/// the rest (`CHECKSUM_PARTIAL`). A whole one looks so once in 65,535 times. `len`: bytes from the transport header on.
#[inline(always)]
pub fn may_be_partial(check: u16, src: [u8; 4], dst: [u8; 4], protocol: u8, len: u16) -> bool {
    let half = |bytes: [u8; 4], i: usize| u32::from(u16::from_ne_bytes([bytes[i], bytes[i + 1]]));
    let addresses = half(src, 0) + half(src, 2) + half(dst, 0) + half(dst, 2);
    check == fold(addresses + u32::from(u16::from(protocol).to_be()) + u32::from(len.to_be()))
}

/// The checksum over a header whose own field is zero, with a pseudo header before it. Words as they lie in memory.
#[inline(always)]
pub fn of(header: [u32; 4], pseudo: [u32; 3]) -> u16 {
    let mut sum = 0u64;
    for word in header {
        sum += u64::from(word);
    }
    for word in pseudo {
        sum += u64::from(word);
    }
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    !fold(sum as u32)
}

/// Adds the carries back in. Two rounds are enough for a sum of up to 65,537 words.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use etherparse::Ipv4Header;
    use proptest::prelude::*;

    use super::*;

    /// RFC 1624 section 4: the example in which the older equation fails. The figures are big-endian words.
    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(replace_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    proptest! {
        #[test]
        fn a_checksum_is_good_if_it_is_the_one_that_etherparse_computes(
            src: [u8; 4], dst: [u8; 4], ttl: u8, protocol: u8, length in 0u16..1480, id: u16, wrong: u16,
        ) {
            let mut header = Ipv4Header::new(length, ttl, protocol.into(), src, dst).unwrap();
            header.identification = id;
            let words = |header: &Ipv4Header| {
                let bytes = header.to_bytes();
                std::array::from_fn(|i| u32::from_ne_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap()))
            };
            header.header_checksum = header.calc_header_checksum();
            prop_assert!(is_good(words(&header)));
            // Zero and ones are one number to this sum, and a header is never all zeros.
            prop_assume!(wrong % 0xffff != header.header_checksum % 0xffff);
            header.header_checksum = wrong;
            prop_assert!(!is_good(words(&header)));
        }

        /// The sum over header and payload continues that of the pseudo header: a partial checksum is where it starts.
        #[test]
        fn a_checksum_is_partial_if_the_rest_of_the_packet_completes_it(
            src: [u8; 4], dst: [u8; 4], payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let header = etherparse::UdpHeader::without_ipv4_checksum(7, 9, payload.len()).unwrap();
            let len = 8 + payload.len() as u16;
            let whole = header.calc_checksum_ipv4_raw(src, dst, &payload).unwrap();
            let rest = etherparse::checksum::Sum16BitWords::new().add_slice(&header.to_bytes()).add_slice(&payload);
            let partial = etherparse::checksum::Sum16BitWords::new()
                .add_4bytes(src)
                .add_4bytes(dst)
                .add_2bytes([0, crate::tuple::UDP])
                .add_2bytes(len.to_be_bytes());
            let partial = !partial.ones_complement();
            prop_assert!(may_be_partial(partial, src, dst, crate::tuple::UDP, len));
            // As the device would end it, on top of what the header's field holds.
            let ended = fold(u32::from(partial) + u32::from(!rest.ones_complement()));
            prop_assert_eq!((!ended) % 0xffff, u16::from_ne_bytes(whole.to_be_bytes()) % 0xffff);
            let whole = u16::from_ne_bytes(whole.to_be_bytes());
            prop_assert_eq!(may_be_partial(whole, src, dst, crate::tuple::UDP, len), whole == partial);
        }

        #[test]
        fn a_changed_ipv6_address_gives_the_sum_that_etherparse_computes(
            src: [u8; 16], dst: [u8; 16], new_src: [u8; 16], payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let sum = |src| {
                let header = etherparse::UdpHeader::without_ipv4_checksum(7, 9, payload.len()).unwrap();
                let sum = header.calc_checksum_ipv6_raw(src, dst, &payload).unwrap();
                u16::from_ne_bytes(sum.to_be_bytes())
            };
            let changed = <[u8; 16] as crate::addr::Address>::replace_in(sum(src), &src, &new_src);
            // Zero and ones are one number to this sum; UDP sends ones.
            prop_assert_eq!(changed % 0xffff, sum(new_src) % 0xffff);
        }

        #[test]
        fn a_changed_address_and_ttl_give_the_sum_that_etherparse_computes(
            src: [u8; 4], dst: [u8; 4], new_src: [u8; 4], ttl in 1u8.., protocol: u8, length in 0u16..1480, id: u16,
        ) {
            let mut header = Ipv4Header::new(length, ttl, protocol.into(), src, dst).unwrap();
            header.identification = id;
            header.header_checksum = header.calc_header_checksum();
            let old_word = u16::from_ne_bytes([ttl, protocol]);
            let new_word = u16::from_ne_bytes([ttl - 1, protocol]);
            let check = u16::from_ne_bytes(header.header_checksum.to_be_bytes());
            let check = replace_u16(replace_u32(check, src, new_src), old_word, new_word);

            header.source = new_src;
            header.time_to_live = ttl - 1;
            prop_assert_eq!(u16::from_be_bytes(check.to_ne_bytes()), header.calc_header_checksum());
        }
    }
}
