//! What of a packet may differ between the lanes, taken out of it: the node's ports, and what the kernel draws at random.

use std::net::Ipv4Addr;

use causeway_tests::fabric::NODE;

use crate::packet::{ETH, ICMP, TCP, UDP, flag, query};

/// Type of service of the errors that a kernel makes itself: precedence "internetwork control". No sender here sets it.
const OWN_ERROR: u8 = 0xc0;

/// The identification of the packet that led to this one: its own, or of the packet that an error of the node quotes.
pub(crate) fn cause(bytes: &[u8]) -> u16 {
    let ip = &bytes[ETH..];
    let inner = usize::from(ip[0] & 0x0f) * 4 + 8;
    if is_own_error(ip) && ip.len() >= inner + 20 {
        u16_at(ip, inner + 4)
    } else {
        u16_at(ip, 4)
    }
}

fn is_own_error(ip: &[u8]) -> bool {
    ip[9] == ICMP && ip[1] & OWN_ERROR == OWN_ERROR
}

/// Source of the packet in a frame.
pub(crate) fn source(bytes: &[u8]) -> Ipv4Addr {
    addr_at(&bytes[ETH..], 12)
}

/// Where in its datagram the packet in a frame begins, in units of 8 bytes.
pub(crate) fn fragment_offset(bytes: &[u8]) -> u16 {
    u16_at(bytes, ETH + 6) & 0x1fff
}

/// Whom the node resets with this frame, if it is a RST of the node.
pub(crate) fn reset_to(bytes: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let ip = &bytes[ETH..];
    let l4 = usize::from(ip[0] & 0x0f) * 4;
    let is_reset = ip[9] == TCP && ip.len() >= l4 + 20 && ip[l4 + 13] & flag::RST != 0;
    (is_reset && addr_at(ip, 12) == NODE).then(|| (addr_at(ip, 16), u16_at(ip, l4 + 2)))
}

/// The frame up to the end of its IP packet.
pub(crate) fn trimmed(bytes: &[u8]) -> &[u8] {
    let len = usize::from(u16_at(bytes, ETH + 2));
    &bytes[..bytes.len().min(ETH + len)]
}

/// Puts 0 in place of the node's port and of the identification of its own errors, with every checksum that covers it,
/// and returns the port. What differs afterwards differs in more than these.
pub(crate) fn canonical(bytes: &mut [u8]) -> Option<u16> {
    let header = usize::from(bytes[ETH] & 0x0f) * 4;
    if is_own_error(&bytes[ETH..]) {
        set(bytes, ETH + 4, 0, &[ETH + 10]);
    }
    let l4 = ETH + header;
    if fragment_offset(bytes) > 0 {
        return None;
    }
    let is_error =
        bytes[ETH + 9] == ICMP && bytes.get(l4).is_some_and(|&kind| matches!(kind, 3 | 4 | 11 | 12));
    let inner = l4 + 8;
    if !is_error {
        return clear_port(bytes, ETH, l4, None);
    }
    if bytes.len() < inner + 28 {
        return None;
    }
    let inner_l4 = inner + usize::from(bytes[inner] & 0x0f) * 4;
    clear_port(bytes, inner, inner_l4, Some(l4 + 2))
}

/// Clears the port beside the node's address in the IPv4 packet at `l3`, inside an error if `outer` is its checksum.
fn clear_port(bytes: &mut [u8], l3: usize, l4: usize, outer: Option<usize>) -> Option<u16> {
    let ends = [addr_at(bytes, l3 + 12), addr_at(bytes, l3 + 16)];
    let is_node = ends.map(|end| end == NODE);
    if bytes.len() < l4 + 8 || is_node == [false; 2] {
        return None;
    }
    let (port_at, check_at) = match bytes[l3 + 9] {
        TCP => (if is_node[0] { l4 } else { l4 + 2 }, l4 + 16),
        UDP => (if is_node[0] { l4 } else { l4 + 2 }, l4 + 6),
        ICMP if is_node[0] && query::is_question(bytes[l4]) || is_node[1] && query::is_answer(bytes[l4]) => {
            (l4 + 4, l4 + 2)
        }
        _ => return None,
    };
    let port = u16_at(bytes, port_at);
    let no_checksum = bytes[l3 + 9] == UDP && u16_at(bytes, check_at) == 0;
    // A TCP checksum is carried along only where the whole header is quoted.
    let is_kept = outer.is_some() && bytes[l3 + 9] == TCP && bytes.len() < l4 + 20;
    if no_checksum || is_kept || bytes.len() < check_at + 2 {
        set(bytes, port_at, 0, outer.as_slice());
    } else {
        let before = u16_at(bytes, check_at);
        set(bytes, port_at, 0, &[check_at]);
        let after = u16_at(bytes, check_at);
        // Port and checksum changed under the outer checksum, which covers both.
        if let Some(at) = outer {
            adjust(bytes, at, port, 0);
            adjust(bytes, at, before, after);
        }
    }
    Some(port)
}

/// Writes two bytes and keeps the checksums at the places given right.
fn set(bytes: &mut [u8], at: usize, value: u16, checks: &[usize]) {
    let old = u16_at(bytes, at);
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    for &check in checks {
        adjust(bytes, check, old, value);
    }
}

/// RFC 1624, equation 3. Of the two zeros of one's complement the result is always the same one.
fn adjust(bytes: &mut [u8], at: usize, old: u16, new: u16) {
    let mut sum = u32::from(!u16_at(bytes, at)) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let check = match !(sum as u16) {
        0 => 0xffff,
        check => check,
    };
    bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn addr_at(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}
