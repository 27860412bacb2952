//! Clients of an API server: a TLS connection that may be held open for long, as a watch is.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddrV4, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use causeway_tests::netns::Netns;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName},
};

use crate::control_plane::NAME;

/// How long a client waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// What clients trust.
#[derive(Clone)]
pub(crate) struct Trust(Arc<ClientConfig>);

impl Trust {
    pub(crate) fn new(certificate: &CertificateDer<'static>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Connects, in a namespace, to an address.
    pub(crate) fn connect(&self, ns: &Netns, to: SocketAddrV4) -> Result<Watch> {
        let stream = dial(ns, to).with_context(|| format!("connection to {to}"))?;
        let local = match stream.local_addr()? {
            std::net::SocketAddr::V4(local) => local,
            other @ std::net::SocketAddr::V6(_) => bail!("{other}"),
        };
        let name = ServerName::try_from(NAME)?;
        let connection = ClientConnection::new(Arc::clone(&self.0), name)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        let mut greeting = String::new();
        stream
            .read_line(&mut greeting)
            .with_context(|| format!("greeting of {to}"))?;
        let (server, client) = greeting
            .trim()
            .split_once(' ')
            .context("a greeting has two addresses")?;
        Ok(Watch {
            local,
            server: server.parse()?,
            seen_as: client.parse()?,
            stream,
        })
    }
}

/// Opens a connection, or says by which error there is none.
pub(crate) fn dial(ns: &Netns, to: SocketAddrV4) -> io::Result<TcpStream> {
    let stream = ns
        .run(|| TcpStream::connect_timeout(&to.into(), PATIENCE))
        .map_err(io::Error::other)??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether a connection is refused at once.
pub(crate) fn is_refused(ns: &Netns, to: SocketAddrV4) -> Result<()> {
    let begun = Instant::now();
    match dial(ns, to) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        other => bail!("{to}: {other:?} after {:?}", begun.elapsed()),
    }
    // A SYN that is lost is sent again after a second.
    ensure!(
        begun.elapsed() < Duration::from_millis(900),
        "{:?}",
        begun.elapsed()
    );
    Ok(())
}

/// A connection that is held open.
pub(crate) struct Watch {
    /// The client's own address and port, as it knows them.
    pub(crate) local: SocketAddrV4,
    /// Who serves it.
    pub(crate) server: SocketAddrV4,
    /// The client, as the server sees it.
    pub(crate) seen_as: SocketAddrV4,
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Watch {
    /// A message and its answer.
    pub(crate) fn chat(&mut self) -> Result<()> {
        let message = b"is there anything new?";
        self.stream.get_mut().write_all(message)?;
        let mut answer = vec![0; message.len()];
        self.stream.read_exact(&mut answer)?;
        ensure!(answer == message, "the answer is another one");
        Ok(())
    }

    /// Whether the connection ends within `patience`, without a word of the client.
    pub(crate) fn is_reset_within(&mut self, patience: Duration) -> bool {
        let waited = self.stream.get_ref().sock.set_read_timeout(Some(patience));
        let mut buffer = [0];
        match waited.and_then(|()| self.stream.read(&mut buffer)) {
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            Ok(_) => true,
        }
    }

    /// Waits, without a word, until the connection is ended by a reset; or for as long as `patience`.
    pub(crate) fn wait_for_reset(&mut self, patience: Duration) -> Result<()> {
        self.stream.get_ref().sock.set_read_timeout(Some(patience))?;
        let mut buffer = [0];
        match self.stream.read(&mut buffer) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(())
            }
            other => bail!("{} to {}: {other:?}", self.local, self.server),
        }
    }
}
