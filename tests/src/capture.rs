//! What a wire saw: a packet socket on an interface and a thread that keeps what it reads.

use std::{
    io,
    mem::size_of_val,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::{frame::Frame, netns::Netns, packet_socket};

/// An instruction of a classic BPF filter (`linux/filter.h`): code, jump if true, jump if false, constant.
pub type Instruction = (u16, u8, u8, u32);

/// A running capture. Dropped, it ends.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Captures every IPv4 and ARP frame of an interface from here on.
    pub fn start(ns: &Netns, interface: &str) -> Result<Self> {
        Self::filtered(ns, interface, &[])
    }

    /// Captures what `filter` lets through. The filter runs in the kernel, so that a rare packet is found among
    /// millions and none is lost for want of speed.
    pub fn filtered(ns: &Netns, interface: &str, filter: &[Instruction]) -> Result<Self> {
        let socket = packet_socket::open(ns, interface, 64 << 20, |socket| set_up(socket, filter))?;
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (frames, stop) = (Arc::clone(&frames), Arc::clone(&stop));
            move || read_frames(&socket, &frames, &stop)
        });
        Ok(Self {
            frames,
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the capture. Frames that were on the wire before the call are among the result.
    pub fn stop(mut self) -> Vec<Frame> {
        self.join();
        std::mem::take(&mut *self.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The frames so far.
    pub fn so_far(&self) -> Vec<Frame> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first frame for which `wanted` returns something, and what it returns; `None` when none came in time.
    pub fn wait<T>(&self, patience: Duration, wanted: impl Fn(&Frame) -> Option<T>) -> Option<T> {
        let end = Instant::now() + patience;
        let mut looked_at = 0;
        loop {
            let late = Instant::now() >= end;
            let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
            let found = frames[looked_at..].iter().find_map(&wanted);
            looked_at = frames.len();
            drop(frames);
            if found.is_some() || late {
                return found;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the reader would be a bug of the rig; its frames are missing then and the test says so.
            drop(thread.join());
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.join();
    }
}

fn set_up(socket: &OwnedFd, filter: &[Instruction]) -> io::Result<()> {
    set_socket_timeout(socket, Timeout::Recv, Some(Duration::from_millis(20)))?;
    if filter.is_empty() {
        return Ok(());
    }
    let mut program: Vec<libc::sock_filter> = filter
        .iter()
        .map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
        .collect();
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    packet_socket::set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Reads until told to stop *and* the socket's queue is empty.
fn read_frames(socket: &OwnedFd, frames: &Mutex<Vec<Frame>>, stop: &AtomicBool) {
    let mut buffer = vec![0u8; 1 << 17];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        match receive(socket, &mut buffer, stopping) {
            Some((outgoing, len)) => {
                if let Some(frame) = Frame::parse(outgoing, &buffer[..len]) {
                    frames.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
                }
            }
            None if stopping => return,
            None => {}
        }
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8], stopping: bool) -> Option<(bool, usize)> {
    let mut from: libc::sockaddr_ll = libc::sockaddr_ll {
        sll_family: 0,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut from_len = size_of_val(&from) as u32;
    let flags = if stopping { libc::MSG_DONTWAIT } else { 0 };
    // SAFETY: buffer and address are live and their lengths are given.
    let len = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags,
            (&raw mut from).cast(),
            &raw mut from_len,
        )
    };
    let len = usize::try_from(len).ok()?;
    Some((from.sll_pkttype == libc::PACKET_OUTGOING, len))
}
