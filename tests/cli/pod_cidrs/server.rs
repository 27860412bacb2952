//! An API server that says what it is told to say, over HTTP or TLS, and remembers what it was asked.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::net::{Shutdown, shutdown};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use serde_json::Value;

/// What is said to a question.
#[derive(Clone)]
pub(crate) enum Answer {
    Json(u16, Value),
    Text(u16, &'static str),
    /// Nothing, ever.
    Silence,
    /// Nothing, and the connection is closed.
    HangUp,
}

/// A question.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The first line.
    pub(crate) line: String,
    /// `Authorization`, empty if there was none.
    pub(crate) authorization: String,
    /// Whether the client had a certificate of the cluster's.
    pub(crate) has_certificate: bool,
}

/// The server. Its answers come one after another, the last again and again.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    asked: Arc<Mutex<Vec<Asked>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(tls: Option<Arc<ServerConfig>>, answers: &[Answer]) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let thread = thread::spawn({
            let (listener, asked, answers) = (listener.try_clone()?, Arc::clone(&asked), answers.to_vec());
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    let (tls, asked, answers) = (tls.clone(), Arc::clone(&asked), answers.clone());
                    // One that keeps silent must not be in the way of the next.
                    thread::spawn(move || serve(stream, tls, &asked, &answers).ok());
                }
            }
        });
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            asked,
            thread: Some(thread),
        })
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes accept(); it fails only when the socket is gone, and then accept() has ended too.
        shutdown(&self.listener, Shutdown::Both).ok();
        self.thread.take().map(JoinHandle::join);
    }
}

fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    asked: &Mutex<Vec<Asked>>,
    answers: &[Answer],
) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let Some(config) = tls else {
        return talk(stream, false, asked, answers);
    };
    let (mut stream, mut connection) = (stream, ServerConnection::new(config)?);
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let has_certificate = connection.peer_certificates().is_some();
    talk(
        StreamOwned::new(connection, stream),
        has_certificate,
        asked,
        answers,
    )
}

fn talk(
    stream: impl Read + Write,
    has_certificate: bool,
    asked: &Mutex<Vec<Asked>>,
    answers: &[Answer],
) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut question = Asked {
        line: String::new(),
        authorization: String::new(),
        has_certificate,
    };
    stream.read_line(&mut question.line)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                value.clone_into(&mut question.authorization);
            }
            Some(_) => {}
            None => break,
        }
    }
    let index = {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(question);
        asked.len() - 1
    };
    let (code, kind, body) = match answers.get(index).or(answers.last()).context("no answer")? {
        Answer::Json(code, body) => (*code, "application/json", body.to_string()),
        Answer::Text(code, body) => (*code, "text/html", (*body).to_owned()),
        // Until the client has had enough.
        Answer::Silence => return Ok(stream.read_to_end(&mut Vec::new()).map(drop)?),
        Answer::HangUp => return Ok(()),
    };
    let stream = stream.get_mut();
    write!(
        stream,
        "HTTP/1.1 {code} .\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(stream.flush()?)
}

/// Who a cluster believes: its authority, and what that has signed.
pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    /// In PEM, as `ca.crt` has it.
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            params,
            key,
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
        })
    }

    /// A certificate for that name or address, and the key to it.
    pub(crate) fn sign(&self, name: &str) -> Result<(rcgen::Certificate, KeyPair)> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new([name.to_owned()])?;
        let certificate = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?;
        Ok((certificate, key))
    }

    /// A server at the loopback address. Clients may have a certificate.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>> {
        let (certificate, key) = self.sign("127.0.0.1")?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let clients = WebPkiClientVerifier::builder(Arc::new(roots))
            .allow_unauthenticated()
            .build()?;
        let config = ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate.der().clone()], key)?;
        Ok(Arc::new(config))
    }
}
