//! A node on which real container runtimes run: in the node's network namespace, with processes, `/run`, configuration
//! and storage of its own. All of it goes when it is dropped.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddrV4, TcpStream},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use causeway_tests::netns::{Netns, stdout_of};
use serde_json::Value;

use crate::{call::World, chain::reference};

/// Programs that these tests call, and Debian's package of each.
const NEEDED: [(&str, &str); 6] = [
    ("ctr", "containerd"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("podman", "podman"),
    ("busybox", "busybox-static"),
    ("tar", "tar"),
];

/// The image of every container: busybox, serving its own `/etc` over HTTP.
pub(crate) const IMAGE: &str = "localhost/pod:1";
/// Where containerd listens.
const SOCKET: &str = "/run/containerd.sock";

/// The runtimes' home.
pub(crate) struct Host {
    pub(crate) world: World,
    /// The first process of the namespaces.
    init: Child,
    /// Its id outside.
    pid: u32,
    containerd: Option<Child>,
}

impl Host {
    /// A node with `pool_size` addresses, the installed configuration with `change` made to it, and an image.
    pub(crate) fn new(pool_size: u8, change: impl FnOnce(&mut Value)) -> Result<Self> {
        for (program, package) in NEEDED {
            let found = Command::new("which")
                .arg(program)
                .output()
                .is_ok_and(|output| output.status.success());
            ensure!(
                found,
                "{program} is missing: `cargo xtask setup` installs it (Debian's {package})"
            );
        }
        let world = World::new(pool_size)?;
        write_plugins(&world)?;
        let mut list: Value = serde_json::from_str(&fs::read_to_string(world.dist.conflist())?)?;
        change(&mut list);
        world
            .node
            .root
            .write("/client/net.d/10-azure.conflist", &list.to_string())?;
        write_configuration(&world)?;
        let mut unshare = world.node.ns.command("unshare");
        unshare.args([
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ]);
        unshare
            .args(["sh", "-euc", MOUNTS])
            .arg("sh")
            .arg(world.node.root.join("/client"));
        let mut init = unshare.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut ready = String::new();
        let stdout = init.stdout.take().context("no output")?;
        BufReader::new(stdout).read_line(&mut ready)?;
        ensure!(
            ready.trim() == "ready",
            "the namespaces of the runtimes were not made"
        );
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.id()))?;
        let pid = children
            .split_whitespace()
            .next()
            .context("unshare has no child")?
            .parse()?;
        let host = Self {
            world,
            init,
            pid,
            containerd: None,
        };
        let build = format!(
            "tar -C $1/rootfs -cf - . | podman import --quiet --change 'CMD [\"/bin/httpd\",\"-f\",\"-p\",\"80\",\"-h\",\"/etc\"]' - {IMAGE}"
        );
        host.run(&["sh", "-euc", &build, "sh", &host.scratch()])?;
        Ok(host)
    }

    /// Starts containerd, and gives it the image.
    pub(crate) fn start_containerd(&mut self) -> Result<()> {
        if !self.world.node.root.join("/client/pod.tar").exists() {
            let archive = format!("{}/pod.tar", self.scratch());
            self.run(&[
                "podman",
                "save",
                "--quiet",
                "--format",
                "oci-archive",
                "-o",
                &archive,
                IMAGE,
            ])?;
        }
        let config = format!("{}/containerd.toml", self.scratch());
        let log = fs::File::create(self.world.node.root.join("/client/containerd.log"))?;
        let mut command = self.command("containerd");
        self.containerd = Some(
            command
                .args(["-c", &config])
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?,
        );
        let end = Instant::now() + Duration::from_secs(30);
        while self.ctr(&["version"]).is_err() {
            ensure!(
                Instant::now() < end,
                "containerd does not answer: {}",
                self.containerd_log()?
            );
            thread::sleep(Duration::from_millis(50));
        }
        for namespace in ["k8s.io", "default"] {
            self.ctr(&[
                "-n",
                namespace,
                "image",
                "import",
                &format!("{}/pod.tar", self.scratch()),
            ])?;
        }
        Ok(())
    }

    /// Ends containerd, not its containers.
    pub(crate) fn stop_containerd(&mut self) -> Result<()> {
        if let Some(mut containerd) = self.containerd.take() {
            // nsenter waits for it in its place.
            self.run(&[
                "sh",
                "-c",
                "kill $(cat /run/containerd.pid 2>/dev/null || pidof containerd)",
            ])?;
            containerd.wait()?;
        }
        Ok(())
    }

    pub(crate) fn containerd_log(&self) -> Result<String> {
        Ok(fs::read_to_string(
            self.world.node.root.join("/client/containerd.log"),
        )?)
    }

    /// containerd's command line.
    pub(crate) fn ctr(&self, args: &[&str]) -> Result<String> {
        self.run(&[&["ctr", "-a", SOCKET], args].concat())
    }

    /// podman's command line.
    pub(crate) fn podman(&self, args: &[&str]) -> Result<String> {
        self.run(&[&["podman"], args].concat())
    }

    /// Path of containerd's socket as seen from here.
    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{SOCKET}", self.pid))
    }

    /// Runs a program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        let (program, rest) = args.split_first().context("no program")?;
        let output = self.command(program).args(rest).stdin(Stdio::null()).output();
        stdout_of(output, || args.join(" "))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-m", "-p", "-n", "--", program]);
        command
            .env("CONTAINERS_CONF", format!("{}/containers.conf", self.scratch()))
            .env(
                "CONTAINERS_STORAGE_CONF",
                format!("{}/storage.conf", self.scratch()),
            );
        command
    }

    fn scratch(&self) -> String {
        self.world
            .node
            .root
            .join("/client")
            .to_string_lossy()
            .into_owned()
    }

    /// What the plug-ins were called with since the last call: `program VERB id netns`.
    pub(crate) fn calls(&self) -> Result<Vec<String>> {
        let path = self.world.node.root.join("/client/calls");
        let calls = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, "")?;
        Ok(calls.lines().map(str::to_owned).collect())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The end of the first process is the end of all others in its namespace.
        self.init.kill().ok();
        self.init.wait().ok();
        if let Some(mut containerd) = self.containerd.take() {
            containerd.wait().ok();
        }
    }
}

/// Private places over those that runtimes have fixed. `$1` is the scratch directory.
const MOUNTS: &str = "
    for d in /run /var/lib/cni /var/lib/containers; do mkdir -p $d; mount -t tmpfs tmpfs $d; done
    mkdir -p /run/lock /run/netns /etc/cni/net.d /opt/cni/bin
    mount --bind $1/net.d /etc/cni/net.d
    mount --bind $1/bin /opt/cni/bin
    echo ready
    exec sleep infinity >/dev/null";

/// The plug-ins' directory: ours behind a script that names the node, for runtimes start plug-ins with an environment of
/// their own; and the distribution's.
fn write_plugins(world: &World) -> Result<()> {
    let calls = world.node.root.join("/client/calls");
    world.node.root.write("/client/calls", "")?;
    for name in ["azure-vnet", "azure-vnet-ipam"] {
        let script = format!(
            "#!/bin/sh\n[ $CNI_COMMAND = VERSION ] || echo {name} $CNI_COMMAND $CNI_CONTAINERID netns=$CNI_NETNS >>{}\n\
             CAUSEWAY_ROOT={} exec {}\n",
            calls.display(),
            world.node.root.path().display(),
            world.program(name)?.display()
        );
        let path = format!("/client/bin/{name}");
        world.node.root.write(&path, &script)?;
        fs::set_permissions(world.node.root.join(&path), fs::Permissions::from_mode(0o755))?;
    }
    for name in ["portmap", "loopback", "bandwidth"] {
        let path = world.node.root.join(&format!("/client/bin/{name}"));
        std::os::unix::fs::symlink(reference(name)?, path)?;
    }
    Ok(())
}

fn write_configuration(world: &World) -> Result<()> {
    let root = &world.node.root;
    let scratch = root.join("/client");
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(scratch.join("rootfs").join(directory))?;
    }
    let busybox = stdout_of(Command::new("which").arg("busybox").output(), || {
        "which busybox".to_owned()
    })?;
    fs::copy(busybox.trim(), scratch.join("rootfs/bin/busybox"))?;
    for name in ["sh", "httpd", "ip", "ping", "sleep", "wget"] {
        std::os::unix::fs::symlink("busybox", scratch.join("rootfs/bin").join(name))?;
    }
    root.write("/client/rootfs/etc/hello", HELLO)?;
    root.write(
        "/client/containerd.toml",
        &CONTAINERD.replace("$B", &scratch.to_string_lossy()),
    )?;
    root.write("/client/containers.conf", PODMAN)?;
    root.write("/client/storage.conf", STORAGE)
}

const HELLO: &str = "a pod of the runtime\n";

const CONTAINERD: &str = r#"version = 2
root = "$B/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pod:1"
  stream_server_address = "127.0.0.1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"#;

const PODMAN: &str = r#"[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "azure"
"#;

const STORAGE: &str = r#"[storage]
driver = "vfs"
graphroot = "/var/lib/containers/root"
runroot = "/run/containers"
"#;

/// Asks a pod's server for its file, until it answers: the server starts some time after its network is there.
pub(crate) fn fetch(ns: &Netns, from: SocketAddrV4) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match fetch_once(ns, from) {
            Ok(text) if text.ends_with(HELLO) => return Ok(()),
            other if Instant::now() > end => bail!("{from} answered {other:?}"),
            _ => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn fetch_once(ns: &Netns, from: SocketAddrV4) -> Result<String> {
    let mut stream = ns.run(|| TcpStream::connect_timeout(&from.into(), Duration::from_secs(2)))??;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
