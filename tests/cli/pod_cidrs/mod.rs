//! `causeway pod-cidrs` before a local server with objects as an API server of Kubernetes 1.31 gives them: `node.json` is one of
//! a node of kubeadm's with both families.

mod server;

use std::{
    fs,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{dist::Dist, scratch::Scratch};
use serde_json::{Value, json};

use self::server::{Answer, Authority, Server};

const FILE: &str = "/run/causeway/pod-cidrs.json";
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The recorded Node object.
fn node() -> Result<Value> {
    Ok(serde_json::from_str(include_str!("node.json"))?)
}

fn node_with(spec: Value) -> Result<Value> {
    let mut node = node()?;
    node["spec"] = spec;
    Ok(node)
}

/// A refusal as the API server writes it.
fn status(code: u16, reason: &str, message: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason,
        "details": { "name": "pool-0", "kind": "nodes" }, "code": code,
    });
    Answer::Json(code, status)
}

fn not_found() -> Answer {
    status(404, "NotFound", "nodes \"pool-0\" not found")
}

/// A host without a node's other things.
struct Host {
    root: Scratch,
    dist: Dist,
}

impl Host {
    fn new() -> Result<Self> {
        Ok(Self {
            root: Scratch::new()?,
            dist: Dist::from_env()?,
        })
    }

    /// The command, in no environment but this root.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.dist.cli());
        command.arg("pod-cidrs").args(arguments);
        command.env_clear().env("CAUSEWAY_ROOT", self.root.path());
        command
    }

    /// Writes a kubeconfig for a server: what of the cluster and of the user is known. Returns its path.
    fn kubeconfig(&self, server: &str, cluster: &str, user: &str) -> Result<String> {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             clusters:\n- name: c\n  cluster:\n    server: {server}\n{cluster}\
             contexts:\n- name: here\n  context: {{cluster: c, user: u}}\n\
             users:\n- name: u\n  user: {{{user}}}\n"
        );
        self.root.write("/kubeconfig", &text)?;
        Ok(self.root.join("/kubeconfig").display().to_string())
    }

    /// Asks a server without TLS for `pool-0`.
    fn ask(&self, server: &Server, arguments: &[&str]) -> Result<Output> {
        let kubeconfig = self.kubeconfig(&format!("http://{}", server.address), "", "token: t0ken")?;
        let all = [&["--node", "pool-0", "--kubeconfig", &kubeconfig], arguments].concat();
        Ok(self.command(&all).output()?)
    }

    fn noted(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.root.join(FILE))?)?)
    }

    /// Whether nothing was noted.
    fn has_nothing(&self) -> bool {
        !self.root.join(FILE).exists()
    }
}

fn succeeded(output: &Output) -> Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    Ok(String::from_utf8(output.stdout.clone())?)
}

/// The last line that a command that failed has said.
fn failed(output: &Output) -> Result<String> {
    ensure!(output.status.code() == Some(1), "{output:?}");
    let errors = String::from_utf8(output.stderr.clone())?;
    Ok(errors.lines().last().context("nothing is said")?.to_owned())
}

#[test]
fn the_subnets_of_a_node_are_noted_and_what_was_noted_before_is_told() -> Result<()> {
    let (host, server) = (Host::new()?, Server::start(None, &[Answer::Json(200, node()?)])?);
    let text = succeeded(&host.ask(&server, &[])?)?;
    ensure!(
        text.starts_with("node pool-0: 10.244.3.0/24, fd00:10:244:3::/64\nnoted in "),
        "{text}"
    );
    let asked = &server.asked()[0];
    ensure!(
        asked.line.starts_with("GET /api/v1/nodes/pool-0 HTTP/1.1"),
        "{asked:?}"
    );
    ensure!(asked.authorization == "Bearer t0ken", "{asked:?}");
    let noted = host.noted()?;
    ensure!(
        noted["node"] == "pool-0"
            && noted["uid"] == "0d8c3a0e-7d0e-4f4b-8c86-2f5c7c4d9f11"
            && noted["podCIDRs"] == json!(["10.244.3.0/24", "fd00:10:244:3::/64"])
            && noted["readAt"].as_str().is_some_and(|time| time.ends_with('Z')),
        "{noted}"
    );
    let text = succeeded(&host.ask(&server, &[])?)?;
    ensure!(text.contains("said so already"), "{text}");

    // The node was made anew.
    let mut other = node_with(json!({ "podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"] }))?;
    other["metadata"]["uid"] = json!("another");
    let server = Server::start(None, &[Answer::Json(200, other)])?;
    let document: Value = serde_json::from_str(&succeeded(&host.ask(&server, &["--json"])?)?)?;
    ensure!(
        document["kind"] == "PodCIDRs"
            && document["podCIDRs"] == json!(["10.244.7.0/24"])
            && document["replaced"]["podCIDRs"][0] == "10.244.3.0/24",
        "{document}"
    );
    let server = Server::start(None, &[Answer::Json(200, node()?)])?;
    let text = succeeded(&host.ask(&server, &[])?)?;
    ensure!(
        text.contains("which said 10.244.7.0/24 of node pool-0: pods keep"),
        "{text}"
    );
    host.root.write(FILE, "{")?;
    let text = succeeded(&host.ask(&server, &[])?)?;
    ensure!(text.contains("could not be read"), "{text}");
    ensure!(host.noted()?["podCIDRs"][1] == "fd00:10:244:3::/64");
    let left = fs::read_dir(host.root.join("/run/causeway"))?.count();
    ensure!(left == 1, "{left} files");
    Ok(())
}

#[test]
fn a_pod_asks_with_its_service_account_and_by_the_nodes_name() -> Result<()> {
    let (host, authority) = (Host::new()?, Authority::new()?);
    let server = Server::start(Some(authority.server()?), &[Answer::Json(200, node()?)])?;
    let ask = |name: Option<&str>| -> Result<Output> {
        let mut command = host.command(&["--wait", "0"]);
        command
            .env("KUBERNETES_SERVICE_HOST", server.address.ip().to_string())
            .env("KUBERNETES_SERVICE_PORT", server.address.port().to_string());
        command.envs(name.map(|name| ("NODE_NAME", name)));
        Ok(command.output()?)
    };
    let error = failed(&ask(Some("pool-0"))?)?;
    ensure!(error.contains(&format!("{ACCOUNT}/token")), "{error}");
    host.root.write(&format!("{ACCOUNT}/token"), "from-the-kubelet")?;
    host.root.write(&format!("{ACCOUNT}/ca.crt"), &authority.pem)?;
    succeeded(&ask(Some("pool-0"))?)?;
    succeeded(&ask(None)?)?;
    let host_name = Command::new("uname").arg("-n").output()?.stdout;
    let host_name = String::from_utf8(host_name)?.trim().to_lowercase();
    let asked = server.asked();
    for (asked, name) in asked.iter().zip(["pool-0", &host_name]) {
        ensure!(
            asked.line.starts_with(&format!("GET /api/v1/nodes/{name} ")),
            "{asked:?}"
        );
        ensure!(asked.authorization == "Bearer from-the-kubelet", "{asked:?}");
    }
    ensure!(asked.len() == 2, "{asked:?}");

    // A server of somebody else's is told nothing.
    host.root
        .write(&format!("{ACCOUNT}/ca.crt"), &Authority::new()?.pem)?;
    let error = failed(&ask(Some("pool-0"))?)?;
    ensure!(error.contains("certificate"), "{error}");
    ensure!(server.asked().len() == 2);
    Ok(())
}

#[test]
fn a_kubeconfig_with_a_certificate_as_the_kubelet_has_it() -> Result<()> {
    let (host, authority) = (Host::new()?, Authority::new()?);
    let server = Server::start(Some(authority.server()?), &[Answer::Json(200, node()?)])?;
    // Both parts in one file, named by a path.
    let (certificate, key) = authority.sign("system:node:pool-0")?;
    host.root.write(
        "/pki/current.pem",
        &format!("{}{}", certificate.pem(), key.serialize_pem()),
    )?;
    host.root.write("/pki/ca.crt", &authority.pem)?;
    let kubeconfig = host.kubeconfig(
        &format!("https://{}", server.address),
        "    certificate-authority: pki/ca.crt\n",
        "client-certificate: pki/current.pem, client-key: pki/current.pem",
    )?;
    let output = host
        .command(&["--node", "pool-0", "--wait", "0"])
        .env("KUBECONFIG", kubeconfig)
        .output()?;
    succeeded(&output)?;
    let asked = server.asked();
    ensure!(
        asked.len() == 1 && asked[0].has_certificate && asked[0].authorization.is_empty(),
        "{asked:?}"
    );
    Ok(())
}

#[test]
fn what_is_not_there_yet_is_waited_for_and_said() -> Result<()> {
    let answers = [
        not_found(),
        status(
            503,
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        ),
        Answer::HangUp,
        Answer::Json(200, node_with(json!({ "providerID": "azure:///x" }))?),
        Answer::Json(200, node_with(json!({}))?),
        Answer::Json(200, node()?),
    ];
    let (host, server) = (Host::new()?, Server::start(None, &answers)?);
    let output = host.ask(&server, &["--wait", "60"])?;
    succeeded(&output)?;
    ensure!(server.asked().len() == answers.len(), "{:?}", server.asked());
    let said = String::from_utf8(output.stderr)?;
    let said: Vec<&str> = said.lines().collect();
    for (line, part) in said
        .iter()
        .zip(["not found", "503", "cannot ask http://", "no spec.podCIDRs"])
    {
        ensure!(
            line.contains("waiting up to 60 s") && line.contains(part),
            "{said:#?}"
        );
    }
    ensure!(said.len() == 4, "the same is said once: {said:#?}");
    ensure!(host.noted()?["podCIDRs"][0] == "10.244.3.0/24");
    Ok(())
}

#[test]
fn what_waiting_does_not_mend_fails_at_once_and_notes_nothing() -> Result<()> {
    let host = Host::new()?;
    let cidrs =
        |cidrs: &[&str]| Ok::<_, anyhow::Error>(Answer::Json(200, node_with(json!({ "podCIDRs": cidrs }))?));
    let forbidden = "nodes \"pool-0\" is forbidden: User \"system:serviceaccount:kube-system:causeway\" cannot get resource \
                     \"nodes\" in API group \"\" at the cluster scope";
    for (answer, needle) in [
        (
            status(403, "Forbidden", forbidden),
            "kube-system:causeway\" cannot get resource",
        ),
        (
            status(403, "Forbidden", forbidden),
            "a role with `get` on `nodes` is needed",
        ),
        (
            status(401, "Unauthorized", "Unauthorized"),
            "says 401: Unauthorized; the token",
        ),
        (Answer::Text(200, "<html>a proxy</html>"), "gives no Node object"),
        (
            Answer::Json(200, json!({ "kind": "List", "items": [] })),
            "gives no Node object",
        ),
        (
            cidrs(&["10.244.3.0/24", "10.244.4.0/24"])?,
            "is a second subnet beside 10.244.3.0/24",
        ),
        (
            cidrs(&["10.244.3.0/33"])?,
            "spec.podCIDRs: \"10.244.3.0/33\" is not a subnet",
        ),
    ] {
        let server = Server::start(None, &[answer])?;
        let error = failed(&host.ask(&server, &[])?)?;
        ensure!(
            error.contains(needle) && error.contains("subnets of the pods of node pool-0"),
            "{needle}: {error}"
        );
        ensure!(host.has_nothing() && server.asked().len() == 1);
    }
    for (arguments, needle) in [
        (
            &["--node", "pool-0"][..],
            "name a kubeconfig with --kubeconfig or KUBECONFIG",
        ),
        (
            &["--node", "pool-0", "--kubeconfig", "/nonexistent"],
            "/nonexistent",
        ),
    ] {
        let error = failed(&host.command(arguments).output()?)?;
        ensure!(error.contains(needle), "{error}");
    }
    let output = host.command(&["--node", "a/../../secrets"]).output()?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    Ok(())
}

/// A build of the command alone: who asks API servers is not there.
#[test]
fn without_the_program_that_asks_the_error_names_it() -> Result<()> {
    let host = Host::new()?;
    let alone = host.root.join("/bin/causeway");
    host.root.write("/bin/causeway", "")?;
    fs::copy(host.dist.cli(), &alone)?;
    let mut command = Command::new(&alone);
    command
        .args(["pod-cidrs", "--node", "pool-0"])
        .env("CAUSEWAY_ROOT", host.root.path());
    let error = failed(&command.output()?)?;
    let missing = format!(
        "there is no {}",
        alone.with_file_name("causeway-pod-cidrs").display()
    );
    ensure!(
        error.contains(&missing) && error.contains("install it beside"),
        "{error}"
    );
    ensure!(host.has_nothing());
    Ok(())
}

#[test]
fn the_wait_is_over_when_it_said_so() -> Result<()> {
    let host = Host::new()?;
    for (answer, wait, longest, needle) in [
        (not_found(), "0", 5, "--node or NODE_NAME names this one"),
        (not_found(), "2", 7, "nodes \"pool-0\" not found"),
        (Answer::Silence, "0", 20, "within 10 s"),
    ] {
        let server = Server::start(None, &[answer])?;
        let begun = Instant::now();
        let error = failed(&host.ask(&server, &["--wait", wait])?)?;
        ensure!(error.contains(needle), "{error}");
        ensure!(
            begun.elapsed() < Duration::from_secs(longest),
            "{:?}",
            begun.elapsed()
        );
        ensure!(
            (server.asked().len() == 1) == (wait == "0"),
            "{:?}",
            server.asked()
        );
        ensure!(host.has_nothing());
    }
    Ok(())
}
