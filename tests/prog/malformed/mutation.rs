//! Breaks packets at random, and mends what would keep the break from being reached.

use causeway_tests::rng::Rng;

use super::{corpus::Sample, scene::CLIENT};
use crate::{
    bench::{Hook, INTERNET, NODE, VNET_HOST},
    stage::Given,
};

/// Numbers that parsers trip over.
const WORDS: [u16; 14] = [
    0, 1, 7, 8, 19, 20, 27, 28, 0x1fff, 0x2000, 0x3fff, 0x7fff, 0xfffe, 0xffff,
];
const BYTES: [u8; 12] = [0, 1, 4, 0x0f, 0x3f, 0x40, 0x44, 0x46, 0x4f, 0x7f, 0x80, 0xff];
const PROTOCOLS: [u8; 10] = [0, 1, 4, 6, 17, 47, 50, 132, 136, 255];
const PORTS: [u16; 9] = [0, 80, 443, 5000, 40_000, 40_001, 50_001, 50_003, 65_535];

/// Bytes in which headers stand, with those that an error quotes.
const HEADERS: usize = 96;

/// Breaks one packet in one to four places.
pub(crate) fn mutant(rng: &mut Rng, samples: &[Sample]) -> Vec<u8> {
    let mut packet = samples[rng.below(samples.len())].packet.clone();
    for _ in 0..=rng.below(4) {
        hurt(rng, samples, &mut packet);
    }
    if packet.len() >= 34 {
        mend(rng, &mut packet);
    }
    packet
}

fn hurt(rng: &mut Rng, samples: &[Sample], packet: &mut Vec<u8>) {
    let l4 = 14 + usize::from(packet.get(14).copied().unwrap_or(0x45) & 0x0f) * 4;
    match rng.below(17) {
        0 => at_some(rng, packet, HEADERS, |rng, byte| *byte = rng.pick(&BYTES)),
        1 => at_some(rng, packet, HEADERS, |rng, byte| *byte ^= 1 << rng.below(8)),
        2 => at_some(rng, packet, HEADERS, |rng, byte| *byte = rng.next() as u8),
        3 => {
            let at = 12 + rng.below(packet.len()) / 2 * 2;
            let word = rng.pick(&WORDS);
            put(packet, at, &word.to_be_bytes());
        }
        4 => packet.truncate(14 + rng.below(packet.len() - 13)),
        5 => {
            let more = rng.below(64);
            packet.extend((0..more).map(|_| rng.next() as u8));
        }
        6 => {
            // The head of one packet on the tail of another.
            let other = &samples[rng.below(samples.len())].packet;
            let at = 14 + rng.below(48);
            if at < packet.len() && at < other.len() {
                packet.truncate(at);
                packet.extend_from_slice(&other[at..]);
            }
        }
        7 => put(packet, 14, &[0x40 | rng.below(16) as u8]),
        8 => {
            let length = match rng.below(3) {
                0 => rng.pick(&WORDS),
                _ => (packet.len() as u16)
                    .wrapping_add(rng.below(33) as u16)
                    .wrapping_sub(30),
            };
            put(packet, 16, &length.to_be_bytes());
        }
        9 => {
            let fragment = rng.pick(&[0, 0x2000, 0x2001, 1, 2, 3, 0x1fff, 0x3fff, 0x4000, 0x8000]);
            put(packet, 20, &u16::to_be_bytes(fragment));
        }
        10 => put(packet, 22, &[rng.pick(&[0, 1, 2, 255])]),
        11 => put(packet, 23, &[rng.pick(&PROTOCOLS)]),
        12 => {
            let others: [[u8; 4]; 8] = [
                [127, 0, 0, 1],
                [255; 4],
                [224, 0, 0, 1],
                [169, 254, 169, 254],
                [168, 63, 129, 16],
                [0; 4],
                [10, 240, 0, 99],
                [203, 0, 113, 200],
            ];
            let known = [
                NODE,
                INTERNET,
                VNET_HOST,
                CLIENT,
                [10, 240, 0, 5].into(),
                [10, 240, 0, 6].into(),
            ];
            let addr = if rng.one_in(3) {
                rng.pick(&others)
            } else {
                rng.pick(&known).octets()
            };
            // Outside, or in what an ICMP error quotes.
            let ip = if rng.one_in(3) { l4 + 8 } else { 14 };
            put(packet, ip + rng.pick(&[12, 16]), &addr);
        }
        13 => {
            let l4 = if rng.one_in(3) { l4 + 28 } else { l4 };
            let port = rng.pick(&PORTS).to_be_bytes();
            put(packet, l4 + rng.pick(&[0, 2, 4]), &port);
        }
        14 => {
            // UDP length, TCP data offset and flags, ICMP type and code.
            let (at, byte) = (rng.pick(&[0, 1, 4, 5, 12, 13]), rng.next() as u8);
            put(packet, l4 + at, &[byte]);
        }
        15 => {
            let options: Vec<u8> = (0..4 * rng.below(11))
                .map(|_| rng.pick(&[0, 1, 7, 131, 137, 148, 4, 3, 255]))
                .collect();
            if packet.len() >= 34 {
                put(packet, 14, &[0x45 + (options.len() / 4) as u8]);
                packet.splice(34..34, options);
            }
        }
        _ => {
            let check = rng.pick(&[0u16, 0xffff]);
            put(packet, l4 + rng.pick(&[2, 6, 16]), &check.to_be_bytes());
        }
    }
}

/// A wrong header checksum or length ends most ways early: two of three packets have both right.
fn mend(rng: &mut Rng, packet: &mut [u8]) {
    if !rng.one_in(3) {
        let length = packet.len() as u16 - 14;
        put(packet, 16, &length.to_be_bytes());
    }
    if !rng.one_in(3) {
        mend_checksum(packet);
    }
}

/// Computes the IPv4 header's checksum over what the header calls its length (RFC 1071).
pub(crate) fn mend_checksum(packet: &mut [u8]) {
    put(packet, 24, &[0, 0]);
    let end = (14 + usize::from(packet[14] & 0x0f) * 4).min(packet.len());
    let mut sum: u32 = packet[14..end.max(14)]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    put(packet, 24, &(!(sum as u16)).to_be_bytes());
}

/// What comes with a packet at a hook. A stranger's packet is delivered to a pod as one only if it is of the flow that the
/// oracle knows: what it opens besides would be answered with the pod's address, and rightly.
pub(crate) fn given(rng: &mut Rng, hook: Hook, interfaces: [u32; 3], packet: &[u8]) -> Given {
    let from_outside = packet.get(26) != Some(&10) && packet.get(26..30) != Some(&CLIENT.octets());
    let from = match hook {
        Hook::FromPod | Hook::FromUplink => 0,
        Hook::ToPod if from_outside => rng.pick(&[0, interfaces[0]]),
        Hook::ToPod | Hook::ToUplink => rng.pick(&[0, interfaces[0], interfaces[1], interfaces[2]]),
    };
    besides(rng, from, packet.len())
}

/// What comes with a packet of this length that has arrived on the interface `from`.
pub(crate) fn besides(rng: &mut Rng, from: u32, length: usize) -> Given {
    let short = rng.one_in(16) && length > 15;
    Given {
        // Never the tag of what has been carried: only our own programs write that.
        tag: if rng.one_in(8) {
            rng.below(0xffff) as u16
        } else {
            0
        },
        cut: short.then(|| 14 + rng.below(length - 14) as u16),
        vlan: rng.one_in(64).then_some(100),
        from,
        gso_size: if rng.one_in(64) {
            1 + rng.below(3000) as u32
        } else {
            0
        },
    }
}

/// Changes one of the first `within` bytes.
pub(crate) fn at_some(rng: &mut Rng, packet: &mut [u8], within: usize, change: impl Fn(&mut Rng, &mut u8)) {
    let at = rng.below(packet.len().min(within));
    change(rng, &mut packet[at]);
}

/// Writes as much as the packet has room for.
pub(crate) fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    for (slot, byte) in packet.iter_mut().skip(at).zip(bytes) {
        *slot = *byte;
    }
}
