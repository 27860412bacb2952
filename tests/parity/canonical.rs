//! What of a packet may differ between the lanes, taken out of it: the node's ports, and what the kernel draws at random.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    family::Family,
    packet::{ETH, FRAGMENT, TCP, UDP, flag},
};

/// Type of service of the errors of ICMP that a kernel makes itself: precedence "internetwork control". No sender here
/// sets it.
const OWN_ERROR: u8 = 0xc0;

/// An IP header, with what lies between it and what it carries.
struct Header {
    family: Family,
    src: IpAddr,
    dst: IpAddr,
    /// Length of the packet in bytes.
    len: usize,
    /// By what the packet is known again: identification of IPv4, flow label of IPv6.
    mark: u16,
    protocol: u8,
    /// Where what it carries begins.
    l4: usize,
    /// In units of 8 bytes.
    fragment_offset: u16,
    /// Where the fragment header of IPv6 begins.
    part: Option<usize>,
}

impl Header {
    /// Reads the one at `l3`; `None` where there is not all of it.
    fn at(bytes: &[u8], l3: usize) -> Option<Self> {
        match bytes.get(l3)? >> 4 {
            4 => Self::ipv4_at(bytes, l3),
            6 => Self::ipv6_at(bytes, l3),
            _ => None,
        }
    }

    fn ipv4_at(bytes: &[u8], l3: usize) -> Option<Self> {
        let header: [u8; 20] = bytes.get(l3..l3 + 20)?.try_into().ok()?;
        let addr = |at: usize| {
            IpAddr::V4(Ipv4Addr::new(
                header[at],
                header[at + 1],
                header[at + 2],
                header[at + 3],
            ))
        };
        Some(Self {
            family: Family::V4,
            src: addr(12),
            dst: addr(16),
            len: usize::from(u16_at(&header, 2)),
            mark: u16_at(&header, 4),
            protocol: header[9],
            l4: l3 + usize::from(header[0] & 0x0f) * 4,
            fragment_offset: u16_at(&header, 6) & 0x1fff,
            part: None,
        })
    }

    fn ipv6_at(bytes: &[u8], l3: usize) -> Option<Self> {
        let header: [u8; 40] = bytes.get(l3..l3 + 40)?.try_into().ok()?;
        let addr = |at: usize| {
            let octets: [u8; 16] = header[at..at + 16].try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        };
        let mut read = Self {
            family: Family::V6,
            src: addr(8)?,
            dst: addr(24)?,
            len: 40 + usize::from(u16_at(&header, 4)),
            mark: u16_at(&header, 2),
            protocol: header[6],
            l4: l3 + 40,
            fragment_offset: 0,
            part: None,
        };
        // Hop by hop, routing, fragment, destination.
        while matches!(read.protocol, 0 | 43 | FRAGMENT | 60) && read.fragment_offset == 0 {
            let extension = bytes.get(read.l4..read.l4 + 8)?;
            if read.protocol == FRAGMENT {
                read.part = Some(read.l4);
                read.fragment_offset = u16_at(extension, 2) >> 3;
                read.l4 += 8;
            } else {
                read.l4 += (usize::from(extension[1]) + 1) * 8;
            }
            read.protocol = extension[0];
        }
        Some(read)
    }

    fn is_icmp(&self) -> bool {
        self.protocol == self.family.icmp()
    }

    /// The packet that the one of this header quotes, if it is an error of ICMP.
    fn quoted(&self, bytes: &[u8]) -> Option<Self> {
        let kind = *bytes.get(self.l4)?;
        let is_error = self.is_icmp() && self.fragment_offset == 0 && self.family.is_error(kind);
        is_error.then(|| Self::at(bytes, self.l4 + 8))?
    }

    /// An error that a kernel has made. What is sent here has a flow label, and of IPv4 another type of service.
    fn is_own_error(&self, bytes: &[u8]) -> bool {
        match self.family {
            Family::V4 => self.is_icmp() && bytes[ETH + 1] & OWN_ERROR == OWN_ERROR,
            Family::V6 => self.mark == 0 && self.quoted(bytes).is_some(),
        }
    }
}

/// The mark of the packet that led to this one: its own, or that of the packet that an error of the node quotes.
pub(crate) fn cause(bytes: &[u8]) -> u16 {
    let Some(header) = Header::at(bytes, ETH) else {
        return 0;
    };
    match header.quoted(bytes) {
        Some(quoted) if header.is_own_error(bytes) => quoted.mark,
        _ => header.mark,
    }
}

/// Source of the packet in a frame.
pub(crate) fn source(bytes: &[u8]) -> Option<IpAddr> {
    Header::at(bytes, ETH).map(|header| header.src)
}

/// Where in its datagram the packet in a frame begins, in units of 8 bytes.
pub(crate) fn fragment_offset(bytes: &[u8]) -> u16 {
    Header::at(bytes, ETH).map_or(0, |header| header.fragment_offset)
}

/// The identification in a fragment header of IPv6.
pub(crate) fn fragment_id(bytes: &[u8]) -> Option<u32> {
    let at = Header::at(bytes, ETH)?.part?;
    let id: [u8; 4] = bytes.get(at + 4..at + 8)?.try_into().ok()?;
    Some(u32::from_be_bytes(id))
}

/// Whether a packet of IPv6 is what these parts of one are together, but for the sending port, which may be the node's, and the checksum.
pub(crate) fn are_joined<'a>(whole: &[u8], parts: impl Iterator<Item = &'a [u8]>) -> bool {
    let carried = |bytes: &[u8]| {
        let header = Header::at(bytes, ETH)?;
        Some((
            header.src,
            header.dst,
            header.protocol,
            trimmed(bytes).get(header.l4..)?.to_vec(),
        ))
    };
    let Some((src, dst, protocol, mut whole)) = carried(whole) else {
        return false;
    };
    let mut joined = Vec::new();
    for part in parts {
        match carried(part) {
            Some((from, to, of, bytes)) if (from, to, of) == (src, dst, protocol) => joined.extend(bytes),
            _ => return false,
        }
    }
    // Of UDP: the port of the node, which sends, and the checksum.
    for bytes in [&mut whole, &mut joined] {
        let Some(header) = bytes.get_mut(..8) else {
            return false;
        };
        header[..2].fill(0);
        header[6..].fill(0);
    }
    whole == joined
}

/// Whom the node resets with this frame, if it is a RST of the node.
pub(crate) fn reset_to(bytes: &[u8]) -> Option<(IpAddr, u16)> {
    let header = Header::at(bytes, ETH)?;
    let segment = bytes.get(header.l4..header.l4 + 20)?;
    let is_reset = header.protocol == TCP && segment[13] & flag::RST != 0;
    (is_reset && header.src == header.family.node()).then(|| (header.dst, u16_at(segment, 2)))
}

/// The frame up to the end of its IP packet.
pub(crate) fn trimmed(bytes: &[u8]) -> &[u8] {
    let len = Header::at(bytes, ETH).map_or(bytes.len(), |header| ETH + header.len);
    &bytes[..bytes.len().min(len)]
}

/// Puts 0 in place of the node's port, of the identification of its own errors, and of that of IPv6's fragments, with every
/// checksum that covers it, and returns the port. What differs afterwards differs in more than these.
pub(crate) fn canonical(bytes: &mut [u8]) -> Option<u16> {
    let header = Header::at(bytes, ETH)?;
    if header.family == Family::V4 && header.is_own_error(bytes) {
        set(bytes, ETH + 4, 0, &[ETH + 10]);
    }
    if let Some(at) = header.part {
        bytes[at + 4..at + 8].fill(0);
    }
    if header.fragment_offset > 0 {
        return None;
    }
    let is_error = header.is_icmp()
        && bytes
            .get(header.l4)
            .is_some_and(|&kind| header.family.is_error(kind));
    if !is_error {
        return clear_port(bytes, &header, None);
    }
    let quoted = header.quoted(bytes)?;
    clear_port(bytes, &quoted, Some(header.l4 + 2))
}

/// Clears the port beside the node's address in the packet of this header, inside an error if `outer` is its checksum.
fn clear_port(bytes: &mut [u8], header: &Header, outer: Option<usize>) -> Option<u16> {
    let (l4, family) = (header.l4, header.family);
    let is_node = [header.src, header.dst].map(|end| end == family.node());
    if bytes.len() < l4 + 8 || is_node == [false; 2] {
        return None;
    }
    let (port_at, check_at) = match header.protocol {
        TCP => (if is_node[0] { l4 } else { l4 + 2 }, l4 + 16),
        UDP => (if is_node[0] { l4 } else { l4 + 2 }, l4 + 6),
        _ if header.is_icmp()
            && (is_node[0] && family.is_question(bytes[l4]) || is_node[1] && family.is_answer(bytes[l4])) =>
        {
            (l4 + 4, l4 + 2)
        }
        _ => return None,
    };
    let port = u16_at(bytes, port_at);
    let no_checksum = header.protocol == UDP && u16_at(bytes, check_at) == 0;
    // A TCP checksum is carried along only where the whole header is quoted.
    let is_kept = outer.is_some() && header.protocol == TCP && bytes.len() < l4 + 20;
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
