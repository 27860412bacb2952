//! Offloads of a network interface, by the `SIOCETHTOOL` ioctl.

use std::{io, os::fd::AsRawFd};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::netns::Netns;

/// Whether checksums are left to the receiver's trust (veth) or computed before a packet is sent: `ETHTOOL_STXCSUM`.
pub const TX_CHECKSUM: u32 = 0x17;
/// Whether the interface vouches for checksums that it receives: `ETHTOOL_SRXCSUM`.
pub const RX_CHECKSUM: u32 = 0x15;
/// Whether TCP leaves segmentation to the interface: `ETHTOOL_STSO`.
pub const TCP_SEGMENTATION: u32 = 0x1f;
/// Whether segmentation waits until the interface: `ETHTOOL_SGSO`.
pub const SEGMENTATION: u32 = 0x24;
/// Whether received segments are merged. On veth it also switches NAPI on: `ETHTOOL_SGRO`.
pub const GRO: u32 = 0x2c;

/// Switches an offload of an interface on or off.
pub fn set(ns: &Netns, interface: &str, offload: u32, on: bool) -> Result<()> {
    ns.run(|| ioctl(interface, offload, on))?
        .with_context(|| format!("cannot switch offload {offload:#x} of {interface} to {on}"))
}

/// `struct ethtool_value` (linux/ethtool.h).
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

fn ioctl(interface: &str, offload: u32, on: bool) -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut value = Value {
        command: offload,
        data: u32::from(on),
    };
    // SAFETY: integers and a union of plain data: all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(interface.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: request and value are live and of the types that SIOCETHTOOL expects.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
