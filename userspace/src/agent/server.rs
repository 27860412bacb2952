//! Answers over HTTP: on a loopback address what monitoring asks for, on a unix socket that and what the command line
//! shows. Reads only.

use std::{
    convert::Infallible,
    fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::{AbortHandle, spawn_blocking},
};

use super::{give_memory_back, metrics, state::Shared};
use crate::cli::documents;

/// The socket of the agent.
pub(crate) const SOCKET: &str = "/run/causeway/causeway.sock";
/// Connections at a time, of either kind. Who comes later waits.
const CONNECTIONS: usize = 32;
/// A request that takes longer to arrive is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const HEAD: usize = 16 << 10;

/// The listeners.
pub(super) struct Servers {
    socket: PathBuf,
    unix: AbortHandle,
    tcp: Option<(SocketAddr, AbortHandle)>,
    room: Arc<Semaphore>,
}

impl Servers {
    /// Listens from here on. A TCP port that is taken is no reason not to run.
    pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let socket = shared.root.path(SOCKET);
        if let Some(directory) = socket.parent() {
            fs::create_dir_all(directory)?;
        }
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o660))?;
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let (state, seats) = (Arc::clone(shared), Arc::clone(&room));
        let unix = tokio::spawn(async move {
            loop {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                admit(accepted, &state, &seats, Access::Everything).await;
            }
        });
        let mut servers = Self {
            socket,
            unix: unix.abort_handle(),
            tcp: None,
            room,
        };
        servers.follow(shared);
        Ok(servers)
    }

    /// Listens where the configuration says.
    pub(super) fn follow(&mut self, shared: &Arc<Shared>) {
        let wanted = shared.listen();
        if wanted == self.tcp.as_ref().map(|(address, _)| *address) {
            return;
        }
        if let Some((_, task)) = self.tcp.take() {
            task.abort();
        }
        let Some(address) = wanted else { return };
        match listen(address) {
            Ok(listener) => {
                let (state, seats) = (Arc::clone(shared), Arc::clone(&self.room));
                let task = tokio::spawn(async move {
                    loop {
                        let accepted = listener.accept().await.map(|(stream, _)| stream);
                        admit(accepted, &state, &seats, Access::Monitoring).await;
                    }
                });
                self.tcp = Some((address, task.abort_handle()));
            }
            Err(error) => {
                tracing::error!(%error, %address, "cannot listen: metrics are on the socket only");
            }
        }
    }

    pub(super) fn end(self) {
        self.unix.abort();
        if let Some((_, task)) = self.tcp {
            task.abort();
        }
        fs::remove_file(self.socket).ok();
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// What a client may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Numbers and health: every process of the node can connect.
    Monitoring,
    /// Also who talks with whom: the socket's owner and group.
    Everything,
}

async fn admit<S>(accepted: io::Result<S>, shared: &Arc<Shared>, room: &Arc<Semaphore>, access: Access)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            // Out of descriptors, say: to ask again at once would only burn time.
            tracing::warn!(%error, "a client could not be let in");
            tokio::time::sleep(Duration::from_millis(100)).await;
            return;
        }
    };
    let Ok(seat) = Arc::clone(room).acquire_owned().await else {
        return;
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let service = service_fn(move |request| answer(request, Arc::clone(&shared), access));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "a client was cut off");
        }
        drop(seat);
    });
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    access: Access,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is answered\n".to_owned(),
        );
        response
            .headers_mut()
            .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    let path = request.uri().path().to_owned();
    // What is read of the maps may take a while, and others are waiting.
    let answer = move || {
        let response = route(&path, &shared, access);
        give_memory_back();
        response
    };
    let answered = spawn_blocking(answer).await;
    Ok(answered.unwrap_or_else(|_lost| text(StatusCode::INTERNAL_SERVER_ERROR, "failed\n".to_owned())))
}

fn route(path: &str, shared: &Shared, access: Access) -> Response<Full<Bytes>> {
    match path {
        "/livez" if shared.known().is_alive() => text(StatusCode::OK, "ok\n".to_owned()),
        "/livez" => text(StatusCode::SERVICE_UNAVAILABLE, "the agent is stuck\n".to_owned()),
        "/readyz" => readiness(&shared.known().not_ready()),
        "/metrics" => match metrics::text(shared) {
            Ok(body) => reply(StatusCode::OK, metrics::CONTENT, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        _ => match path.strip_prefix("/v1/").filter(|_| access == Access::Everything) {
            Some(name) => document(name, shared),
            None => text(StatusCode::NOT_FOUND, "no such page\n".to_owned()),
        },
    }
}

fn readiness(reasons: &[String]) -> Response<Full<Bytes>> {
    if reasons.is_empty() {
        return text(StatusCode::OK, "ok\n".to_owned());
    }
    text(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("{}\n", reasons.join("\n")),
    )
}

fn document(name: &str, shared: &Shared) -> Response<Full<Bytes>> {
    match documents::json(name, &shared.root) {
        Some(Ok(body)) => reply(StatusCode::OK, "application/json", body),
        Some(Err(error)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        None => text(
            StatusCode::NOT_FOUND,
            format!("no such document; there are {}\n", documents::NAMES.join(", ")),
        ),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", body.into_bytes())
}

fn reply(status: StatusCode, content: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content));
    response
}
