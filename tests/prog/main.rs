//! The kernel programs through `BPF_PROG_TEST_RUN`: packet in, packet out, verdict, counters that moved.
//!
//! The oracle for what a packet should look like is etherparse, which parses the result anew and computes every
//! checksum itself. A run cannot set `skb->tc_index`, so promotion (a packet whose tag fits) is seen in `netns`.
#![expect(
    clippy::unwrap_used,
    reason = "the bench is set-up of tests: what fails there fails the test"
)]

mod api_server;
mod bench;
mod bounds;
mod carried;
mod cpus;
mod crowds;
mod drops;
mod events;
mod fill;
mod fragments;
mod host;
mod icmp_errors;
mod ipv6;
mod kernel_log;
mod known_bugs;
mod malformed;
mod model;
mod moved;
mod next_hop;
mod packets;
mod portless;
mod quota;
mod snat;
mod stage;
mod table;
mod tuples;
mod xdp;
