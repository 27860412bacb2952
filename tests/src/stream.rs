//! A long TCP stream in both directions at once, every byte of which is compared.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;

/// Sends `bytes` from a client in `from` to a server in `to`, and as many back at the same time. Returns how long it took
/// and the client's address as the server saw it.
pub fn exchange(
    from: &Netns,
    to: &Netns,
    server: impl Into<SocketAddr>,
    bytes: u64,
) -> Result<(Duration, SocketAddr)> {
    let server = server.into();
    exchange_through(from, to, server, server, bytes)
}

/// As [`exchange`]; the client dials another address than the server has.
pub fn exchange_through(
    from: &Netns,
    to: &Netns,
    dial: impl Into<SocketAddr>,
    listen: impl Into<SocketAddr>,
    bytes: u64,
) -> Result<(Duration, SocketAddr)> {
    let (dial, listen) = (dial.into(), listen.into());
    let listener = to
        .bind(|| TcpListener::bind(listen))
        .with_context(|| format!("cannot listen on {listen}"))?;
    let start = Instant::now();
    let client = from.run(|| TcpStream::connect_timeout(&dial, Duration::from_secs(5)))?;
    let client = client.with_context(|| format!("TCP connection to {dial}"))?;
    let (connection, seen) = listener.accept()?;
    thread::scope(|scope| {
        let jobs = [
            scope.spawn(|| send(&client, bytes, 1).context("client sends")),
            scope.spawn(|| check(&client, bytes, 2).context("client reads")),
            scope.spawn(|| send(&connection, bytes, 2).context("server sends")),
            scope.spawn(|| check(&connection, bytes, 1).context("server reads")),
        ];
        jobs.into_iter().try_for_each(|job| {
            job.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok((start.elapsed(), seen))
}

/// A prime, so that the pattern has no period in common with segments, pages or buffers.
const BLOCK: usize = 1_048_573;

/// Bytes of xorshift64 (Marsaglia 2003), another sequence for each direction.
fn pattern(seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut step = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..BLOCK).map(|_| step()).collect()
}

fn send(mut stream: &TcpStream, bytes: u64, seed: u64) -> Result<()> {
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let block = pattern(seed);
    let mut left = bytes;
    while left > 0 {
        let len = left.min(BLOCK as u64);
        stream
            .write_all(&block[..len as usize])
            .with_context(|| format!("{left} bytes left"))?;
        left -= len;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(())
}

fn check(mut stream: &TcpStream, bytes: u64, seed: u64) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let block = pattern(seed);
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0u64;
    loop {
        let len = stream
            .read(&mut buffer)
            .with_context(|| format!("after {at} bytes"))?;
        if len == 0 {
            break;
        }
        let mut got = &buffer[..len];
        while !got.is_empty() {
            let offset = (at % BLOCK as u64) as usize;
            let (now, later) = got.split_at(got.len().min(BLOCK - offset));
            ensure!(
                now == &block[offset..offset + now.len()],
                "changed within {} bytes after byte {at}",
                now.len()
            );
            at += now.len() as u64;
            got = later;
        }
    }
    ensure!(at == bytes, "{at} bytes arrived, {bytes} were sent");
    Ok(())
}
