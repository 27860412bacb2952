//! The CNI plug-ins `azure-vnet` and `azure-vnet-ipam`: one binary that does what its file name says.
//!
//! Owns the protocol of the CNI specification: environment and configuration in; exactly one JSON object, or nothing,
//! on standard output. Everything else is the library's.
//!
//! - [`invocation`], [`netconf`], [`wishes`], [`version`]: what the runtime wants;
//! - [`add`], [`del`], [`ipam`]: the verbs;
//! - [`result`], [`error`]: the answers;
//! - [`log`], [`summary`]: one line a call, for whoever looks afterwards;
//! - [`sweep`]: what a call does by the way.

mod add;
mod attachment;
mod del;
mod error;
mod invocation;
mod ipam;
mod log;
mod netconf;
mod netns;
mod result;
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

use crate::{
    error::{CniError, code},
    invocation::{Invocation, Verb},
    netconf::NetConf,
    stdio::print,
    summary::Summary,
};

/// The two plug-ins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plugin {
    Network,
    Ipam,
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
    if summary.command != "VERSION" {
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
    let bytes = read_configuration()?;
    if invocation.verb == Verb::Version {
        let asked = netconf::decode(&bytes)
            .map(|document| netconf::version(&document))
            .unwrap_or_default();
        return print(&version::answer(&asked)).map_err(|error| CniError::new(code::IO, error.to_string()));
    }
    let document = netconf::decode(&bytes)?;
    if version::Version::parse(&netconf::version(&document)).is_ok() {
        *spoken = netconf::version(&document);
    }
    let conf = NetConf::parse(&document, &invocation)?;
    match (plugin, invocation.verb) {
        (_, Verb::Version) => Ok(()),
        (_, Verb::Other(verb)) => Err(refuse(verb, &conf)),
        (Plugin::Network, Verb::Add) => add::run(root, &invocation, &conf, summary, print),
        (Plugin::Network, Verb::Del) => del::run(root, &invocation, &conf, summary),
        (Plugin::Ipam, Verb::Add) => ipam::add(root, &invocation, &conf, summary, print),
        (Plugin::Ipam, Verb::Del) => ipam::del(root, &invocation, &conf, summary),
    }
}

fn refuse(verb: &str, conf: &NetConf) -> CniError {
    if conf.version.has(verb) {
        CniError::new(
            code::ENVIRONMENT,
            format!("unknown CNI_COMMAND: {verb} is not provided by this plug-in"),
        )
    } else {
        let msg = format!("config version {} does not allow {verb}", conf.version.text());
        CniError::new(code::VERSION, msg)
    }
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
