//! What both sides must agree on, and every decision that can be taken without the kernel's help.
//!
//! The kernel programs and userspace compile this crate unchanged. It does no I/O and allocates nothing, so each
//! decision is tested on the host ([`flow`], [`decide`], [`ports`], [`lifetime`], [`checksum`]).
//!
//! # Byte order
//!
//! Addresses are byte arrays in network order (`[u8; 4]` for IPv4, `[u8; 16]` for IPv6), ports and ICMP
//! identifiers are `[u8; 2]` in network order, as they stand on the wire. Host-order integers exist only inside a
//! function, except for interface indexes, times and lengths, which are never on the wire.
//!
//! # Address family
//!
//! Types that hold an address are generic over it ([`addr::Address`]).
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod balance;
pub mod checksum;
pub mod crowd;
pub mod decide;
pub mod event;
pub mod extension;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod lifetime;
pub mod maps;
pub mod moved;
pub mod neighbour;
pub mod ports;
pub mod reason;
pub mod reset;
pub mod schedule;
pub mod scratch;
pub mod tuple;
#[cfg(feature = "user")]
mod user;
