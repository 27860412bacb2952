//! One HTTP request over a plain connection (RFC 9112): all that the wireserver needs.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// How long the server may take to accept the connection, and as long again to answer: the incumbent's times.
const PATIENCE: Duration = Duration::from_secs(10);
/// A longer answer is not a list of addresses. Bytes.
const LIMIT: u64 = 16 << 20;

/// The body of the answer to a GET, which must have status 200.
pub(super) fn get(server: SocketAddr, path: &str) -> Result<String, String> {
    let connected = TcpStream::connect_timeout(&server, PATIENCE);
    let mut stream = connected.map_err(|error| format!("cannot connect: {error}"))?;
    exchange(&mut stream, server, path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("no answer within {} s", PATIENCE.as_secs())
        }
        _ => error.to_string(),
    })
}

fn exchange(stream: &mut TcpStream, server: SocketAddr, path: &str) -> io::Result<String> {
    let end = Instant::now() + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: causeway/{}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        server.ip(),
        env!("CARGO_PKG_VERSION")
    );
    // At once: a server that answers the first part and closes resets the connection when it gets another.
    stream.write_all(request.as_bytes())?;
    let mut answer = BufReader::new(Until { stream, end }.take(LIMIT));
    let status = line(&mut answer)?;
    if status.split_ascii_whitespace().nth(1) != Some("200") {
        return Err(io::Error::other(format!("the server answered {status:?}")));
    }
    let (mut length, mut chunked) = (None, false);
    loop {
        let header = line(&mut answer)?;
        let Some((name, value)) = header.split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<u64>().ok(),
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
    let mut body = Vec::new();
    match (chunked, length) {
        (true, _) => read_chunks(&mut answer, &mut body)?,
        (false, Some(length)) => {
            if answer.take(length).read_to_end(&mut body)? as u64 != length {
                return Err(io::Error::other("the answer is cut short"));
            }
        }
        (false, None) => {
            answer.read_to_end(&mut body)?;
        }
    }
    String::from_utf8(body).map_err(|_| io::Error::other("the answer is not UTF-8"))
}

fn read_chunks(answer: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let size = line(answer)?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| io::Error::other("a chunk without a size"))?;
        if size == 0 {
            return Ok(());
        }
        if answer.by_ref().take(size).read_to_end(body)? as u64 != size {
            return Err(io::Error::other("the answer is cut short"));
        }
        line(answer)?;
    }
}

/// A line without its end.
fn line(answer: &mut impl BufRead) -> io::Result<String> {
    const LONGEST: u64 = 64 << 10;
    let mut bytes = Vec::new();
    answer.by_ref().take(LONGEST).read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Err(io::Error::other("the answer is cut short"));
    }
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned())
}

/// Reads until a moment, however slowly the bytes come.
struct Until<'a> {
    stream: &'a mut TcpStream,
    end: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    fn answered(answer: &'static str) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let n = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let got = get(server, "/machine?comp=x");
        let request = serving.join().unwrap();
        assert!(
            request.starts_with("GET /machine?comp=x HTTP/1.1\r\nHost: 127.0.0.1\r\n"),
            "{request}"
        );
        got
    }

    #[test]
    fn a_body_comes_with_a_length_in_chunks_or_to_the_end() {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbodyrest",
            "HTTP/1.0 200 OK\r\n\r\nbody",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1;x=y\r\nb\r\n3\r\nody\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\ncontent-length: 4\n\nbody",
        ] {
            assert_eq!(answered(answer).as_deref(), Ok("body"), "{answer}");
        }
    }

    #[test]
    fn other_answers_are_named() {
        for (answer, needle) in [
            ("HTTP/1.1 503 Busy\r\n\r\n", "503 Busy"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbody", "cut short"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nbody",
                "cut short",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
                "without a size",
            ),
            ("", "cut short"),
        ] {
            let error = answered(answer).unwrap_err();
            assert!(error.contains(needle), "{answer}: {error}");
        }
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(get(closed, "/").unwrap_err().contains("refused"));
    }
}
