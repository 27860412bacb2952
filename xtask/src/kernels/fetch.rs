//! A kernel and its modules: from the cache, or by apt from the Debian mirror that this system is set up with.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::Kernel;
use crate::workspace::{Workspace, find_program};

/// The keys with which Debian signs its lists.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The package that always depends on the newest one.
const META: &str = "linux-image-cloud-amd64";
/// Modules that the tests may need, below `kernel/`: directories, and files without their endings.
const MODULES: [&str; 9] = [
    "net",
    "lib",
    "crypto",
    "arch/x86/crypto",
    "fs/overlayfs",
    "drivers/net/veth",
    "drivers/net/tun",
    "drivers/net/dummy",
    "drivers/net/ifb",
];

/// What was fetched, unpacked.
pub(crate) struct Files {
    /// What qemu boots.
    pub(crate) image: PathBuf,
    /// `/lib/modules` as the guest is to have it.
    pub(crate) modules: PathBuf,
}

/// Sees to it that a kernel is in the cache. What is there is taken as it is: remove the directory for a newer one.
pub(crate) fn fetch(workspace: &Workspace, kernel: &Kernel) -> Result<Files> {
    let place = cache(workspace).join(kernel.name);
    let files = Files {
        image: place.join("vmlinuz"),
        modules: place.join("modules"),
    };
    if files.image.exists() && files.modules.exists() {
        return Ok(files);
    }
    let fresh = cache(workspace).join(format!("{}.new", kernel.name));
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    let package = match by_hand(workspace, kernel)? {
        Some(package) => package,
        None => Mirror::find(workspace, kernel)?.download(&fresh)?,
    };
    println!("unpacking {}", package.display());
    unpack(&package, &fresh)?;
    if place.exists() {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    fs::rename(&fresh, &place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(files)
}

fn cache(workspace: &Workspace) -> PathBuf {
    workspace.root.join("target/cache/kernels")
}

/// A package that somebody has put into the cache, for machines that reach no mirror.
fn by_hand(workspace: &Workspace, kernel: &Kernel) -> Result<Option<PathBuf>> {
    let prefix = format!("linux-image-{}.", kernel.name);
    find(&cache(workspace), |name| {
        name.starts_with(&prefix) && name.ends_with("_amd64.deb")
    })
}

fn find(directory: &Path, is_it: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    if !directory.exists() {
        return Ok(None);
    }
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&is_it) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// A release of Debian on the mirror of this system, with lists of its own: the system's are not touched.
struct Mirror {
    base: PathBuf,
    suite: &'static str,
}

impl Mirror {
    fn find(workspace: &Workspace, kernel: &Kernel) -> Result<Self> {
        let hint = format!(
            "or put the package {META} of Debian's {} depends on (linux-image-{}.…_amd64.deb) into {}",
            kernel.suite,
            kernel.name,
            cache(workspace).display()
        );
        if find_program("apt-get").is_none() || find_program("dpkg-deb").is_none() {
            bail!("there is no apt here: run this on Debian, {hint}");
        }
        let uri = debian_uri()?.with_context(|| {
            format!("no source of apt is Debian's (`apt-get indextargets` names none): add one, {hint}")
        })?;
        let mirror = Self {
            base: cache(workspace).join(format!("apt-{}", kernel.suite)),
            suite: kernel.suite,
        };
        for directory in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(mirror.base.join(directory))
                .with_context(|| format!("cannot make {}/{directory}", mirror.base.display()))?;
        }
        let signed = if Path::new(KEYS).exists() {
            format!("signed-by={KEYS}")
        } else {
            String::new()
        };
        let line = format!("deb [arch=amd64 {signed}] {uri} {} main\n", kernel.suite);
        fs::write(mirror.base.join("sources.list"), line).context("cannot write sources.list")?;
        println!("fetching the lists of Debian's {}", kernel.suite);
        mirror
            .run("apt-get", &["-q", "update"], &mirror.base)
            .with_context(|| hint.clone())?;
        Ok(mirror)
    }

    /// Downloads the newest kernel into `into`.
    fn download(&self, into: &Path) -> Result<PathBuf> {
        let depends = self.run("apt-cache", &["depends", META], &self.base)?;
        let package = read_dependency(&depends).with_context(|| {
            format!(
                "{META} of Debian's {} depends on no kernel:\n{depends}",
                self.suite
            )
        })?;
        println!("fetching {package}");
        self.run("apt-get", &["-q", "download", &package], into)?;
        find(into, |name| name.starts_with(&package))?
            .with_context(|| format!("apt-get download {package} left no package"))
    }

    fn run(&self, program: &str, arguments: &[&str], directory: &Path) -> Result<String> {
        let mut command = Command::new(program);
        command.current_dir(directory).env("LC_ALL", "C");
        let path = |name: &str| self.base.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::SourceList={}", path("sources.list")),
            format!("Dir::Etc::SourceParts={}", path("none")),
            format!("Dir::State::Lists={}", path("lists")),
            format!("Dir::Cache={}", self.base.display()),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        let output = command
            .args(arguments)
            .output()
            .with_context(|| format!("cannot start {program}"))?;
        if !output.status.success() {
            bail!(
                "{program} {} failed:\n{}{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Where this system fetches Debian's own packages from, by its sources.
fn debian_uri() -> Result<Option<String>> {
    let output = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(LABEL) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ])
        .output()
        .context("cannot start apt-get")?;
    Ok(read_uri(&String::from_utf8_lossy(&output.stdout)))
}

fn read_uri(targets: &str) -> Option<String> {
    let uri = targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian main "))?;
    Some(uri.trim().to_owned())
}

/// The kernel's package by `apt-cache depends`.
fn read_dependency(depends: &str) -> Option<String> {
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))?;
    Some(format!("linux-image-{}", package.trim()))
}

fn unpack(package: &Path, into: &Path) -> Result<()> {
    let tree = into.join("tree");
    run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&tree))?;
    let image = find(&tree.join("boot"), |name| name.starts_with("vmlinuz-"))?
        .with_context(|| format!("{} has no kernel", package.display()))?;
    fs::rename(&image, into.join("vmlinuz")).context("cannot move the kernel")?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|place| tree.join(place))
        .into_iter()
        .find(|place| place.exists())
        .with_context(|| format!("{} has no modules", package.display()))?;
    let version = find(&modules, |_| true)?.context("no version below the modules")?;
    let name = version.file_name().context("the version has no name")?.to_owned();
    let kept = into.join("modules").join(&name);
    for module in MODULES {
        keep_module(&version.join("kernel"), module, &kept.join("kernel"))?;
    }
    for entry in fs::read_dir(&version)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), kept.join(entry.file_name()))?;
        }
    }
    // The package has none: its installation makes it. Busybox reads no compressed modules there.
    let base = into.join("base/lib");
    fs::create_dir_all(&base)?;
    std::os::unix::fs::symlink(into.join("modules"), base.join("modules"))?;
    run(Command::new("busybox")
        .args(["depmod", "-b"])
        .arg(into.join("base"))
        .arg(&name))?;
    fs::remove_dir_all(into.join("base"))?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))
}

/// Moves a directory of modules, or one module, and decompresses it.
fn keep_module(from: &Path, name: &str, to: &Path) -> Result<()> {
    let kept = to.join(name);
    let parent = kept.parent().unwrap_or(to);
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    if from.join(name).is_dir() {
        fs::rename(from.join(name), &kept).with_context(|| format!("cannot move {name}"))?;
        return decompress(&kept);
    }
    for ending in ["ko", "ko.xz"] {
        let file = from.join(format!("{name}.{ending}"));
        if file.exists() {
            let moved = to.join(format!("{name}.{ending}"));
            fs::rename(&file, &moved)?;
            return decompress_one(&moved);
        }
    }
    // Built in, or not there in this kernel: whoever needs it says so.
    Ok(())
}

fn decompress(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            decompress(&entry.path())?;
        } else {
            decompress_one(&entry.path())?;
        }
    }
    Ok(())
}

fn decompress_one(module: &Path) -> Result<()> {
    if module.extension().is_some_and(|ending| ending == "xz") {
        run(Command::new("xz").arg("-d").arg(module))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            command.get_program().display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_of_the_distribution() {
        let targets = "NodeSource main https://example.org/x/\nDebian main http://mirror.example/debian/\nDebian main http://b/\n";
        assert_eq!(
            read_uri(targets).as_deref(),
            Some("http://mirror.example/debian/")
        );
        assert_eq!(read_uri("Ubuntu main http://c/\n"), None);
    }

    #[test]
    fn the_meta_package_names_the_kernel() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.12.107+deb13-cloud-amd64\n";
        assert_eq!(
            read_dependency(depends).as_deref(),
            Some("linux-image-6.12.107+deb13-cloud-amd64")
        );
        assert_eq!(read_dependency("linux-image-cloud-amd64\n"), None);
    }
}
