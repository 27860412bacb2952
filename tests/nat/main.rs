//! What the RFCs ask of a NAT, one requirement a test, and what Causeway and nf_nat do about it.
//!
//! The comment of each test is a row of `docs/nat-behaviour.md`: requirement, what it asks, what Causeway does, what nf_nat
//! does, and the verdict. `table` makes the page from them. Nearly every test runs on two nodes alike, one with Causeway and one with the
//! MASQUERADE rule, so what is said of nf_nat is seen and not remembered.

mod icmp_rfc5508;
mod icmp_rfc5508_errors;
mod icmp_rfc5508_messages;
mod mapping;
mod peer;
mod side;
mod table;
mod tcp_rfc5382;
mod tcp_rfc5382_timers;
mod udp_rfc4787;
mod udp_rfc4787_filter;
mod udp_rfc4787_fragments;
mod udp_rfc4787_paths;
mod udp_rfc4787_timers;
mod updates_rfc7857;
mod wire;

use causeway_tests::family;
