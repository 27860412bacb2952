//! Where the workspace is, who runs us, and how other programs are called.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use xtask::ebpf_object;

/// What compiles for this machine: the workspace without the kernel programs (`ebpf_object::ALL`).
pub(crate) const HOST: [&str; 5] = [
    "--workspace",
    "--exclude",
    ebpf_object::CAUSEWAY.package,
    "--exclude",
    ebpf_object::BENCH.package,
];

/// The repository and the directories cargo uses for it.
pub(crate) struct Workspace {
    /// Top directory of the repository.
    pub(crate) root: PathBuf,
    /// Cargo's target directory: `target`, unless CARGO_TARGET_DIR or a configuration says otherwise.
    pub(crate) target: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        // Cargo says at run time where the manifest is; what was compiled in is for a run without cargo.
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).join("..");
        let root = fs::canonicalize(&root).with_context(|| format!("no workspace at {}", root.display()))?;
        let mut workspace = Self {
            root,
            target: PathBuf::new(),
        };
        let metadata = workspace.metadata(&["--no-deps"])?;
        let target = metadata["target_directory"]
            .as_str()
            .context("cargo metadata names no target_directory")?;
        workspace.target = target.into();
        Ok(workspace)
    }

    /// What packagers and tests install from (design, "Contract for tests and packagers").
    pub(crate) fn dist(&self) -> PathBuf {
        self.root.join("target/dist")
    }

    /// The cargo that runs us, in the workspace.
    pub(crate) fn cargo<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(cargo_program());
        command.args(arguments).current_dir(&self.root);
        command
    }

    /// `cargo metadata` as JSON.
    pub(crate) fn metadata(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut command = self.cargo(["metadata", "--format-version", "1"]);
        let output = command.args(arguments).output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!(
                "cargo metadata failed:\n{}",
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        serde_json::from_slice(&output.stdout).context("cargo metadata does not print JSON")
    }
}

/// The cargo that runs us, by its path.
pub(crate) fn cargo_program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs to the end, output to the terminal.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if status.success() {
        return Ok(());
    }
    let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let name = Path::new(&program).file_name().unwrap_or(&program);
    bail!("{} {} failed ({status})", name.display(), arguments.join(" "))
}

/// PATH with the directories of the system's tools, which a user's own often lacks.
pub(crate) fn path_with_sbin() -> OsString {
    let own = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&own).collect();
    for system in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        if !directories.iter().any(|directory| directory == Path::new(system)) {
            directories.push(system.into());
        }
    }
    env::join_paths(directories).unwrap_or(own)
}

/// The first program of this name in [`path_with_sbin`].
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&path_with_sbin())
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// Whether this process may do what root may: the effective uid is 0.
pub(crate) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0")
}

/// `why` completes "needs root for …".
pub(crate) fn require_root(why: impl Into<String>) -> Result<()> {
    if is_root() {
        Ok(())
    } else {
        Err(NeedsRoot { why: why.into() }.into())
    }
}

/// Something only root can do is to be done.
#[derive(Debug)]
pub(crate) struct NeedsRoot {
    why: String,
}

impl NeedsRoot {
    /// One line: what is needed and the command that has it.
    pub(crate) fn hint(&self, verb: &str) -> String {
        format!("{self}: run `sudo -E env \"PATH=$PATH\" cargo xtask {verb}`")
    }
}

impl fmt::Display for NeedsRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not root, which is needed for {}", self.why)
    }
}

impl std::error::Error for NeedsRoot {}
