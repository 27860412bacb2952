//! Packet sockets (packet(7)): what a network interface receives and sends, as whole frames.

use std::{
    io,
    mem::size_of_val,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, socket_with, sockopt::set_socket_recv_buffer_size_force,
};

use crate::netns::Netns;

/// A socket of an interface, with room for `room` bytes of frames that nobody has read yet. It hears nothing before `set_up`
/// is done with it.
pub fn open(
    ns: &Netns,
    interface: &str,
    room: usize,
    set_up: impl FnOnce(&OwnedFd) -> io::Result<()> + Send,
) -> Result<OwnedFd> {
    let ifindex = ns.ifindex(interface)?;
    ns.run(|| -> io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        set_socket_recv_buffer_size_force(&socket, room)?;
        set_up(&socket)?;
        bind(&socket, ifindex)?;
        Ok(socket)
    })?
    .with_context(|| format!("a packet socket on {interface}"))
}

/// Sets an option of a socket.
pub fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is live and its length is given.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of_val(value) as u32,
        )
    };
    done(failed)
}

fn bind(socket: &OwnedFd, ifindex: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: ifindex.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a live sockaddr_ll of the length given.
    done(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    })
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
