//! Real sockets through real programs: a walk a test.

mod carried;
mod datagrams;
mod lifecycle;
mod path;
mod policy;
mod ports;
mod readable;
mod rig;
mod services;
mod spoof;
mod streams;
mod sweep;
