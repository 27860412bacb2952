//! The CNI plug-ins `azure-vnet` and `azure-vnet-ipam`: one binary that does what its file name says.
//!
//! Owns the protocol of the CNI specification: environment and configuration in; exactly one JSON object, or nothing,
//! on standard output. Everything else is the library's.
//!
//! - [`invocation`], [`netconf`], [`wishes`], [`version`]: what the runtime wants;
//! - [`add`], [`del`], [`check`], [`status`], [`gc`], [`endpoint_state`]: the verbs of `azure-vnet`; [`ipam`] those of
//!   `azure-vnet-ipam`;
//! - [`repeat`]: an ADD for what is there already;
//! - [`address`], [`delegate`]: where a pod's address comes from;
//! - [`result`], [`error`]: the answers;
//! - [`log`], [`summary`]: one line a call, for whoever looks afterwards;
//! - [`sweep`], [`orphans`]: what a call does by the way.

mod accepted;
mod add;
mod address;
mod attachment;
mod capabilities;
mod check;
mod del;
mod delegate;
mod endpoint_state;
mod error;
mod gc;
mod invocation;
mod ipam;
mod log;
mod netconf;
mod netns;
mod orphans;
mod repeat;
mod result;
mod status;
mod stdio;
mod summary;
mod sweep;
mod undo;
mod version;
mod wishes;

use std::{
    env,
    io::{self, Read},
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::ExitCode,
};

use causeway::root::Root;
use serde_json::Value;

use crate::{
    error::{CniError, code},
    invocation::{Invocation, Verb},
    netconf::NetConf,
    stdio::print,
    summary::Summary,
    version::Version,
};

/// The two plug-ins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plugin {
    Network,
    Ipam,
}

/// A call of the runtime, read and checked.
pub(crate) struct Call<'a> {
    pub(crate) root: &'a Root,
    pub(crate) invocation: &'a Invocation,
    pub(crate) conf: &'a NetConf,
    /// The configuration as it came, for other plug-ins.
    pub(crate) bytes: &'a [u8],
}

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let Some(plugin) = Plugin::named(name) else {
        eprintln!(
            "usage: azure-vnet | azure-vnet-ipam\n{name:?} is neither: this binary is a CNI plug-in and acts by its file \
             name; install it under both names"
        );
        return ExitCode::from(2);
    };
    if let Some("--version" | "-v") = arguments.next().as_ref().and_then(|argument| argument.to_str()) {
        println!("Azure CNI Version {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if env::var_os("CNI_COMMAND").is_none_or(|command| command.is_empty()) {
        eprintln!(
            "CNI {name} plugin, Causeway {}\nCNI protocol versions supported: {}",
            env!("CARGO_PKG_VERSION"),
            version::SUPPORTED.join(", ")
        );
        return ExitCode::SUCCESS;
    }
    call(plugin)
}

/// Serves one call of the runtime.
fn call(plugin: Plugin) -> ExitCode {
    let root = Root::from_env();
    log::start(&root.path(plugin.log()));
    let mut summary = Summary::new(&env::var("CNI_COMMAND").unwrap_or_default());
    let mut spoken = version::NEWEST.to_owned();
    let served = panic::catch_unwind(AssertUnwindSafe(|| {
        serve(plugin, &root, &mut summary, &mut spoken)
    }));
    let outcome = served.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("panic");
        Err(CniError::new(code::PLUGIN, format!("internal error: {text}")).with_details("please report this"))
    });
    // STATUS comes every few seconds: only a failure is worth a line.
    if !matches!(summary.command.as_str(), "VERSION" | "STATUS") || outcome.is_err() {
        summary.log(&outcome);
    }
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell when standard output is closed: the exit status says it.
            print(&error.to_json(&spoken)).ok();
            ExitCode::FAILURE
        }
    }
}

fn serve(plugin: Plugin, root: &Root, summary: &mut Summary, spoken: &mut String) -> Result<(), CniError> {
    let invocation =
        Invocation::read(|name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()))?;
    summary.identify(&invocation);
    if invocation.verb == Verb::EndpointState {
        return answer(&endpoint_state::dump(root)?);
    }
    let bytes = read_configuration()?;
    if invocation.verb == Verb::Version {
        let asked = netconf::decode(&bytes)
            .map(|document| netconf::version(&document))
            .unwrap_or_default();
        return answer(&version::answer(&asked));
    }
    let document = netconf::decode(&bytes)?;
    if let Ok(version) = Version::parse(&netconf::version(&document)) {
        version.text().clone_into(spoken);
    }
    let conf = NetConf::parse(&document, &invocation)?;
    if !conf.version.has(invocation.verb.name()) {
        let msg = format!(
            "config version {} does not allow {}",
            conf.version.text(),
            invocation.verb.name()
        );
        return Err(CniError::new(code::VERSION, msg));
    }
    let call = Call {
        root,
        invocation: &invocation,
        conf: &conf,
        bytes: &bytes,
    };
    match (plugin, invocation.verb) {
        (_, Verb::Version | Verb::EndpointState) => Ok(()),
        (Plugin::Network, Verb::Add) => {
            netconf::consider_keys(&document, invocation.verb)?;
            add::run(&call, summary, print)
        }
        (Plugin::Network, Verb::Del) => del::run(&call, summary),
        (Plugin::Network, Verb::Check) => check::run(&call, summary),
        (Plugin::Network, Verb::Status) => {
            netconf::consider_keys(&document, invocation.verb)?;
            status::run(&call)
        }
        (Plugin::Network, Verb::Gc) => gc::run(&call),
        (Plugin::Ipam, Verb::Add) => ipam::add(&call, summary, print),
        (Plugin::Ipam, Verb::Del) => ipam::del(&call, summary),
        (Plugin::Ipam, Verb::Check) => check::ipam(&call, summary),
        (Plugin::Ipam, Verb::Status) => status::ipam(&call),
        (Plugin::Ipam, Verb::Gc) => gc::ipam(&call),
    }
}

fn answer(object: &Value) -> Result<(), CniError> {
    print(object).map_err(|error| CniError::new(code::IO, error.to_string()))
}

fn read_configuration() -> Result<Vec<u8>, CniError> {
    /// More than any configuration has. Bytes.
    const LIMIT: u64 = 16 << 20;
    let mut bytes = Vec::new();
    match io::stdin().lock().take(LIMIT).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(CniError::new(
            code::IO,
            format!("error reading from stdin: {error}"),
        )),
    }
}

impl Plugin {
    fn named(name: &str) -> Option<Self> {
        match name {
            "azure-vnet" => Some(Self::Network),
            "azure-vnet-ipam" => Some(Self::Ipam),
            _ => None,
        }
    }

    fn log(self) -> &'static str {
        match self {
            Self::Network => "/var/log/azure-vnet.log",
            Self::Ipam => "/var/log/azure-vnet-ipam.log",
        }
    }
}
