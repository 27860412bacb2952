//! The leases on disk: `/var/run/azure-vnet-ipam.json`, in the incumbent's format.
//!
//! Owns the file and its lock. A lease that was ever saved is not lost: a missing, empty or damaged file is rebuilt
//! from the endpoints, and where there are none to rebuild from, a damaged file is an error.

mod format;

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use self::format::{File, LOCAL};
use super::pool::{Holder, Request, Space};
use crate::{
    boot,
    durable::{self, Lock, LockError, Version},
    endpoints,
    go_json::{rfc3339, to_vec},
    root::Root,
};

/// The state file.
pub const STATE: &str = "/var/run/azure-vnet-ipam.json";
/// The lock file that the incumbent takes, too.
pub const LOCK: &str = "/var/run/azure-vnet/azure-vnet-ipam.lock";

/// Why the leases cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The lock was not got.
    #[error("Failed to initialize key-value store of ipam plugin: error Acquiring store lock: {0}")]
    Lock(#[from] LockError),
    /// The file cannot be read.
    #[error("cannot read the address state {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the address state {path}: {source}; is the file system full or read-only?")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is no such state.
    #[error(
        "the address state {path} is damaged ({source}) and there is no readable {STATE_OF_ENDPOINTS} to rebuild it \
         from; if no pod runs on this node, delete {path}, else put a good copy there",
        STATE_OF_ENDPOINTS = endpoints::STATE
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Line and column.
        source: serde_json::Error,
    },
}

/// The pools as they are at this moment, without a lock: the file is only ever replaced as a whole. Leases of an
/// earlier boot are not in it.
pub fn snapshot(root: &Root) -> Result<Space, StoreError> {
    Ok(std::mem::take(Reading::of(root)?.space()))
}

/// Whether these bytes are such a state.
#[cfg(feature = "cli")]
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    matches!(File::parse(bytes), Ok(Some(_)))
}

/// The leases as they were at a moment, as [`snapshot`] has them. Whoever is going to change them need not read them again
/// under the lock if nobody has changed them meanwhile.
#[derive(Debug, Default)]
pub struct Reading {
    file: File,
    /// What stands on the disk, as long as that is known.
    loaded: Option<Vec<u8>>,
    /// Of what; `None` where there is nothing.
    version: Option<Version>,
}

impl Reading {
    /// Reads the leases, without a lock.
    pub fn of(root: &Root) -> Result<Self, StoreError> {
        match load(&root.path(STATE))? {
            Loaded::File(file, bytes, version) => Ok(Self::new(file, Some(bytes), Some(version))),
            Loaded::Nothing(version) => Ok(Self::made(File::default(), version)),
        }
    }

    fn new(mut file: File, loaded: Option<Vec<u8>>, version: Option<Version>) -> Self {
        LOCAL.clone_into(&mut file.ipam.local().id);
        file.ipam.end_earlier_boot();
        Self {
            file,
            loaded,
            version,
        }
    }

    /// Of a file that does not stand on the disk, and need not for what it says.
    fn made(mut file: File, version: Option<Version>) -> Self {
        LOCAL.clone_into(&mut file.ipam.local().id);
        let loaded = to_vec(&file).ok();
        Self::new(file, loaded, version)
    }

    /// The pools.
    pub fn space(&mut self) -> &mut Space {
        self.file.ipam.local()
    }

    fn is_current(&self, path: &Path) -> bool {
        let version = self.version.as_ref();
        version.is_some_and(|version| version.is_current(path).unwrap_or(false))
    }
}

/// What stands in the file, and which content that is.
enum Loaded {
    File(File, Vec<u8>, Version),
    Nothing(Option<Version>),
}

fn load(path: &Path) -> Result<Loaded, StoreError> {
    let read = durable::read_version(path).map_err(|source| StoreError::Read {
        path: path.to_owned(),
        source,
    })?;
    let Some((bytes, version)) = read else {
        return Ok(Loaded::Nothing(None));
    };
    match File::parse(&bytes) {
        Ok(Some(file)) => Ok(Loaded::File(file, bytes, version)),
        Ok(None) => Ok(Loaded::Nothing(Some(version))),
        Err(source) => Err(StoreError::Corrupt {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The leases under their lock, to be changed and saved.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    reading: Reading,
    _lock: Lock,
}

impl Store {
    /// Takes the lock and reads the leases.
    pub fn open(root: &Root, timeout: Duration) -> Result<Self, StoreError> {
        Self::open_as(root, timeout, None)
    }

    /// Takes the lock, and the leases as they were `read` before if nobody has changed them since; with what has been
    /// changed in the reading, but not been saved. Else, they are read again.
    pub fn open_as(root: &Root, timeout: Duration, read: Option<Reading>) -> Result<Self, StoreError> {
        let lock = Lock::acquire(&root.path(LOCK), timeout)?;
        let path = root.path(STATE);
        let reading = match read.filter(|reading| reading.is_current(&path)) {
            Some(reading) => reading,
            None => read_or_rebuild(root, &path)?,
        };
        Ok(Self {
            path,
            reading,
            _lock: lock,
        })
    }

    /// The pools.
    pub fn space(&mut self) -> &mut Space {
        self.reading.space()
    }

    /// Gives up the lock.
    pub fn into_reading(self) -> Reading {
        self.reading
    }

    /// Writes the leases to disk, unless nothing has changed.
    pub fn save(&mut self) -> Result<(), StoreError> {
        let Reading {
            file,
            loaded,
            version,
        } = &mut self.reading;
        let failed = |source| StoreError::Write {
            path: self.path.clone(),
            source,
        };
        boot::id().clone_into(&mut file.ipam.boot);
        env!("CARGO_PKG_VERSION").clone_into(&mut file.ipam.version);
        file.ipam.time_stamp = rfc3339(SystemTime::now());
        let bytes = to_vec(file).map_err(|error| failed(error.into()))?;
        if loaded
            .as_ref()
            .is_some_and(|loaded| format::is_same(loaded, &bytes))
        {
            return Ok(());
        }
        // From here on it is another content, even where the write does not succeed.
        (*version, *loaded) = (None, None);
        durable::write(&self.path, &bytes).map_err(failed)
    }
}

/// The leases, under the lock: what is lost or damaged is rebuilt if it can be.
fn read_or_rebuild(root: &Root, path: &Path) -> Result<Reading, StoreError> {
    match load(path) {
        Ok(Loaded::File(file, bytes, version)) => Ok(Reading::new(file, Some(bytes), Some(version))),
        Ok(Loaded::Nothing(_)) => Ok(Reading::made(rebuild(root).unwrap_or_default(), None)),
        Err(StoreError::Corrupt { path, source }) => {
            let Some(file) = rebuild(root) else {
                return Err(StoreError::Corrupt { path, source });
            };
            let aside = durable::quarantine(&path).map_err(|source| StoreError::Read {
                path: path.clone(),
                source,
            })?;
            tracing::warn!(%source, path = %path.display(), aside = %aside.display(), "damaged leases are put aside");
            Ok(Reading::made(file, None))
        }
        Err(error) => Err(error),
    }
}

/// The leases that the endpoints are proof of; `None` when nothing can be said about endpoints.
fn rebuild(root: &Root) -> Option<File> {
    let state = endpoints::snapshot(root).ok().flatten()?;
    let mut file = File::default();
    let space = file.ipam.local();
    let mut leases = 0;
    for (network, endpoint) in state.endpoints() {
        let holder = Holder {
            container: endpoint.container_id.clone(),
            interface: endpoint.if_name.clone(),
        };
        let request = Request {
            network: network.to_owned(),
            host_if: endpoint.host_if_name.clone(),
            ..Request::default()
        };
        for address in endpoint.addresses() {
            space.adopt(&holder, address, &request);
            leases += 1;
        }
    }
    if leases > 0 {
        tracing::warn!(
            leases,
            "the address state was lost and is rebuilt from the endpoints"
        );
    }
    Some(file)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;
    use crate::ipam::source::SourcePool;

    const SUBNET: &str = "10.240.0.0/16";

    fn holder(container: &str) -> Holder {
        Holder {
            container: container.to_owned(),
            interface: "eth0".to_owned(),
        }
    }

    fn open(root: &Root) -> Result<Store, StoreError> {
        Store::open(root, Duration::from_secs(1))
    }

    fn source() -> SourcePool {
        SourcePool {
            subnet: SUBNET.parse().unwrap(),
            interface: "eth0".to_owned(),
            priority: 0,
            addresses: (5..8).map(|host| [10, 240, 0, host].into()).collect(),
            on_interface: false,
        }
    }

    fn add(root: &Root, container: &str) -> String {
        let mut store = open(root).unwrap();
        store.space().merge(&[source()]);
        let lease = store
            .space()
            .allocate(SUBNET, &holder(container), &Request::default(), &|_| false)
            .unwrap();
        store.save().unwrap();
        lease.address.to_string()
    }

    fn endpoints_file(root: &Root) {
        fs::create_dir_all(root.path("/var/run")).unwrap();
        let file = json!({ "Network": { "ExternalInterfaces": { "eth0": { "Networks": { "azure": { "Endpoints": {
            "a-eth0": { "ContainerID": "a", "IfName": "eth0", "IPAddresses": [{ "IP": "10.240.0.5", "Mask": "//8AAA==" }] }
        } } } } } } });
        fs::write(root.path(endpoints::STATE), file.to_string()).unwrap();
    }

    #[test]
    fn the_file_has_the_incumbents_form() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(add(&root, "a"), "10.240.0.5");
        let text = fs::read_to_string(root.path(STATE)).unwrap();
        assert!(text.starts_with("{\n\t\"IPAM\": {\n\t\t\"Version\": "), "{text}");
        let file: Value = serde_json::from_str(&text).unwrap();
        let space = &file["IPAM"]["AddressSpaces"]["local"];
        assert_eq!((&space["Id"], &space["Scope"]), (&json!("local"), &json!(0)));
        let pool = &space["Pools"][SUBNET];
        for (name, value) in [
            ("Id", json!(SUBNET)),
            ("IfName", json!("eth0")),
            ("Subnet", json!({ "IP": "10.240.0.0", "Mask": "//8AAA==" })),
            ("Gateway", json!("10.240.0.1")),
            ("IsIPv6", json!(false)),
            ("Priority", json!(0)),
            ("RefCount", json!(1)),
        ] {
            assert_eq!(pool[name], value, "{name}");
        }
        assert_eq!(
            pool["Addresses"]["10.240.0.6"],
            json!({ "ID": "", "Addr": "10.240.0.6", "InUse": false })
        );
        let held = &pool["Addresses"]["10.240.0.5"];
        assert_eq!((&held["ID"], &held["InUse"]), (&json!("a"), &json!(true)));
    }

    #[test]
    fn leases_end_with_the_boot() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(
            (add(&root, "a"), add(&root, "b")),
            ("10.240.0.5".to_owned(), "10.240.0.6".to_owned())
        );
        let text = fs::read_to_string(root.path(STATE)).unwrap();
        assert!(
            text.contains(&format!("\"BootID\": \"{}\"", boot::id())),
            "{text}"
        );
        let held = || snapshot(&root).unwrap().held().count();
        assert_eq!(held(), 2);
        fs::write(root.path(STATE), text.replace(boot::id(), "an-earlier-one")).unwrap();
        assert_eq!(held(), 0);
        assert_eq!(add(&root, "c"), "10.240.0.5");
        assert_eq!(held(), 1);
    }

    #[test]
    fn what_has_not_changed_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let mut store = open(&root).unwrap();
        assert!(store.space().release(&holder("a"), &[], 1).is_empty());
        store.save().unwrap();
        assert!(!root.path(STATE).exists());
        drop(store);
        add(&root, "a");
        let before = fs::read(root.path(STATE)).unwrap();
        add(&root, "a");
        assert_eq!(fs::read(root.path(STATE)).unwrap(), before);
    }

    #[test]
    fn an_empty_file_is_an_empty_state() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        fs::create_dir_all(root.path("/var/run")).unwrap();
        for text in [
            "",
            "\n",
            "{}",
            "null",
            r#"{"IPAM":null}"#,
            r#"{"IPAM":{"AddressSpaces":{"local":{"Pools":null}}}}"#,
        ] {
            fs::write(root.path(STATE), text).unwrap();
            if text == "null" {
                assert!(open(&root).is_err());
            } else {
                assert_eq!(add(&root, "a"), "10.240.0.5", "{text}");
            }
        }
    }

    #[test]
    fn lost_leases_come_back_from_the_endpoints() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        endpoints_file(&root);
        assert_eq!(add(&root, "b"), "10.240.0.6", "no file: .5 is a's");
        for damage in [
            "",
            "{",
            "[]",
            r#"{"IPAM":{"AddressSpaces":{"local":{"Pools":7}}}}"#,
        ] {
            fs::write(root.path(STATE), damage).unwrap();
            assert_eq!(add(&root, "c"), "10.240.0.6", "{damage}");
            assert_eq!(add(&root, "a"), "10.240.0.5", "{damage}");
        }
        assert_eq!(
            fs::read_to_string(root.path(format!("{STATE}.corrupt-0"))).unwrap(),
            "{"
        );
        assert!(root.path(format!("{STATE}.corrupt-2")).exists());
    }

    #[test]
    fn a_state_cut_anywhere_is_an_error_that_says_what_to_do_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        add(&root, "a");
        let whole = fs::read(root.path(STATE)).unwrap();
        for length in 1..whole.len() {
            fs::write(root.path(STATE), &whole[..length]).unwrap();
            let error = open(&root).unwrap_err().to_string();
            assert!(
                error.contains("is damaged") && error.contains("delete"),
                "cut at {length}: {error}"
            );
            assert_eq!(fs::read(root.path(STATE)).unwrap(), &whole[..length]);
        }
    }
}
