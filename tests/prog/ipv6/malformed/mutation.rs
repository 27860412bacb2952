//! Breaks packets at random, and mends what would keep the break from being reached.

use causeway_tests::rng::Rng;

use super::{
    super::{A, B, VNET, at},
    IP_END,
    oracle::mend_checksum,
    scene::{OUTSIDE, PUBLIC, Sample},
};
use crate::{
    bench::Hook,
    malformed::mutation::{at_some, besides, put},
    stage::Given,
};

/// Numbers that parsers trip over.
const WORDS: [u16; 12] = [0, 1, 7, 8, 39, 40, 48, 0x1fff, 0x7fff, 0xfff8, 0xfffe, 0xffff];
const BYTES: [u8; 10] = [0, 1, 4, 0x0f, 0x3f, 0x45, 0x60, 0x6f, 0x80, 0xff];
/// Headers behind the first: options, routing, fragment, authentication, nothing, transports, IPv4 and IPv6 inside.
const NEXT: [u8; 14] = [0, 43, 44, 50, 51, 59, 60, 135, 6, 17, 58, 4, 41, 132];
const PORTS: [u16; 7] = [0, 53, 80, 443, 4000, 40_000, 65_535];

/// Bytes in which headers stand, with those that an error quotes.
const HEADERS: usize = 128;

/// Breaks one packet in one to four places.
pub(super) fn mutant(rng: &mut Rng, samples: &[Sample]) -> Vec<u8> {
    let mut packet = samples[rng.below(samples.len())].packet.clone();
    for _ in 0..=rng.below(4) {
        hurt(rng, samples, &mut packet);
    }
    if packet.len() >= IP_END {
        // A wrong length or checksum ends most ways early.
        if !rng.one_in(3) {
            let length = (packet.len() - IP_END) as u16;
            put(&mut packet, 18, &length.to_be_bytes());
        }
        if !rng.one_in(3) {
            mend_checksum(&mut packet);
        }
    }
    packet
}

fn hurt(rng: &mut Rng, samples: &[Sample], packet: &mut Vec<u8>) {
    match rng.below(14) {
        0 => at_some(rng, packet, HEADERS, |rng, byte| *byte = rng.pick(&BYTES)),
        1 => at_some(rng, packet, HEADERS, |rng, byte| *byte ^= 1 << rng.below(8)),
        2 => at_some(rng, packet, HEADERS, |rng, byte| *byte = rng.next() as u8),
        3 => {
            let at = 12 + rng.below(packet.len()) / 2 * 2;
            put(packet, at, &rng.pick(&WORDS).to_be_bytes());
        }
        4 => packet.truncate(14 + rng.below(packet.len() - 13)),
        5 => {
            let more = rng.below(64);
            packet.extend((0..more).map(|_| rng.next() as u8));
        }
        6 => {
            // The head of one packet on the tail of another.
            let other = &samples[rng.below(samples.len())].packet;
            let at = 14 + rng.below(64);
            if at < packet.len() && at < other.len() {
                packet.truncate(at);
                packet.extend_from_slice(&other[at..]);
            }
        }
        7 => put(packet, 14, &[(rng.below(16) as u8) << 4]),
        8 => put(packet, 18, &rng.pick(&WORDS).to_be_bytes()),
        9 => put(packet, 20, &[rng.pick(&NEXT)]),
        10 => put(packet, HOP_LIMIT, &[rng.pick(&[0, 1, 2, 255])]),
        11 => {
            // Outside, or in what an error quotes.
            let ip = if rng.one_in(3) { IP_END + 8 } else { 14 };
            let addr = addr(rng);
            put(packet, ip + rng.pick(&[8, 24]), &addr);
        }
        12 => {
            let l4 = if rng.one_in(3) { IP_END + 48 } else { IP_END };
            let place = l4 + rng.pick(&[0, 2, 4]);
            put(packet, place, &rng.pick(&PORTS).to_be_bytes());
        }
        _ => insert_header(rng, packet),
    }
}

const HOP_LIMIT: usize = 21;

fn addr(rng: &mut Rng) -> [u8; 16] {
    let mut multicast = [0; 16];
    (multicast[0], multicast[1], multicast[15]) = (0xff, 2, 1);
    let mut link_local = [0; 16];
    (link_local[0], link_local[1], link_local[15]) = (0xfe, 0x80, 9);
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 1]);
    let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
    if rng.one_in(3) {
        rng.pick(&[
            multicast,
            link_local,
            mapped,
            loopback,
            [0; 16],
            [0xff; 16],
            at(99),
        ])
    } else {
        rng.pick(&[A, B, VNET, OUTSIDE, PUBLIC])
    }
}

/// A header of eight bytes, or what calls itself so, between the first and what follows.
fn insert_header(rng: &mut Rng, packet: &mut Vec<u8>) {
    if packet.len() < IP_END {
        return;
    }
    let next = std::mem::replace(&mut packet[20], rng.pick(&NEXT[..8]));
    let mut header = [next, 0, 1, 4, 0, 0, 0, 0];
    if packet[20] == 44 {
        header[1..4].copy_from_slice(&[0, 0, rng.pick(&[0, 1, 8, 9])]);
    }
    if rng.one_in(4) {
        header[1 + rng.below(7)] = rng.next() as u8;
    }
    packet.splice(IP_END..IP_END, header);
}

/// What comes with a packet at a hook.
pub(super) fn given(rng: &mut Rng, hook: Hook, interfaces: [u32; 3], length: usize) -> Given {
    let from = match hook {
        Hook::FromPod | Hook::FromUplink => 0,
        Hook::ToPod | Hook::ToUplink => rng.pick(&[0, interfaces[0], interfaces[1], interfaces[2]]),
    };
    besides(rng, from, length)
}
