//! A client of the Container Runtime Interface (runtime.v1), as far as pods go: HTTP/2 by the `h2` crate, the few
//! messages by hand.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use h2::client::SendRequest;
use tokio::{net::UnixStream, runtime::Runtime};

/// How long a call may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// A connection to a runtime.
pub(crate) struct Cri {
    runtime: Runtime,
    sender: SendRequest<bytes::Bytes>,
}

/// A pod to be run.
#[derive(Default)]
pub(crate) struct Sandbox<'a> {
    pub(crate) name: &'a str,
    /// A port of the node that leads to the pod's port 80.
    pub(crate) host_port: Option<u16>,
    /// The annotation `kubernetes.io/ingress-bandwidth`.
    pub(crate) bandwidth: Option<&'a str>,
}

impl Cri {
    /// Connects to the socket.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let sender = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await?;
            let (sender, connection) = h2::client::handshake(stream).await?;
            tokio::spawn(connection);
            Ok::<_, anyhow::Error>(sender)
        })?;
        Ok(Self { runtime, sender })
    }

    /// Whether the runtime has a network for pods.
    pub(crate) fn is_network_ready(&self) -> Result<bool> {
        let answer = self.call("Status", &[])?;
        let status = field(&answer, 1).context("no status")?;
        let ready = fields(status, 1).any(|condition| {
            field(condition, 1) == Some(b"NetworkReady".as_slice()) && varint_field(condition, 2) == Some(1)
        });
        Ok(ready)
    }

    /// Runs a pod. Returns its id.
    pub(crate) fn run(&self, sandbox: &Sandbox<'_>) -> Result<String> {
        let answer = self.call("RunPodSandbox", &message(1, &sandbox.config()))?;
        Ok(String::from_utf8(field(&answer, 1).context("no id")?.to_vec())?)
    }

    /// The pod's address.
    pub(crate) fn address(&self, pod: &str) -> Result<Ipv4Addr> {
        let answer = self.call("PodSandboxStatus", &message(1, pod.as_bytes()))?;
        let network = field(&answer, 1).and_then(|status| field(status, 5));
        let address = network
            .and_then(|network| field(network, 1))
            .context("the pod has no address")?;
        Ok(std::str::from_utf8(address)?.parse()?)
    }

    /// Stops a pod: its network goes.
    pub(crate) fn stop(&self, pod: &str) -> Result<()> {
        self.call("StopPodSandbox", &message(1, pod.as_bytes())).map(drop)
    }

    /// Removes a stopped pod.
    pub(crate) fn remove(&self, pod: &str) -> Result<()> {
        self.call("RemovePodSandbox", &message(1, pod.as_bytes()))
            .map(drop)
    }

    fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>> {
        let call = exchange(self.sender.clone(), method, request);
        let call = async { tokio::time::timeout(PATIENCE, call).await };
        self.runtime
            .block_on(call)
            .with_context(|| format!("{method} takes too long"))?
    }
}

async fn exchange(sender: SendRequest<bytes::Bytes>, method: &str, request: &[u8]) -> Result<Vec<u8>> {
    let head = http::Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut body) = sender.ready().await?.send_request(head, false)?;
    // gRPC's frame: not compressed, length, message.
    let mut frame = vec![0];
    frame.extend(u32::try_from(request.len())?.to_be_bytes());
    frame.extend(request);
    body.send_data(frame.into(), true)?;
    let answer = answer.await?;
    let headers = answer.headers().clone();
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        bytes.extend(data);
    }
    let trailers = body.trailers().await?.unwrap_or(headers);
    let said = |name: &str| {
        trailers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    if said("grpc-status") != "0" {
        bail!(
            "{method}: status {}: {}",
            said("grpc-status"),
            said("grpc-message")
        );
    }
    ensure!(bytes.len() >= 5, "{method}: no message");
    Ok(bytes.split_off(5))
}

impl Sandbox<'_> {
    /// `PodSandboxConfig`.
    fn config(&self) -> Vec<u8> {
        let uid = format!("uid-{}", self.name);
        let metadata = [
            message(1, self.name.as_bytes()),
            message(2, uid.as_bytes()),
            message(3, b"default"),
        ]
        .concat();
        let dns = [message(1, b"10.0.0.10"), message(2, b"svc.cluster.local")].concat();
        let mut config = [
            message(1, &metadata),
            message(2, self.name.as_bytes()),
            message(4, &dns),
        ]
        .concat();
        if let Some(port) = self.host_port {
            config.extend(message(5, &[varint(2, 80), varint(3, port.into())].concat()));
        }
        if let Some(rate) = self.bandwidth {
            let entry = [
                message(1, b"kubernetes.io/ingress-bandwidth"),
                message(2, rate.as_bytes()),
            ]
            .concat();
            config.extend(message(7, &entry));
        }
        // The pod's own network, the container's own processes and IPC with the pod.
        let namespaces = varint(2, 1);
        let security = message(1, &namespaces);
        let linux = [message(1, b"/causeway-tests"), message(2, &security)].concat();
        config.extend(message(8, &linux));
        config
    }
}

/// A field of bytes, of text or of a message (protobuf wire type 2).
fn message(number: u64, bytes: &[u8]) -> Vec<u8> {
    [
        encoded(number << 3 | 2),
        encoded(bytes.len() as u64),
        bytes.to_vec(),
    ]
    .concat()
}

/// A field of a number (wire type 0).
fn varint(number: u64, value: u64) -> Vec<u8> {
    [encoded(number << 3), encoded(value)].concat()
}

fn encoded(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push((value & 0x7f | 0x80) as u8);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn field(bytes: &[u8], number: u64) -> Option<&[u8]> {
    fields(bytes, number).next()
}

fn fields(bytes: &[u8], number: u64) -> impl Iterator<Item = &[u8]> {
    decode(bytes)
        .into_iter()
        .filter_map(move |(found, value)| match value {
            Field::Bytes(bytes) if found == number => Some(bytes),
            _ => None,
        })
}

fn varint_field(bytes: &[u8], number: u64) -> Option<u64> {
    decode(bytes).into_iter().find_map(|(found, value)| match value {
        Field::Number(value) if found == number => Some(value),
        _ => None,
    })
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, as far as they can be read.
fn decode(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while let Some(tag) = take_varint(&mut bytes) {
        let value = match tag & 7 {
            0 => take_varint(&mut bytes).map(Field::Number),
            1 => bytes.split_off(..8).map(Field::Bytes),
            2 => {
                let length = take_varint(&mut bytes).and_then(|length| usize::try_from(length).ok());
                length
                    .and_then(|length| bytes.split_off(..length))
                    .map(Field::Bytes)
            }
            _ => None,
        };
        let Some(value) = value else { break };
        fields.push((tag >> 3, value));
    }
    fields
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
