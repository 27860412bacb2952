//! What must hold of a packet before and after a program, judged by bytes and by etherparse.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::{IP_END, scene::Places};
use crate::bench::{Hook, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};

const SRC: std::ops::Range<usize> = 22..38;
const DST: std::ops::Range<usize> = 38..IP_END;
const HOP_LIMIT: usize = 21;

/// Says what is wrong with what a program has made of a packet.
pub(super) fn judge(places: &Places, hook: Hook, sent: &[u8], action: i32, got: &[u8]) -> Result<(), String> {
    match action {
        TC_ACT_SHOT => return Ok(()),
        TC_ACT_UNSPEC | TC_ACT_REDIRECT => {}
        other => return Err(format!("action {other}")),
    }
    if got.len() != sent.len() {
        return Err(format!("{} bytes became {}", sent.len(), got.len()));
    }
    let is_carried = action == TC_ACT_REDIRECT;
    if sent.len() < IP_END || sent[12..14] != [0x86, 0xdd] {
        return unchanged(sent, got, is_carried);
    }
    if is_carried && sent == got {
        // A fragment that overtook its first one waits at its own hook.
        let may_wait = hook == Hook::FromPod || hook == Hook::ToUplink || sent[DST] == places.node;
        return if may_wait {
            Ok(())
        } else {
            Err("redirected as it was".to_owned())
        };
    }
    if !is_carried && matches!(hook, Hook::FromPod | Hook::ToPod) {
        return unchanged(sent, got, false);
    }
    addresses(places, hook, sent, got)?;
    if is_carried {
        carried(places, hook, sent, got)?;
    } else if sent[..SRC.start] != got[..SRC.start] {
        return Err("a header was changed before its addresses".to_owned());
    }
    payload(sent, got)?;
    let leaves = hook == Hook::ToUplink || hook == Hook::FromPod && is_carried;
    if leaves && places.is_pod(&got[SRC]) && places.is_masqueraded(&got[DST]) {
        return Err("leaves with a pod's address".to_owned());
    }
    Ok(())
}

fn unchanged(sent: &[u8], got: &[u8], is_carried: bool) -> Result<(), String> {
    if is_carried {
        return Err("carried, and is no packet".to_owned());
    }
    if sent == got {
        Ok(())
    } else {
        Err("left to the kernel, and changed".to_owned())
    }
}

/// Towards the wire a pod's address becomes the node's, from the wire the node's a pod's.
fn addresses(places: &Places, hook: Hook, sent: &[u8], got: &[u8]) -> Result<(), String> {
    let towards_wire = matches!(hook, Hook::FromPod | Hook::ToUplink);
    if sent[SRC] != got[SRC] && !(towards_wire && places.is_pod(&sent[SRC]) && got[SRC] == places.node) {
        return Err("another source".to_owned());
    }
    let from_wire = hook == Hook::FromUplink;
    if sent[DST] != got[DST] && !(from_wire && sent[DST] == places.node && places.is_pod(&got[DST])) {
        return Err("another destination".to_owned());
    }
    Ok(())
}

fn carried(places: &Places, hook: Hook, sent: &[u8], got: &[u8]) -> Result<(), String> {
    if got[HOP_LIMIT] != sent[HOP_LIMIT].wrapping_sub(1) || got[HOP_LIMIT] == 0 {
        return Err(format!("hop limit {} became {}", sent[HOP_LIMIT], got[HOP_LIMIT]));
    }
    if sent[12..HOP_LIMIT] != got[12..HOP_LIMIT] {
        return Err("a header was changed before its addresses".to_owned());
    }
    let fits = match hook {
        Hook::FromPod => sent[SRC] == places.pods[0].0 && sent[6..12] == places.pods[0].1,
        Hook::FromUplink => places.is_pod(&got[DST]),
        Hook::ToPod | Hook::ToUplink => false,
    };
    if fits {
        Ok(())
    } else {
        Err("carried for a stranger".to_owned())
    }
}

/// Behind the header only a port and a checksum change, or what an ICMPv6 error quotes; and what was right stays right.
fn payload(sent: &[u8], got: &[u8]) -> Result<(), String> {
    let differ = |from: usize| {
        sent[from..]
            .iter()
            .zip(&got[from..])
            .filter(|(a, b)| a != b)
            .count()
    };
    // Port and checksum; of an error the quoted address, port and checksum as well.
    let most = if may_be_icmp_error(sent) {
        2 + 16 + 2 + 2
    } else {
        2 + 2
    };
    if differ(IP_END) > most {
        return Err(format!("{} bytes behind the header changed", differ(IP_END)));
    }
    if is_whole(sent) && checksum(sent).is_some_and(|sum| sum.is_right()) {
        let after = checksum(got).ok_or("cannot be read any more")?;
        if !after.is_right() {
            return Err(format!(
                "checksum {:#06x} should be {:#06x}",
                after.found, after.right
            ));
        }
    }
    Ok(())
}

/// Also what etherparse does not read: the kernel takes shorter authentication headers, say.
fn may_be_icmp_error(packet: &[u8]) -> bool {
    let transport = SlicedPacket::from_ethernet(packet)
        .ok()
        .and_then(|sliced| sliced.transport);
    match transport {
        Some(TransportSlice::Icmpv6(message)) => message.type_u8() < 128,
        Some(_) => false,
        None => true,
    }
}

/// Whether the transport header's checksum is over what is there.
fn is_whole(packet: &[u8]) -> bool {
    packet.len() >= IP_END + usize::from(u16::from_be_bytes([packet[18], packet[19]]))
}

/// A transport header's checksum, and what it should be.
pub(super) struct Checksum {
    at: usize,
    found: u16,
    right: u16,
}

impl Checksum {
    fn is_right(&self) -> bool {
        self.found == self.right
    }
}

/// The checksum of a packet that etherparse can read, and that is no fragment.
pub(super) fn checksum(packet: &[u8]) -> Option<Checksum> {
    let sliced = SlicedPacket::from_ethernet(packet).ok()?;
    let NetSlice::Ipv6(ip) = sliced.net? else {
        return None;
    };
    if ip.is_payload_fragmented() {
        return None;
    }
    let header = ip.header().to_header();
    let at = |slice: &[u8], offset: usize| slice.as_ptr() as usize - packet.as_ptr() as usize + offset;
    match sliced.transport? {
        TransportSlice::Udp(udp) => Some(Checksum {
            at: at(udp.slice(), 6),
            found: udp.checksum(),
            right: udp.to_header().calc_checksum_ipv6(&header, udp.payload()).ok()?,
        }),
        TransportSlice::Tcp(tcp) => Some(Checksum {
            at: at(tcp.slice(), 16),
            found: tcp.checksum(),
            right: tcp.calc_checksum_ipv6(header.source, header.destination).ok()?,
        }),
        TransportSlice::Icmpv6(message) => Some(Checksum {
            at: at(message.slice(), 2),
            found: message.checksum(),
            right: message
                .icmp_type()
                .calc_checksum(header.source, header.destination, message.payload())
                .ok()?,
        }),
        TransportSlice::Icmpv4(_) | TransportSlice::Igmp(_) => None,
    }
}

/// Makes the checksum right, if there is one.
pub(super) fn mend_checksum(packet: &mut [u8]) {
    if let Some(Checksum { at, right, .. }) = checksum(packet) {
        packet[at..at + 2].copy_from_slice(&right.to_be_bytes());
    }
}
