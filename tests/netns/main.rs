//! Real sockets through real programs: a walk a test.

mod carried;
mod checksums;
mod datagrams;
mod flood;
mod fragments;
mod healing;
mod ipv6;
mod lifecycle;
mod odd;
mod path;
mod peers;
mod pmtu;
mod policy;
mod portless;
mod ports;
mod readable;
mod rig;
mod services;
mod spoof;
mod streams;
mod sweep;
mod table;
mod trace;
mod upheaval;
mod xdp;
