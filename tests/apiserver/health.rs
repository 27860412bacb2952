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
use causeway_tests::{
    agent::Agent,
    delegated::{NOBODYS, SERVERS},
    node::Node,
    rig::Rig,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::control_plane::ControlPlane;

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
    let rig = Rig::causeway()?;
    let plane = ControlPlane::new(&rig.fabric)?;
    let tls = (kind == "https").then(|| plane.config());
    let _servers: Vec<_> = SERVERS
        .iter()
        .map(|server| plane.serve(*server))
        .collect::<Result<_>>()?;
    let ready: Vec<_> = SERVERS
        .iter()
        .map(|server| Ready::serve(&plane, *server, tls.clone()))
        .collect::<Result<_>>()?;
    let addresses = SERVERS.map(|address| address.to_string()).join(", ");
    rig.node.root.write(
        "/etc/causeway/config.yaml",
        &format!(
            "apiServer:\n  subnets: [10.226.0.0/28]\n  vip: {NOBODYS}\n  backends: [{addresses}]\n  drainSeconds: 1\n  \
             healthPort: {PORT}\n  probe: {{kind: {kind}, path: \"/readyz?verbose\", intervalSeconds: 1, timeoutSeconds: 1, \
             unhealthyAfter: 2}}\n"
        ),
    )?;
    let mut agent = Agent::start(&rig.node)?;
    let mut are_well = |well: [bool; 3]| {
        agent.wait_for("what the servers say to be known", |_| {
            Ok(health(&rig.node)? == well)
        })
    };
    ready[1].say(503);
    are_well([true, false, true])?;
    let status = rig.node.causeway(&["apiserver", "status"])?;
    ensure!(
        status.contains("GET /readyz?verbose is answered with status 503"),
        "{status}"
    );
    ready[1].say(200);
    ready[2].say(401);
    are_well([true, true, false])?;
    ready[2].say(204);
    are_well([true, true, true])
}

fn health(node: &Node) -> Result<Vec<bool>> {
    let status: serde_json::Value =
        serde_json::from_str(&node.causeway(&["apiserver", "status", "--json"])?)?;
    let backends = status["backends"].as_array().cloned().unwrap_or_default();
    Ok(backends
        .iter()
        .map(|backend| backend["isHealthy"] == true)
        .collect())
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
    let rig = Rig::causeway()?;
    let plane = ControlPlane::new(&rig.fabric)?;
    let _server = plane.serve(SERVERS[0])?;
    let _ready = Ready::serve(&plane, SERVERS[0], None)?;
    rig.node.root.write(
        "/etc/causeway/config.yaml",
        &format!(
            "apiServer:\n  vip: {NOBODYS}\n  backends: [{}]\n  healthPort: {PORT}\n  \
             probe: {{kind: https, intervalSeconds: 1, unhealthyAfter: 1}}\n",
            SERVERS[0]
        ),
    )?;
    let mut agent = Agent::start(&rig.node)?;
    agent.wait_for(
        "the server to be found out",
        |_| Ok(health(&rig.node)? == [false]),
    )?;
    let status = rig.node.causeway(&["apiserver", "status"])?;
    ensure!(status.contains(&format!("port {PORT}: TLS")), "{status}");
    Ok(())
}
