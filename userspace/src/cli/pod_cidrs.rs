//! `causeway pod-cidrs`: what the Node object of Kubernetes has in `spec.podCIDRs`, noted for the CNI plug-ins'
//! `ipam.environment` of that name. The API server is asked by another program ([`HELPER`]).

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use causeway::{
    ipam::source::pod_cidrs::{FILE, PodCidrs},
    root::Root,
};
use clap::Args;
use serde::Serialize;

use super::{
    Failure,
    output::{self, Format, Report, printable},
};

/// Whose subnets, and how to ask for them.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Whose; else NODE_NAME, else the host's own name
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Way to the server; else KUBECONFIG, else as pods do
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How long to ask again; 0 asks once
    #[arg(long, value_name = "SECONDS", default_value = "60",
          value_parser = clap::value_parser!(u32).range(0..=86_400))]
    wait: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(root: &Root, arguments: &Arguments) -> Result<(), Failure> {
    let node = node_name(arguments.node.as_deref(), env::var("NODE_NAME").ok().as_deref());
    if !is_name(&node) {
        return Err(Failure::Usage(format!("{node:?} is no name of a node")));
    }
    let told = ask(&node, arguments.wait, arguments.kubeconfig.as_deref());
    let told = told.and_then(|told| match told.subnets() {
        Ok(_) => Ok(told),
        Err(problem) => Err(format!("spec.podCIDRs: {problem}")),
    });
    let told = told.map_err(|problem| Failure::PodCidrs { node, problem })?;
    output::print(note(root, told)?, Format::new(arguments.json))
}

/// Stands beside this program, where it was built (package `causeway-kubernetes`).
const HELPER: &str = "causeway-pod-cidrs";

/// What the API server says. What is waited for, and how long, is on standard error.
fn ask(node: &str, seconds: u32, kubeconfig: Option<&Path>) -> Result<PodCidrs, String> {
    let own = env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let helper = own.with_file_name(HELPER);
    let mut command = Command::new(&helper);
    command.arg(node).arg(seconds.to_string()).args(kubeconfig);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no {}, which asks API servers: install it beside this program, from a whole release or from \
             `cargo build --release --package causeway-kubernetes`",
            helper.display()
        ),
        _ => format!("{}: {error}", helper.display()),
    })?;
    let told: Result<Result<PodCidrs, String>, _> = serde_json::from_slice(&output.stdout);
    told.unwrap_or_else(|_| Err(format!("{} says nothing: {}", helper.display(), output.status)))
}

/// The kubelet registers a node under the host's name in lower case, unless it is told another one.
fn node_name(argument: Option<&str>, variable: Option<&str>) -> String {
    let host = || {
        let host = rustix::system::uname();
        host.nodename().to_string_lossy().trim().to_lowercase()
    };
    let named = argument.or(variable.filter(|name| !name.is_empty()));
    named.map_or_else(host, str::to_owned)
}

/// Whether the API server could know a node by it (RFC 1123): it becomes a part of a path.
fn is_name(text: &str) -> bool {
    let is_one = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends_well = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 253
        && text.chars().all(is_one)
        && ends_well(text.chars().next())
        && ends_well(text.chars().last())
}

/// Writes it down. A file that says something else, or nothing of use, is replaced.
fn note(root: &Root, now: PodCidrs) -> Result<Noted, Failure> {
    let before = PodCidrs::read(root);
    let path = root.path(FILE);
    now.write(root).map_err(|source| Failure::File {
        path: path.clone(),
        source,
    })?;
    let file = path.display().to_string();
    let remark = remark(&file, &before, &now);
    let replaced = before.ok().flatten().filter(|before| !is_same(before, &now));
    Ok(Noted {
        now,
        file,
        replaced,
        remark,
    })
}

/// Whether nothing but the time is different.
fn is_same(one: &PodCidrs, other: &PodCidrs) -> bool {
    (&one.node, &one.uid, &one.cidrs) == (&other.node, &other.uid, &other.cidrs)
}

fn remark(file: &str, before: &io::Result<Option<PodCidrs>>, now: &PodCidrs) -> String {
    match before {
        Ok(None) => format!("noted in {file}"),
        Ok(Some(before)) if is_same(before, now) => format!("{file} said so already"),
        Ok(Some(before)) if (&before.node, &before.cidrs) == (&now.node, &now.cidrs) => {
            format!("noted in {file}, which was of a Node object that is no more")
        }
        Ok(Some(before)) => format!(
            "noted in {file}, which said {} of node {}: pods keep the addresses that they have",
            before.cidrs.join(", "),
            before.node
        ),
        Err(error) => format!("noted in {file}, which could not be read: {error}"),
    }
}

/// What was noted.
#[derive(Serialize)]
struct Noted {
    #[serde(flatten)]
    now: PodCidrs,
    file: String,
    /// What the file said before, if that was something else.
    replaced: Option<PodCidrs>,
    #[serde(skip)]
    remark: String,
}

impl Report for Noted {
    const KIND: &'static str = "PodCIDRs";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "node {}: {}", self.now.node, self.now.cidrs.join(", "))?;
        writeln!(out, "{}", printable(&self.remark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(node: &str, uid: &str, cidr: &str) -> PodCidrs {
        PodCidrs {
            node: node.to_owned(),
            uid: uid.to_owned(),
            cidrs: vec![cidr.to_owned()],
            read_at: "2026-01-02T03:04:05Z".to_owned(),
        }
    }

    #[test]
    fn a_node_is_named_by_the_argument_the_variable_or_the_host() {
        assert_eq!(node_name(Some("a"), Some("b")), "a");
        assert_eq!(node_name(None, Some("b")), "b");
        let host = node_name(None, Some(""));
        assert!(!host.is_empty() && host == host.to_lowercase(), "{host}");
    }

    #[test]
    fn what_is_no_name_never_reaches_a_path() {
        for name in ["aks-pool-12345-vmss000000", "node.example", "0"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a/b", "../secrets", "A", "a b", "-a", "a.", "a?watch=1"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn what_the_file_said_is_told_if_it_was_something_else() {
        let now = told("a", "1", "10.244.3.0/24");
        for (before, needle) in [
            (Ok(None), "noted in F"),
            (Ok(Some(told("a", "1", "10.244.3.0/24"))), "F said so already"),
            (
                Ok(Some(told("a", "0", "10.244.3.0/24"))),
                "of a Node object that is no more",
            ),
            (
                Ok(Some(told("b", "1", "10.244.9.0/24"))),
                "which said 10.244.9.0/24 of node b",
            ),
            (Err(io::Error::other("garbled")), "could not be read: garbled"),
        ] {
            let remark = remark("F", &before, &now);
            assert!(remark.contains(needle), "{remark}");
        }
    }
}
