//! What must hold of any packet at all, judged by its bytes before and after. Nothing of ours takes part: headers are read by
//! offset and checksums are sums of RFC 1071.
//!
//! What a packet may have changed is copied from the outcome into what was sent; then the two must be one. A checksum
//! must be as right, or as wrong, as it was.

use std::{net::Ipv4Addr, ops::Range};

use super::scene::{CLIENT, Places};
use crate::bench::{Hook, NODE, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC};

const IP: usize = 14;
const IP_END: usize = 34;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

/// Judges one run. `sent` ends where the program saw it end.
pub(crate) fn judge(places: &Places, hook: Hook, sent: &[u8], action: i32, got: &[u8]) -> Result<(), String> {
    let is_same = sent == got;
    match action {
        TC_ACT_SHOT if is_same => Ok(()),
        TC_ACT_SHOT => Err("dropped half changed".to_owned()),
        TC_ACT_UNSPEC if hook == Hook::ToUplink => {
            places.leaks(hook, got)?;
            if is_same {
                Ok(())
            } else {
                places.translated(hook, false, sent, got)
            }
        }
        TC_ACT_UNSPEC if is_same => Ok(()),
        TC_ACT_UNSPEC if hook == Hook::FromUplink => places.translated(hook, false, sent, got),
        TC_ACT_UNSPEC => Err("given to the stack changed".to_owned()),
        TC_ACT_REDIRECT if is_same => places.waits(hook, sent),
        TC_ACT_REDIRECT if hook == Hook::FromPod => {
            if got[..6] == places.links[2][0] {
                places.leaks(hook, got)?;
            }
            places.translated(hook, true, sent, got)
        }
        TC_ACT_REDIRECT if hook == Hook::FromUplink => places.translated(hook, true, sent, got),
        TC_ACT_REDIRECT => Err("redirected where nothing is carried".to_owned()),
        _ => Err("an action of no verdict".to_owned()),
    }
}

impl Places {
    /// A pod's address towards a destination that is to be masqueraded must not leave, unless it answers a stranger.
    fn leaks(&self, hook: Hook, got: &[u8]) -> Result<(), String> {
        if got.len() < IP + 16 || got[12..14] != [8, 0] {
            return Ok(());
        }
        let src = addr(got, IP + 12);
        if !self.pods.contains(&src) {
            return Ok(());
        }
        let dst = got.get(IP + 16..IP_END).map(|_| addr(got, IP + 16));
        let is_excluded = dst.is_some_and(is_excluded);
        if is_excluded || Self::answers_a_stranger(hook, got) {
            Ok(())
        } else {
            Err(format!("leaves with the address of pod {src}"))
        }
    }

    /// Towards the one stranger who opens flows: which ones, the mutants say. A SYN alone that the stack lets out opens a flow
    /// of the pod's; within a connection it is as stray as any other segment.
    fn answers_a_stranger(hook: Hook, got: &[u8]) -> bool {
        if got.len() < IP_END || addr(got, IP + 16) != CLIENT {
            return false;
        }
        let flags = got.get(IP + header_len(got, IP) + 13);
        let is_whole = got[IP + 9] == TCP && fragment_offset(got, IP) == 0;
        !(hook == Hook::ToUplink && is_whole && flags.is_some_and(|flags| flags & 0x17 == 2))
    }

    /// A packet that passes its hook once more, behind what has arrived meanwhile: a later fragment for the node, or one whose
    /// flow's entry was just written or got room. A pod's that leaves is judged when it has passed.
    fn waits(&self, hook: Hook, sent: &[u8]) -> Result<(), String> {
        let for_node = sent.len() >= IP_END && addr(sent, IP + 16) == self.node;
        if hook == Hook::FromPod || hook == Hook::ToUplink || hook == Hook::FromUplink && for_node {
            Ok(())
        } else {
            Err("redirected as it was".to_owned())
        }
    }

    fn translated(&self, hook: Hook, carried: bool, sent: &[u8], got: &[u8]) -> Result<(), String> {
        if sent.len() != got.len() || sent.len() < IP_END || sent[12..14] != [8, 0] {
            return Err("changed what is no IPv4 packet".to_owned());
        }
        let layout = Layout::of(sent);
        let source_side = hook != Hook::FromUplink;
        let mut expected = sent.to_vec();
        for range in layout.changeable(carried, source_side) {
            if let Some(bytes) = got.get(range.clone()) {
                expected[range].copy_from_slice(bytes);
            }
        }
        if let Some(at) = (0..got.len()).find(|&at| expected[at] != got[at]) {
            return Err(format!("changed byte {at}"));
        }
        if carried {
            self.forwarded(sent, got)?;
        }
        self.addresses(source_side, sent, got)?;
        layout.checksums_as_before(sent, got)
    }

    /// One hop less, and a frame for a next hop that we know.
    fn forwarded(&self, sent: &[u8], got: &[u8]) -> Result<(), String> {
        let (before, after) = (sent[IP + 8], got[IP + 8]);
        if before < 2 || after != before - 1 {
            return Err(format!("TTL {before} became {after}"));
        }
        let is_known = |[to, from]: &[[u8; 6]; 2]| got[..6] == *to && got[6..12] == *from;
        if self.links.iter().any(is_known) {
            Ok(())
        } else {
            Err("redirected to a MAC of nobody".to_owned())
        }
    }

    /// Between a pod, or the node itself, and the node's address; towards what is masqueraded only.
    fn addresses(&self, source_side: bool, sent: &[u8], got: &[u8]) -> Result<(), String> {
        let ours = if source_side { IP + 12 } else { IP + 16 };
        let (before, after) = (addr(sent, ours), addr(got, ours));
        let remote = addr(sent, if source_side { IP + 16 } else { IP + 12 });
        let (inside, outside) = if source_side {
            (before, after)
        } else {
            (after, before)
        };
        if before == after {
            return Ok(());
        }
        if outside != self.node || !self.pods.contains(&inside) {
            return Err(format!("{before} became {after}"));
        }
        if source_side && is_excluded(remote) {
            return Err(format!("masqueraded towards {remote}"));
        }
        Ok(())
    }
}

/// Where the headers of a packet stand.
struct Layout {
    protocol: u8,
    /// Offset of the transport header.
    l4: usize,
    is_first: bool,
    /// Headers of the packet that an ICMP error quotes.
    quoted: Option<Quoted>,
}

struct Quoted {
    protocol: u8,
    l3: usize,
    l4: usize,
}

impl Layout {
    fn of(frame: &[u8]) -> Self {
        let protocol = frame[IP + 9];
        let l4 = IP + header_len(frame, IP);
        let is_first = fragment_offset(frame, IP) == 0;
        let is_error =
            protocol == ICMP && is_first && frame.get(l4).is_some_and(|kind| [3, 4, 11, 12].contains(kind));
        let l3 = l4 + 8;
        let quoted = (is_error && frame.len() >= l3 + 20).then(|| Quoted {
            protocol: frame[l3 + 9],
            l3,
            l4: l3 + header_len(frame, l3),
        });
        Self {
            protocol,
            l4,
            is_first,
            quoted,
        }
    }

    /// Bytes that may differ. `source_side`: the sender's end is translated, in what is quoted the receiver's.
    fn changeable(&self, carried: bool, source_side: bool) -> Vec<Range<usize>> {
        let end = usize::from(!source_side);
        let mut ranges = vec![IP + 10..IP + 12, IP + 12 + 4 * end..IP + 16 + 4 * end];
        if carried {
            ranges.extend([0..12, IP + 8..IP + 9]);
        }
        if !self.is_first {
            return ranges;
        }
        let port = self.l4 + 2 * end..self.l4 + 2 + 2 * end;
        match (self.protocol, &self.quoted) {
            (TCP, _) => ranges.extend([port, self.l4 + 16..self.l4 + 18]),
            (UDP, _) => ranges.extend([port, self.l4 + 6..self.l4 + 8]),
            (DCCP | UDP_LITE, _) => ranges.push(self.l4 + 6..self.l4 + 8),
            (ICMP, None) => ranges.extend([self.l4 + 2..self.l4 + 4, self.l4 + 4..self.l4 + 6]),
            (ICMP, Some(quoted)) => {
                ranges.push(self.l4 + 2..self.l4 + 4);
                ranges.extend(quoted.changeable(1 - end));
            }
            _ => {}
        }
        ranges
    }

    fn checksums_as_before(&self, sent: &[u8], got: &[u8]) -> Result<(), String> {
        let same = |what: &str, sum: &dyn Fn(&[u8]) -> u16| {
            let (before, after) = (sum(sent), sum(got));
            if before == after {
                Ok(())
            } else {
                Err(format!(
                    "{what} checksum was off by {before:#x} and is by {after:#x}"
                ))
            }
        };
        same("IPv4", &|frame| off_by(&[&frame[IP..self.l4.min(frame.len())]]))?;
        if !self.is_first {
            return Ok(());
        }
        match self.protocol {
            TCP => same("TCP", &|frame| {
                off_by(&[&frame[IP + 12..IP + 20], &frame[self.l4..]])
            })?,
            UDP if left_out(sent, self.l4)? != left_out(got, self.l4)? => {
                return Err("a UDP checksum came or went".to_owned());
            }
            UDP if left_out(sent, self.l4)? => {}
            UDP => same("UDP", &|frame| {
                off_by(&[&frame[IP + 12..IP + 20], &frame[self.l4..]])
            })?,
            ICMP => same("ICMP", &|frame| off_by(&[&frame[self.l4..]]))?,
            // They may cover a part of the payload only, which does not change. Half a header has no checksum to keep right.
            DCCP | UDP_LITE if self.l4 + 8 <= IP + total_len(sent) => same("partial", &|frame| {
                off_by(&[&frame[IP + 12..IP + 20], &frame[self.l4..self.l4 + 8]])
            })?,
            _ => {}
        }
        let Some(quoted) = &self.quoted else {
            return Ok(());
        };
        same("quoted IPv4", &|frame| {
            off_by(&[&frame[quoted.l3..quoted.l4.min(frame.len())]])
        })?;
        let whole = quoted.l3 + 12..quoted.l3 + 20;
        match quoted.protocol {
            // Without a whole header nf_nat leaves a quoted TCP checksum alone, and so do we.
            TCP if got.len() < quoted.l4 + 20 => {
                let at = quoted.l4 + 16..(quoted.l4 + 18).min(got.len());
                if got.get(at.clone()) == sent.get(at) {
                    Ok(())
                } else {
                    Err("half a TCP checksum".to_owned())
                }
            }
            UDP if left_out(sent, quoted.l4)? => {
                if left_out(got, quoted.l4)? {
                    Ok(())
                } else {
                    Err("a quoted UDP checksum came".to_owned())
                }
            }
            TCP | UDP => same("quoted transport", &|frame| {
                off_by(&[&frame[whole.clone()], &frame[quoted.l4..]])
            }),
            _ => same("quoted ICMP", &|frame| off_by(&[&frame[quoted.l4..]])),
        }
    }
}

impl Quoted {
    /// `end`: 0 for the sender of the quoted packet, 1 for its receiver.
    fn changeable(&self, end: usize) -> Vec<Range<usize>> {
        let mut ranges = vec![
            self.l3 + 10..self.l3 + 12,
            self.l3 + 12 + 4 * end..self.l3 + 16 + 4 * end,
        ];
        let port = self.l4 + 2 * end..self.l4 + 2 + 2 * end;
        match self.protocol {
            TCP => ranges.extend([port, self.l4 + 16..self.l4 + 18]),
            UDP => ranges.extend([port, self.l4 + 6..self.l4 + 8]),
            ICMP => ranges.extend([self.l4 + 2..self.l4 + 4, self.l4 + 4..self.l4 + 6]),
            _ => {}
        }
        ranges
    }
}

fn total_len(frame: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([frame[IP + 2], frame[IP + 3]]))
}

/// How far a checksum is from right: the one's complement sum over what it covers, itself included. 0 is right. The part
/// that is not in the packet is the same before and after, and so is the length in a pseudo header.
fn off_by(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    if sum == 0xffff { 0 } else { sum as u16 }
}

/// Whether the sender of a datagram left the checksum out (RFC 768).
fn left_out(frame: &[u8], l4: usize) -> Result<bool, String> {
    match frame.get(l4 + 6..l4 + 8) {
        Some(check) => Ok(check == [0, 0]),
        None => Err("translated a datagram without a checksum field".to_owned()),
    }
}

/// `-m iprange ! --dst-range 168.63.129.16 ! -d 10.0.0.0/8`: the ranges of the bench.
fn is_excluded(dst: Ipv4Addr) -> bool {
    dst.octets()[0] == 10 || dst == Ipv4Addr::new(168, 63, 129, 16) || dst == NODE
}

fn header_len(frame: &[u8], l3: usize) -> usize {
    usize::from(frame[l3] & 0x0f) * 4
}

fn fragment_offset(frame: &[u8], l3: usize) -> u16 {
    u16::from_be_bytes([frame[l3 + 6], frame[l3 + 7]]) & 0x1fff
}

fn addr(frame: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3])
}
