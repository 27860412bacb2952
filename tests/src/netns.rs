//! A network namespace that nobody can forget: it is an open file descriptor and goes with the process.
//!
//! Nothing is bound below `/run/netns`, and nothing here mounts. A namespace belongs to a *thread*, so code runs in
//! one on a thread of its own; a socket belongs to the namespace it was made in and can be used from any thread.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::Ipv6Addr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace, alive as long as this value or anything in it is.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
}

impl Netns {
    /// A new namespace: `lo` is up, IPv6 is off (its link-local chatter would come and go in captures and
    /// snapshots), and TCP is reno: bbr, the default of some machines,
    /// paces itself by a qdisc that may be missing, and cubic may not be allowed in a namespace.
    pub fn new() -> Result<Self> {
        let made = on_a_thread(|| -> io::Result<OwnedFd> {
            // SAFETY: only the network namespace of this thread changes, and the thread ends here.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let ns = Self {
            fd: made.context("cannot make a network namespace: the tests need root")?,
        };
        ns.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        ns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        ns.sysctl("net/ipv4/tcp_congestion_control", "reno")?;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Runs `f` inside and waits for it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread(|| {
            enter(self.fd.as_fd()).context("cannot enter a network namespace")?;
            Ok(f())
        })
    }

    /// Binds sockets inside, and waits a little for an address that is still in use: a process that another thread is
    /// starting holds a copy of every descriptor until it has become its program.
    pub fn bind<T: Send>(&self, f: impl Fn() -> io::Result<T> + Send) -> Result<T> {
        let bound = self.run(move || {
            let end = Instant::now() + Duration::from_secs(2);
            loop {
                match f() {
                    Err(error) if is_taken(&error) && Instant::now() < end => {
                        thread::sleep(Duration::from_millis(1));
                    }
                    done => return done,
                }
            }
        })?;
        Ok(bound?)
    }

    /// A path by which another process can open the namespace, such as `CNI_NETNS`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = self.fd.as_raw_fd();
        let enter_it = move || {
            // SAFETY: between fork and exec; the descriptor is open in the parent, whose table was copied.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            enter(fd)
        };
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(enter_it) };
        command
    }

    /// Starts a command inside whose process has no need to copy this one's page tables, as it has for [`Self::command`]: where
    /// hundreds are started at once that is most of what they take.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let name = command.get_program().to_string_lossy().into_owned();
        let spawned = self.run(|| command.spawn())?;
        spawned.with_context(|| format!("cannot run {name}"))
    }

    /// Runs `program` inside to its end; an error holds what it wrote to standard error.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program).args(args).stdin(Stdio::null()).output();
        stdout_of(output, || format!("{program} {}", args.join(" ")))
    }

    /// Runs `ip` commands inside, one a line, without the word `ip`.
    pub fn ip(&self, script: &str) -> Result<()> {
        let mut command = self.command("ip");
        command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run `ip`: install iproute2")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(script.as_bytes())
                .context("writing to `ip -batch`")?;
        }
        stdout_of(child.wait_with_output(), || format!("ip -batch:\n{script}"))?;
        script
            .lines()
            .filter(|line| line.ends_with("nodad") || line.contains(" nodad "))
            .try_for_each(|line| self.wait_for_local_route(line))
    }

    /// Waits until packets to an address of IPv6 are delivered that `ip LINE` has added: a worker of the kernel enters its
    /// local route, soon (`addrconf_dad_work`).
    fn wait_for_local_route(&self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["addr", "add", address, "dev", interface, ..] = words[..] else {
            bail!("not `addr add ADDRESS dev INTERFACE`: {line}");
        };
        let address: Ipv6Addr = address.split('/').next().unwrap_or(address).parse()?;
        let destination = format!("{:032x} 80 ", address.to_bits());
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let routes = self.run(|| fs::read_to_string("/proc/thread-self/net/ipv6_route"))??;
            if routes.lines().any(|route| {
                route.starts_with(&destination) && route.split_whitespace().next_back() == Some(interface)
            }) {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!("packets to {address} on {interface} are not delivered:\n{routes}");
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sets a sysctl of this namespace; `key` with slashes.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| fs::write(&path, value))?
            .with_context(|| format!("cannot set {path} to {value}"))
    }

    /// Reads a sysctl of this namespace; `key` with slashes.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/{key}");
        let text = self
            .run(|| fs::read_to_string(&path))?
            .with_context(|| format!("cannot read {path}"))?;
        Ok(text.trim().to_owned())
    }

    /// The MAC address of an interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let links = self.json("ip", &["-j", "link", "show", "dev", interface])?;
        let text = links[0]["address"].as_str().unwrap_or_default();
        parse_mac(text).with_context(|| format!("{interface} has the address `{text}`"))
    }

    /// The index of an interface.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        let links = self.json("ip", &["-j", "link", "show", "dev", interface])?;
        let index = links[0]["ifindex"]
            .as_u64()
            .and_then(|index| u32::try_from(index).ok());
        index.with_context(|| format!("`ip -j link` shows no index for {interface}"))
    }

    /// Packets that an interface has received, by its own counter.
    pub fn received_packets(&self, interface: &str) -> Result<u64> {
        let table = self.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        let row = table
            .lines()
            .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
        let packets = row.and_then(|row| row.split_whitespace().nth(1)?.parse().ok());
        packets.with_context(|| format!("no interface {interface} in /proc/net/dev"))
    }

    /// A counter of the kernel's IPv4, such as `Tcp` and `RetransSegs`, by the names in `/proc/net/snmp`.
    pub fn snmp(&self, group: &str, counter: &str) -> Result<u64> {
        let table = self.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let mut rows = table
            .lines()
            .filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'))
            .map(|row| row.split_whitespace());
        let (names, values) = (rows.next(), rows.next());
        let pairs = names.into_iter().flatten().zip(values.into_iter().flatten());
        let value = pairs.into_iter().find(|&(name, _)| name == counter);
        let (_, value) = value.with_context(|| format!("no {group} {counter} in /proc/net/snmp"))?;
        Ok(value.parse()?)
    }

    /// What a command prints as JSON.
    pub fn json(&self, program: &str, args: &[&str]) -> Result<serde_json::Value> {
        let text = self.output(program, args)?;
        serde_json::from_str(&text).with_context(|| format!("{program} {} printed: {text}", args.join(" ")))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A veth pair: `name` in `ns`, `peer` in `other`. Both ends are up.
pub fn connect(ns: &Netns, name: &str, other: &Netns, peer: &str) -> Result<()> {
    ns.ip(&format!(
        "link add {name} type veth peer name {peer} netns {}\nlink set {name} up",
        other.path()
    ))?;
    other.ip(&format!("link set {peer} up"))
}

/// Standard output of a finished command, or an error with what it said and how it ended.
pub fn stdout_of(output: io::Result<Output>, what: impl Fn() -> String) -> Result<String> {
    let output = output.with_context(|| format!("cannot run `{}`", what()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` failed ({}): {}{}",
            what(),
            output.status,
            stderr.trim(),
            stdout.trim()
        );
    }
    Ok(stdout)
}

/// Binding to an address, or connecting to one from a port, that another socket holds.
fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}

fn enter(ns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(ns, Some(LinkNameSpaceType::Network))?)
}

fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// `02:42:ac:11:00:02`.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes?.try_into().ok()
}
