//! Makes a veth poll (NAPI): only then does it take frames that XDP redirects to it. It does so once GRO is on (Linux 5.13),
//! which is said by the older of ethtool's two interfaces: one call, where the other needs a family of netlink of its own.

use std::{io, os::fd::AsRawFd as _};

use super::{Link, LinkError, Netlink};

/// `ETHTOOL_SGRO` of `linux/ethtool.h`.
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

impl Netlink {
    /// Turns GRO on. The interface must be up: only then does the kernel note at the other end, which is up already, that
    /// frames may be redirected to it (`veth_set_features`, Linux 6.18).
    pub(super) fn make_poll(&mut self, link: &Link) -> Result<(), LinkError> {
        let mut value = EthtoolValue {
            command: ETHTOOL_SGRO,
            data: 1,
        };
        // SAFETY: `ifreq` is integers and a union of integers and pointers: all zeros is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays zero: the kernel's names have 15 bytes at most.
        for (to, from) in request.ifr_name.iter_mut().take(15).zip(link.name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the request is an `ifreq` whose data is the command's structure; both outlive the call.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result == 0 {
            return Ok(());
        }
        Err(LinkError::Refused {
            action: format!(
                "turn GRO on for {}, so that it takes the frames of XDP",
                link.name
            ),
            source: io::Error::last_os_error(),
        })
    }
}
