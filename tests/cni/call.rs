//! One call of a plug-in, and what became of it.

use std::{
    fs,
    io::Write,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    dist::Dist,
    fabric::Fabric,
    netns::Netns,
    node::{Datapath, Node},
};
use serde_json::{Value, json};

/// A node with its surroundings.
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) fabric: Fabric,
    pub(crate) dist: Dist,
}

impl World {
    /// A node with `pool_size` addresses for pods.
    pub(crate) fn new(pool_size: u8) -> Result<Self> {
        let fabric = Fabric::new()?;
        let node = Node::new(&fabric, Datapath::Causeway, pool_size)?;
        Ok(Self {
            node,
            fabric,
            dist: Dist::from_env()?,
        })
    }

    /// A call of `azure-vnet` with the stock configuration.
    pub(crate) fn network(&self, verb: &str, container: &str) -> Result<Call<'_>> {
        Ok(self.call("azure-vnet", verb, container, &self.dist.plugin_config()?))
    }

    /// A call of `azure-vnet-ipam`.
    pub(crate) fn ipam(&self, verb: &str, container: &str) -> Call<'_> {
        let config = json!({
            "cniVersion": "1.0.0", "name": "azure", "type": "other",
            "ipam": { "type": "azure-vnet-ipam", "environment": "fileIpam" },
        });
        let call = self.call("azure-vnet-ipam", verb, container, &config);
        call.env("CNI_NETNS", "/not/looked/at")
    }

    /// The configuration of `azure-vnet` as it is installed.
    pub(crate) fn stock_config(&self) -> Result<Value> {
        self.dist.plugin_config()
    }

    /// A plug-in by its type: ours, or one of the distribution.
    pub(crate) fn program(&self, kind: &str) -> Result<PathBuf> {
        let ours = self.dist.plugin(kind);
        if ours.is_file() {
            Ok(ours)
        } else {
            crate::chain::reference(kind)
        }
    }

    fn call(&self, program: &str, verb: &str, container: &str, config: &Value) -> Call<'_> {
        self.call_program(self.dist.plugin(program), verb, container, config)
    }

    /// A call of any plug-in.
    pub(crate) fn call_program(
        &self,
        program: PathBuf,
        verb: &str,
        container: &str,
        config: &Value,
    ) -> Call<'_> {
        let mut call = Call {
            world: self,
            program,
            config: config.to_string(),
            environment: Vec::new(),
        };
        for (name, value) in [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", container),
            ("CNI_IFNAME", "eth0"),
        ] {
            call = call.env(name, value);
        }
        let plugins = format!("{}:{}", self.dist.plugins().display(), crate::chain::REFERENCE);
        call.env("CNI_PATH", plugins)
            .env("PATH", std::env::var("PATH").unwrap_or_default())
    }

    /// The address state.
    pub(crate) fn leases(&self) -> Result<Vec<(Ipv4Addr, String)>> {
        let path = self.node.root.join("/var/run/azure-vnet-ipam.json");
        if !path.exists() {
            return Ok(Vec::new());
        }
        let state: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let addresses = &state["IPAM"]["AddressSpaces"]["local"]["Pools"]["10.240.0.0/16"]["Addresses"];
        let no_pool = serde_json::Map::new();
        let addresses = addresses.as_object().unwrap_or(&no_pool);
        ensure!(
            addresses.iter().all(|(key, record)| record["Addr"] == **key),
            "keys differ from addresses"
        );
        let held = addresses.iter().filter(|(_, record)| record["InUse"] == true);
        held.map(|(address, record)| {
            Ok((
                address.parse()?,
                record["ID"].as_str().unwrap_or_default().to_owned(),
            ))
        })
        .collect()
    }

    /// The containers in the endpoint state.
    pub(crate) fn endpoints(&self) -> Result<Vec<String>> {
        let path = self.node.root.join("/var/run/azure-vnet.json");
        if !path.exists() {
            return Ok(Vec::new());
        }
        let state: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let endpoints = &state["Network"]["ExternalInterfaces"]["eth0"]["Networks"]["azure"]["Endpoints"];
        let containers = endpoints
            .as_object()
            .into_iter()
            .flat_map(|endpoints| endpoints.values());
        Ok(containers
            .map(|endpoint| endpoint["ContainerID"].as_str().unwrap_or_default().to_owned())
            .collect())
    }

    /// The host's ends of pods' links.
    pub(crate) fn interfaces(&self) -> Result<Vec<String>> {
        let links = self.node.ns.json("ip", &["-j", "link"])?;
        let names = links
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|link| link["ifname"].as_str());
        Ok(names
            .filter(|name| name.starts_with("azv"))
            .map(str::to_owned)
            .collect())
    }

    /// Pods that the datapath serves.
    pub(crate) fn served(&self) -> Result<Vec<String>> {
        let pods = self.node.causeway_json("pods")?;
        let pods = pods["pods"].as_array().context("no pods in the output")?;
        Ok(pods
            .iter()
            .filter(|pod| pod["state"] != "departed")
            .map(|pod| pod["address"].as_str().unwrap_or_default().to_owned())
            .collect())
    }

    /// Nothing of any pod is left: no lease, endpoint, interface, route, map entry or temporary file.
    pub(crate) fn assert_empty(&self) -> Result<()> {
        assert_eq!(self.leases()?, [], "leases");
        assert_eq!(self.endpoints()?, [""; 0], "endpoints");
        assert_eq!(self.interfaces()?, [""; 0], "interfaces");
        let routes = self.node.ns.output("ip", &["route"])?;
        assert!(!routes.contains("azv"), "{routes}");
        if self.node.root.join("/sys/fs/bpf/causeway").exists() {
            assert_eq!(self.served()?, [""; 0], "pods of the datapath");
        }
        self.assert_no_litter()
    }

    /// No temporary file is left beside the state.
    pub(crate) fn assert_no_litter(&self) -> Result<()> {
        let directory = self.node.root.join("/var/run");
        if directory.exists() {
            for entry in fs::read_dir(directory)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                assert!(
                    !name.ends_with("-tmp") && !name.starts_with('.'),
                    "{name} is left"
                );
            }
        }
        Ok(())
    }
}

/// A call to be made.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    world: &'a World,
    program: PathBuf,
    config: String,
    environment: Vec<(String, String)>,
}

impl Call<'_> {
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self
    }

    pub(crate) fn netns(self, ns: &Netns) -> Self {
        self.env("CNI_NETNS", ns.path())
    }

    /// Sets a key of the configuration.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        let mut config: Value =
            serde_json::from_str(&self.config).expect("the configuration is JSON until it is set");
        config[key] = value;
        self.config = config.to_string();
        self
    }

    pub(crate) fn stdin(mut self, text: impl Into<String>) -> Self {
        self.config = text.into();
        self
    }

    /// The command, not yet started.
    pub(crate) fn command(&self) -> Command {
        self.prepare(self.world.node.ns.command(&self.program))
    }

    /// The same as an argument of `tool`, such as a tracer.
    pub(crate) fn run_by(&self, mut tool: Command) -> Command {
        tool.arg(&self.program);
        self.prepare(tool)
    }

    fn prepare(&self, mut command: Command) -> Command {
        command.env_clear().envs(self.environment.iter().cloned());
        command.env("CAUSEWAY_ROOT", self.world.node.root.path());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts the call.
    pub(crate) fn spawn(&self) -> Result<Child> {
        self.feed(self.command())
    }

    /// Starts `command` and gives it the configuration.
    pub(crate) fn feed(&self, mut command: Command) -> Result<Child> {
        let mut child = command.spawn().context("cannot run the plug-in")?;
        if let Some(mut stdin) = child.stdin.take() {
            // The plug-in may have ended without reading.
            stdin.write_all(self.config.as_bytes()).ok();
        }
        Ok(child)
    }

    pub(crate) fn output(&self) -> Result<Output> {
        Ok(self.spawn()?.wait_with_output()?)
    }

    /// The result of a call that must succeed, `null` for an empty one.
    pub(crate) fn ok(&self) -> Result<Value> {
        self.answer(self.spawn()?)
    }

    fn answer(&self, child: Child) -> Result<Value> {
        let output = child.wait_with_output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{:?}: {text}", self.environment);
        if text.is_empty() {
            Ok(Value::Null)
        } else {
            Ok(serde_json::from_str(&text)?)
        }
    }

    /// The error of a call that must fail: exactly one JSON object, and a status that says so.
    pub(crate) fn error(&self) -> Result<Failure> {
        let output = self.output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(
            !output.status.success(),
            "{:?} succeeded: {text}",
            self.environment
        );
        let object: Value =
            serde_json::from_str(&text).with_context(|| format!("not one JSON object: {text:?}"))?;
        ensure!(object["cniVersion"].is_string(), "no cniVersion in {text}");
        Ok(Failure {
            code: object["code"]
                .as_u64()
                .with_context(|| format!("no code in {text}"))?,
            msg: object["msg"]
                .as_str()
                .with_context(|| format!("no msg in {text}"))?
                .to_owned(),
            details: object["details"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

/// Starts the calls side by side, each of which must succeed. Returns their results.
pub(crate) fn side_by_side(calls: &[Call<'_>]) -> Result<Vec<Value>> {
    let started: Vec<Child> = calls.iter().map(Call::spawn).collect::<Result<_>>()?;
    let answers = calls.iter().zip(started);
    answers.map(|(call, child)| call.answer(child)).collect()
}

/// The error object of the specification.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u64,
    pub(crate) msg: String,
    pub(crate) details: String,
}

/// The address of a result.
pub(crate) fn address(result: &Value) -> Result<Ipv4Addr> {
    let text = result["ips"][0]["address"]
        .as_str()
        .or(result["ip4"]["ip"].as_str());
    let text = text.context("no address in the result")?;
    Ok(text.split('/').next().unwrap_or_default().parse()?)
}
