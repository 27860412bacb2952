//! The guest's file system: busybox, modules, the rooms' programs, the tools they call with their libraries, and the
//! installable tree. All of it comes from this machine; nothing on it changes.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    Kernel,
    archive::Archive,
    fetch::Files,
    plan::{BENCH, Plan, Step},
};
use crate::{
    setup::GUEST_TOOLS,
    workspace::{Workspace, find_program},
};

/// Where programs look for what is not a library: plug-ins of iptables, the CNI reference's plug-ins.
const DIRECTORIES: [&str; 3] = ["/usr/lib/cni", "/usr/share/iptables", "/etc/iproute2"];
const TABLES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/xtables",
    "/usr/lib64/xtables",
    "/usr/lib/xtables",
];
/// Names of protocols and users.
const NAMES: [&str; 6] = [
    "/etc/protocols",
    "/etc/services",
    "/etc/passwd",
    "/etc/group",
    "/etc/ethertypes",
    "/etc/nsswitch.conf",
];
/// Of the repository: what tests read by its path. Not what is built.
const NOT_SOURCES: [&str; 3] = ["target", ".git", "node_modules"];

/// The package and program behind [`BENCH`].
const BENCH_PROGRAM: &str = "causeway-bench";

/// Builds the programs of the plan's rooms; by room, the stripped program.
pub(crate) fn build_rooms(workspace: &Workspace, plan: &Plan) -> Result<BTreeMap<String, PathBuf>> {
    let (bench, rooms): (Vec<&str>, Vec<&str>) = plan.rooms().into_iter().partition(|room| *room == BENCH);
    let mut cargo = workspace.cargo(["test", "--no-run", "--package", "causeway-tests"]);
    for room in rooms {
        cargo.args(["--test", room]);
    }
    let mut built = compiled(cargo)?;
    if !bench.is_empty() {
        let cargo = workspace.cargo(["build", "--release", "--package", BENCH_PROGRAM]);
        let program = compiled(cargo)?.remove(BENCH_PROGRAM);
        built.insert(BENCH.to_owned(), program.context("cargo has built no bench")?);
    }
    let place = workspace.root.join("target/kernels");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let mut rooms = BTreeMap::new();
    for room in plan.rooms() {
        let program = built
            .get(room)
            .with_context(|| format!("cargo has built no room {room}"))?;
        let stripped = place.join(room);
        let status = Command::new("strip")
            .arg("-o")
            .arg(&stripped)
            .arg(program)
            .status();
        if !status.is_ok_and(|status| status.success()) {
            fs::copy(program, &stripped).with_context(|| format!("cannot copy {}", program.display()))?;
        }
        rooms.insert(room.to_owned(), stripped);
    }
    Ok(rooms)
}

/// What a call of cargo compiles, by the name of the target.
fn compiled(mut cargo: Command) -> Result<BTreeMap<String, PathBuf>> {
    let output = cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the rooms do not compile: see above");
    }
    Ok(programs(&String::from_utf8_lossy(&output.stdout)))
}

/// The programs that cargo names, by the name of the target.
fn programs(messages: &str) -> BTreeMap<String, PathBuf> {
    let read = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, PathBuf::from(message["executable"].as_str()?)))
    };
    messages.lines().filter_map(read).collect()
}

/// Writes the archive for a kernel and returns its path.
pub(crate) fn build(
    workspace: &Workspace,
    kernel: &Kernel,
    files: &Files,
    rooms: &BTreeMap<String, PathBuf>,
    steps: &[Step],
) -> Result<PathBuf> {
    let path = workspace
        .root
        .join(format!("target/kernels/{}.cpio", kernel.name));
    let mut image = Image {
        archive: Archive::create(&path)?,
    };
    image.system(workspace, files)?;
    image.tools()?;
    for (room, program) in rooms {
        image.program(Path::new(&format!("/rooms/{room}")), program)?;
    }
    image
        .archive
        .copy_tree(Path::new("/dist"), &workspace.dist(), &[])?;
    for program in ["usr/bin/causeway", "opt/cni/bin/azure-vnet"] {
        image.libraries(&workspace.dist().join(program))?;
    }
    // By the path under which they were compiled.
    image
        .archive
        .copy_tree(&workspace.root, &workspace.root, &NOT_SOURCES)?;
    let mut plan = String::new();
    for step in steps {
        writeln!(plan, "{} {}", step.room, step.arguments)?;
    }
    image.archive.file(Path::new("/plan"), 0o644, plan.as_bytes())?;
    image.archive.finish()?;
    Ok(path)
}

struct Image {
    archive: Archive,
}

impl Image {
    fn system(&mut self, workspace: &Workspace, files: &Files) -> Result<()> {
        for directory in [
            "/proc",
            "/sys",
            "/dev",
            "/tmp",
            "/run",
            "/root",
            "/var/run",
            "/usr/libexec",
        ] {
            self.archive.directory(Path::new(directory))?;
        }
        let init = workspace.root.join("tests/kernels/init");
        let script = fs::read(&init).with_context(|| format!("cannot read {}", init.display()))?;
        self.archive.file(Path::new("/init"), 0o755, &script)?;
        let busybox = find_program("busybox").context("busybox is not installed")?;
        self.program(Path::new("/bin/busybox"), &busybox)?;
        self.archive.link(Path::new("/bin/sh"), Path::new("busybox"))?;
        // By which the kernel loads what it lacks.
        self.archive
            .link(Path::new("/sbin/modprobe"), Path::new("/bin/busybox"))?;
        self.archive
            .copy_tree(Path::new("/lib/modules"), &files.modules, &[])
    }

    /// The tools that there are on this machine: a test that needs another says so.
    fn tools(&mut self) -> Result<()> {
        for tool in GUEST_TOOLS {
            if let Some(program) = find_program(tool) {
                self.archive.copy(&program, &program)?;
                self.libraries(&program)?;
            }
        }
        for directory in TABLES.iter().chain(&DIRECTORIES).map(Path::new) {
            if directory.is_dir() {
                self.archive.copy_tree(directory, directory, &[])?;
            }
        }
        for name in NAMES.map(Path::new) {
            if name.exists() {
                self.archive.copy(name, name)?;
            }
        }
        Ok(())
    }

    fn program(&mut self, at: &Path, from: &Path) -> Result<()> {
        self.archive.file(
            at,
            0o755,
            &fs::read(from).with_context(|| format!("cannot read {}", from.display()))?,
        )?;
        self.libraries(from)
    }

    /// What the dynamic linker would load for a program.
    fn libraries(&mut self, program: &Path) -> Result<()> {
        let output = Command::new("ldd")
            .arg(program)
            .env("LC_ALL", "C")
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .output()
            .context("cannot start ldd")?;
        // It fails for what needs none.
        for library in read_libraries(&String::from_utf8_lossy(&output.stdout)) {
            self.archive.copy(&library, &library)?;
        }
        Ok(())
    }
}

/// The paths that ldd prints.
fn read_libraries(printed: &str) -> Vec<PathBuf> {
    printed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_linker_are_read_from_ldd() {
        let printed = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\tlibx.so => not found\n";
        assert_eq!(
            read_libraries(printed),
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }

    #[test]
    fn rooms_are_read_from_cargo() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"prog\"},\"executable\":\"/x/prog-1\"}\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"aya\"},\"executable\":null}\n\
                        {\"reason\":\"build-finished\"}\n";
        let built = programs(messages);
        assert_eq!(built.len(), 1);
        assert_eq!(built["prog"], Path::new("/x/prog-1"));
    }
}
