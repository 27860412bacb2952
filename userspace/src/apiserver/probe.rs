//! Asks an API server whether it is there.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Description, ProbeKind, tls};

/// Opens a connection. Returns how long that took; or in words why there is none.
pub async fn reach(address: Ipv4Addr, port: u16, patience: Duration) -> Result<Duration, String> {
    let started = Instant::now();
    connect(address, port, patience)
        .await
        .map(|_stream| started.elapsed())
}

async fn connect(address: Ipv4Addr, port: u16, patience: Duration) -> Result<TcpStream, String> {
    let connect = TcpStream::connect(SocketAddr::from((address, port)));
    match timeout(patience, connect).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("port {port}: {error}")),
        Err(_) => Err(format!("port {port}: no answer in {} s", patience.as_secs_f64())),
    }
}

/// Whether a backend takes connections on each of its ports, and its health port says that it is well; or in words why not.
pub async fn probe(server: &Description, backend: Ipv4Addr) -> Result<(), String> {
    let patience = Duration::from_secs(server.probe.timeout_seconds.into());
    for port in &server.ports {
        connect(backend, *port, patience).await?;
    }
    let port = server.health_port;
    match server.probe.kind {
        ProbeKind::None => Ok(()),
        ProbeKind::Tcp => connect(backend, port, patience).await.map(drop),
        ProbeKind::Http | ProbeKind::Https => {
            let path = &server.probe.path;
            let ask = async {
                let stream = connect(backend, port, patience).await?;
                let answer = if server.probe.kind == ProbeKind::Http {
                    status_line(stream, backend, path).await
                } else {
                    match tls::connect(backend, stream).await {
                        Ok(stream) => status_line(stream, backend, path).await,
                        Err(error) => return Err(format!("port {port}: TLS: {error}")),
                    }
                };
                judge(&answer.map_err(|error| format!("port {port}: {error}"))?, path)
                    .map_err(|fault| format!("port {port}: {fault}"))
            };
            let asked = timeout(patience, ask).await;
            asked.unwrap_or_else(|_| Err(format!("port {port}: no answer in {} s", patience.as_secs_f64())))
        }
    }
}

/// Sends a request. Returns the beginning of the answer: "HTTP/1.1 200" (RFC 9112 section 4).
async fn status_line(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    backend: Ipv4Addr,
    path: &str,
) -> io::Result<[u8; 12]> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {backend}\r\nUser-Agent: causeway\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut line = [0; 12];
    stream.read_exact(&mut line).await?;
    Ok(line)
}

fn judge(line: &[u8], path: &str) -> Result<(), String> {
    let text = String::from_utf8_lossy(line);
    match text.split_once(' ') {
        Some((version, status)) if version.starts_with("HTTP/1.") && status.starts_with('2') => Ok(()),
        Some((version, status)) if version.starts_with("HTTP/1.") => {
            Err(format!("GET {path} is answered with status {status}"))
        }
        _ => Err(format!("GET {path} is not answered by HTTP")),
    }
}
