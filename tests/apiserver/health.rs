//! What API servers say of themselves: `/readyz`, by HTTP and by HTTPS.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, ensure};
use causeway_tests::delegated::SERVERS;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::{control_plane::ControlPlane, scene::Scene};

const PORT: u16 = 6443;

/// Says how its server is.
struct Ready {
    status: Arc<AtomicU16>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ready {
    fn serve(plane: &ControlPlane, address: Ipv4Addr, tls: Option<Arc<ServerConfig>>) -> Result<Self> {
        let listener = plane
            .ns
            .bind(|| TcpListener::bind(SocketAddrV4::new(address, PORT)))?;
        listener.set_nonblocking(true)?;
        let status = Arc::new(AtomicU16::new(200));
        let over = Arc::new(AtomicBool::new(false));
        let thread = {
            let (status, over) = (Arc::clone(&status), Arc::clone(&over));
            thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let Ok((stream, _)) = listener.accept() else {
                        thread::sleep(Duration::from_millis(2));
                        continue;
                    };
                    stream.set_nonblocking(false).ok();
                    stream.set_read_timeout(Some(Duration::from_secs(1))).ok();
                    let status = status.load(Ordering::SeqCst);
                    // A client that goes away is its own affair.
                    match &tls {
                        None => answer(stream, status).ok(),
                        Some(config) => ServerConnection::new(Arc::clone(config))
                            .ok()
                            .and_then(|tls| answer(StreamOwned::new(tls, stream), status).ok()),
                    };
                }
            })
        };
        Ok(Self {
            status,
            over,
            thread: Some(thread),
        })
    }

    fn say(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn answer(stream: impl Read + Write, status: u16) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request)?;
    let status = if request == "GET /readyz?verbose HTTP/1.1\r\n" {
        status
    } else {
        404
    };
    while stream.read_line(&mut request)? > 2 {}
    write!(
        stream.get_mut(),
        "HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n"
    )?;
    Ok(stream.get_mut().flush()?)
}

fn follows_what_servers_say(kind: &str) -> Result<()> {
    let mut scene = Scene::new(&format!(
        "healthPort: {PORT}\n  probe: {{kind: {kind}, path: \"/readyz?verbose\", intervalSeconds: 1, timeoutSeconds: 1, \
         unhealthyAfter: 2}}"
    ))?;
    let tls = (kind == "https").then(|| scene.plane.config());
    let ready: Vec<_> = SERVERS
        .iter()
        .map(|server| Ready::serve(&scene.plane, *server, tls.clone()))
        .collect::<Result<_>>()?;
    scene.wait_for_health([true; 3])?;
    ready[1].say(503);
    scene.wait_for_health([true, false, true])?;
    let status = scene.rig.node.causeway(&["apiserver", "status"])?;
    ensure!(
        status.contains("GET /readyz?verbose is answered with status 503"),
        "{status}"
    );
    ready[1].say(200);
    ready[2].say(401);
    scene.wait_for_health([true, true, false])?;
    ready[2].say(204);
    scene.wait_for_health([true; 3])
}

#[test]
fn a_server_that_says_by_http_that_it_is_not_ready_gets_nobody() -> Result<()> {
    follows_what_servers_say("http")
}

/// Its certificate has another name than its address, and nobody has vouched for it.
#[test]
fn a_server_that_says_by_https_that_it_is_not_ready_gets_nobody() -> Result<()> {
    follows_what_servers_say("https")
}

/// A server that speaks no TLS on the health port is not healthy by HTTPS.
#[test]
fn a_health_port_without_tls_fails_https() -> Result<()> {
    let mut scene = Scene::new(&format!(
        "healthPort: {PORT}\n  probe: {{kind: https, path: \"/readyz?verbose\", intervalSeconds: 1, unhealthyAfter: 1}}"
    ))?;
    let tls = scene.plane.config();
    let _ready = [
        Ready::serve(&scene.plane, SERVERS[0], None)?,
        Ready::serve(&scene.plane, SERVERS[1], Some(Arc::clone(&tls)))?,
        Ready::serve(&scene.plane, SERVERS[2], Some(tls))?,
    ];
    scene.wait_for_health([false, true, true])?;
    let status = scene.rig.node.causeway(&["apiserver", "status"])?;
    ensure!(status.contains(&format!("port {PORT}: TLS")), "{status}");
    Ok(())
}
