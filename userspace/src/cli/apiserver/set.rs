//! `causeway apiserver set`.

use std::{
    fs,
    io::{self, Write as _},
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use causeway::{
    apiserver::{Description, Document, Mode, Steward},
    config,
    datapath::Datapath,
    durable,
    root::Root,
    settings::Settings,
};
use clap::Args;
use ipnet::Ipv4Net;

use super::Failure;
use crate::agent::SOCKET;

/// How long the agent may take to follow.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is said.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Its virtual address
    #[arg(long, value_name = "ADDRESS")]
    vip: Option<Ipv4Addr>,
    /// public or private: who may come in
    #[arg(long)]
    mode: Option<Mode>,
    /// A subnet delegated to it; repeatable
    #[arg(long = "subnet", value_name = "CIDR")]
    subnets: Vec<Ipv4Net>,
    /// A port of it; repeatable
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<u16>,
    /// An address of the public endpoint; repeatable
    #[arg(long = "public-address", value_name = "ADDRESS")]
    public_addresses: Vec<Ipv4Addr>,
    /// An API server to spread over; repeatable
    #[arg(long = "backend", value_name = "ADDRESS", conflicts_with = "no_backends")]
    backends: Vec<Ipv4Addr>,
    /// Somebody else balances
    #[arg(long)]
    no_backends: bool,
    /// Seconds that what is open may go on
    #[arg(long = "drain", value_name = "SECONDS")]
    drain_seconds: Option<u32>,
    /// Take back what was said here
    #[arg(long, exclusive = true)]
    unset: bool,
}

impl Arguments {
    fn document(self) -> Document {
        fn unless_empty<T>(values: Vec<T>) -> Option<Vec<T>> {
            (!values.is_empty()).then_some(values)
        }
        Document {
            subnets: unless_empty(self.subnets),
            vip: self.vip,
            ports: unless_empty(self.ports),
            mode: self.mode,
            public_addresses: unless_empty(self.public_addresses),
            drain_seconds: self.drain_seconds,
            backends: unless_empty(self.backends).or(self.no_backends.then(Vec::new)),
            ..Document::default()
        }
    }
}

pub(crate) fn run(arguments: Arguments, root: &Root) -> Result<(), Failure> {
    let path = root.path(config::API_SERVER);
    let failed = |source| Failure::File {
        path: path.clone(),
        source,
    };
    let said = if arguments.unset {
        Document::default()
    } else {
        let said = arguments.document();
        if said == Document::default() {
            return Err(Failure::Usage(
                "say what is to change, for instance --vip 10.226.0.4 (see --help)".to_owned(),
            ));
        }
        config::api_server_document(root)
            .map_err(Failure::Config)?
            .with(said)
    };
    let wanted = config::describe_api_server(root, said.clone()).map_err(Failure::Config)?;
    if said == Document::default() {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    } else {
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        let text = serde_json::to_vec_pretty(&said).map_err(|error| failed(error.into()))?;
        durable::write(&path, &text).map_err(failed)?;
    }
    let told = if has_agent(root) {
        wait_for_agent(root, wanted.as_ref())?
    } else {
        apply(root, wanted.as_ref())?
    };
    writeln!(io::stdout(), "{told}").map_err(Failure::Output)
}

fn has_agent(root: &Root) -> bool {
    std::os::unix::net::UnixStream::connect(root.path(SOCKET)).is_ok()
}

/// Waits until the agent has followed.
fn wait_for_agent(root: &Root, wanted: Option<&Description>) -> Result<String, Failure> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if has_followed(root, wanted)? {
            return Ok(format!("in force after {} ms", begun.elapsed().as_millis()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(format!(
        "noted, but the agent has not followed in {} s: causeway doctor says why",
        PATIENCE.as_secs()
    ))
}

fn has_followed(root: &Root, wanted: Option<&Description>) -> Result<bool, Failure> {
    let steward = Steward::new(root);
    let known = steward.known();
    let backends: Vec<Ipv4Addr> = known.backends.keys().copied().collect();
    let is_known = wanted.is_none_or(|wanted| {
        let mut named = wanted.backends.clone().unwrap_or_default();
        named.sort_unstable();
        named.dedup();
        (known.vip, known.mode, backends) == (wanted.vip, wanted.mode, named)
    });
    let settings = Settings::noted(root);
    let expected = wanted.map(|wanted| steward.api_server_of(wanted));
    if !is_known || settings.api_server != expected {
        return Ok(false);
    }
    match Datapath::open(root)? {
        Some(datapath) => Ok(datapath.has_ranges(&settings.ranges())?),
        None => Ok(true),
    }
}

/// Does what the agent would do, as far as it can be done by somebody who does not stay.
fn apply(root: &Root, wanted: Option<&Description>) -> Result<String, Failure> {
    let mut steward = Steward::new(root);
    steward.follow(wanted);
    let mut settings = config::load(root).map_err(Failure::Config)?.settings;
    settings.api_server = steward.api_server();
    settings.note(root).map_err(|error| Failure::File {
        path: error.path().to_owned(),
        source: io::Error::other(error),
    })?;
    let Some(datapath) = Datapath::open(root)? else {
        return Ok("noted: the first pod loads the datapath, which follows it".to_owned());
    };
    datapath.apply_choice(&settings)?;
    Ok(
        "in force; no agent runs, so nothing is probed and connections to what is gone are not ended"
            .to_owned(),
    )
}
