//! The oracle on the wire: no packet may leave a node with an address or a MAC that is not the node's, except where
//! the pod's own address is right. It sits at the far end of the uplink and knows nothing of the datapath.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{
    capture::{Capture, Instruction},
    frame::Frame,
    netns::Netns,
};

/// A watch on the far end of a node's uplink.
#[derive(Debug)]
pub struct LeakWatch(Capture);

impl LeakWatch {
    /// Watches `interface`, the far end of the uplink of the node at `node_addr`. Pods live in the node's /16. A
    /// pod's address may go to 10.0.0.0/8, to the wireserver, and to `partner`, a network outside those ranges that
    /// opens connections to pods: answers keep the pod's address.
    pub fn start(
        ns: &Netns,
        interface: &str,
        node_addr: Ipv4Addr,
        node_mac: [u8; 6],
        partner: Ipv4Addr,
    ) -> Result<Self> {
        Capture::filtered(ns, interface, &filter(node_addr, node_mac, partner)).map(Self)
    }

    /// What leaked so far.
    pub fn leaks(&self) -> Vec<Frame> {
        let mut frames = self.0.so_far();
        frames.retain(|frame| !frame.outgoing);
        frames
    }
}

/// Lets through (as "leaked") what comes in with a MAC other than the node's, and IPv4 with a source of the node's
/// /16 other than the node itself to a destination that is neither in 10.0.0.0/8 nor the wireserver nor the partner's /24.
fn filter(node_addr: Ipv4Addr, node_mac: [u8; 6], partner: Ipv4Addr) -> Vec<Instruction> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    const WIRESERVER: u32 = Ipv4Addr::new(168, 63, 129, 16).to_bits();

    let (mac_high, mac_low) = mac_words(node_mac);
    let (node, partner) = (node_addr.to_bits(), partner.to_bits());
    vec![
        // What the far end sends itself is none of the node's business.
        (LOAD_WORD, 0, 0, PACKET_TYPE),
        (EQUAL, 17, 0, u32::from(libc::PACKET_OUTGOING)),
        (LOAD_WORD, 0, 0, 6),
        (EQUAL, 0, 14, mac_high),
        (LOAD_HALF, 0, 0, 10),
        (EQUAL, 0, 12, mac_low),
        (LOAD_HALF, 0, 0, 12),
        (EQUAL, 0, 11, 0x0800),
        (LOAD_WORD, 0, 0, 26),
        (EQUAL, 9, 0, node),
        (AND, 0, 0, 0xffff_0000),
        (EQUAL, 0, 7, node & 0xffff_0000),
        (LOAD_WORD, 0, 0, 30),
        (EQUAL, 5, 0, WIRESERVER),
        (AND, 0, 0, 0xffff_ff00),
        (EQUAL, 3, 0, partner & 0xffff_ff00),
        (AND, 0, 0, 0xff00_0000),
        (EQUAL, 1, 0, 0x0a00_0000),
        (RETURN, 0, 0, u32::MAX),
        (RETURN, 0, 0, 0),
    ]
}

fn mac_words(mac: [u8; 6]) -> (u32, u32) {
    let word = |bytes: &[u8]| bytes.iter().fold(0, |word, &byte| word << 8 | u32::from(byte));
    (word(&mac[..4]), word(&mac[4..]))
}
