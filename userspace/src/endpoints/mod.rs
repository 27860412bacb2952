//! Which pods have an interface: `/var/run/azure-vnet.json`, in the incumbent's format.
//!
//! Owns the file, its lock and the keys of its entries. Knows nothing of the kernel: that an endpoint is listed does
//! not prove that it works.

mod format;
mod state;

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

pub use self::format::{Endpoint, NewEndpoint, State, UplinkRecord};
use self::format::{ExternalInterface, File, Network};
use crate::{
    boot,
    durable::{self, Lock, LockError, Version},
    go_json::{rfc3339, to_vec},
    root::Root,
};

/// The state file.
pub const STATE: &str = "/var/run/azure-vnet.json";
/// The lock file that the incumbent takes, too.
pub const LOCK: &str = "/var/run/azure-vnet/azure-vnet.lock";

/// Names an interface of a container in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The network's name.
    pub network: String,
    /// The whole container id.
    pub container: String,
    /// The interface's name in the container.
    pub interface: String,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointsError {
    /// The lock was not got.
    #[error("Failed to initialize key-value store of network plugin: error Acquiring store lock: {0}")]
    Lock(#[from] LockError),
    /// The file cannot be read.
    #[error("cannot read the endpoint state {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the endpoint state {path}: {source}; is the file system full or read-only?")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is no such state.
    #[error("the endpoint state {path} is damaged: {source}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Line and column.
        source: serde_json::Error,
    },
}

/// The state as it is at this moment, without a lock: the file is only ever replaced as a whole. `None` when there is
/// no file or it is empty. Endpoints of an earlier boot are not in it.
pub fn snapshot(root: &Root) -> Result<Option<State>, EndpointsError> {
    Ok(load(&root.path(STATE))?.0.map(|file| file.network))
}

/// As [`snapshot`], for those whom a damaged state must not hinder: it is put aside when the next endpoint is noted.
pub fn readable(root: &Root) -> Result<State, EndpointsError> {
    Ok(Reading::of(root)?.file.network)
}

/// The state as it was at a moment. Whoever is going to change it need not read it again under the lock if nobody has
/// changed it meanwhile.
#[derive(Debug, Default)]
pub struct Reading {
    file: File,
    /// What was read; `None` where there is nothing, or nothing that can be read.
    version: Option<Version>,
}

impl Reading {
    /// Reads the state, without a lock. A damaged one is as good as none.
    pub fn of(root: &Root) -> Result<Self, EndpointsError> {
        match load(&root.path(STATE)) {
            Ok((file, version)) => Ok(Self {
                file: file.unwrap_or_default(),
                version,
            }),
            Err(error @ EndpointsError::Corrupt { .. }) => {
                tracing::warn!(%error, "endpoints of before are not known");
                Ok(Self::default())
            }
            Err(error) => Err(error),
        }
    }

    /// Every endpoint as it stood.
    pub fn state(&self) -> &State {
        &self.file.network
    }

    fn is_current(&self, path: &Path) -> bool {
        let version = self.version.as_ref();
        version.is_some_and(|version| version.is_current(path).unwrap_or(false))
    }
}

/// The state under its lock, to be changed and saved.
#[derive(Debug)]
pub struct Endpoints {
    path: PathBuf,
    file: File,
    _lock: Lock,
}

impl Endpoints {
    /// Takes the lock and reads the state. A damaged file is put aside and the state starts empty: pods are still
    /// found, because the name of a host interface follows from the pod and leases are kept by container.
    pub fn open(root: &Root, timeout: Duration) -> Result<Self, EndpointsError> {
        Self::open_as(root, timeout, None)
    }

    /// As [`Self::open`], with the state as it was `read` before if nobody has changed it since.
    pub fn open_as(root: &Root, timeout: Duration, read: Option<Reading>) -> Result<Self, EndpointsError> {
        let lock = Lock::acquire(&root.path(LOCK), timeout)?;
        let path = root.path(STATE);
        if let Some(Reading { file, .. }) = read.filter(|reading| reading.is_current(&path)) {
            return Ok(Self {
                path,
                file,
                _lock: lock,
            });
        }
        let file = match load(&path) {
            Err(EndpointsError::Corrupt { path, source }) => {
                let aside = durable::quarantine(&path).map_err(|source| EndpointsError::Write {
                    path: path.clone(),
                    source,
                })?;
                tracing::warn!(%source, path = %path.display(), aside = %aside.display(), "damaged state is put aside");
                File::default()
            }
            loaded => loaded?.0.unwrap_or_default(),
        };
        Ok(Self {
            path,
            file,
            _lock: lock,
        })
    }

    /// Notes an endpoint, in place of one with the same key.
    pub fn insert(&mut self, endpoint: &NewEndpoint<'_>) -> Result<(), EndpointsError> {
        self.remove(endpoint.key);
        let uplink = endpoint.uplink;
        let interfaces = &mut self.file.network.external_interfaces;
        let below = interfaces
            .iter()
            .find(|(_, interface)| interface.is_below(uplink.name));
        let name = below.map_or(uplink.name, |(name, _)| name).to_owned();
        let interface = interfaces
            .entry(name)
            .or_insert_with(|| ExternalInterface::new(uplink));
        interface.update(uplink, endpoint.addresses);
        let network = interface
            .networks
            .entry(endpoint.key.network.clone())
            .or_insert_with(|| Network::new(&endpoint.key.network));
        network.update(endpoint.addresses);
        let id = free_id(network, endpoint.key);
        let noted = Endpoint::new(&id, endpoint).map_err(|error| EndpointsError::Write {
            path: self.path.clone(),
            source: error.into(),
        })?;
        network.endpoints.insert(id, noted);
        Ok(())
    }

    /// Forgets an endpoint and returns what was known of it.
    pub fn remove(&mut self, key: &Key) -> Option<Endpoint> {
        for interface in self.file.network.external_interfaces.values_mut() {
            let Some(network) = interface.networks.get_mut(&key.network) else {
                continue;
            };
            let id = network
                .endpoints
                .iter()
                .find(|(_, endpoint)| endpoint.is(key))
                .map(|(id, _)| id.clone());
            if let Some(id) = id {
                return network.endpoints.remove(&id);
            }
        }
        None
    }

    /// Every endpoint as it stands.
    pub fn state(&self) -> &State {
        &self.file.network
    }

    /// Writes the state to disk. The lock is kept until this is dropped.
    pub fn save(&mut self) -> Result<(), EndpointsError> {
        let failed = |source| EndpointsError::Write {
            path: self.path.clone(),
            source,
        };
        env!("CARGO_PKG_VERSION").clone_into(&mut self.file.network.version);
        self.file.network.time_stamp = rfc3339(SystemTime::now());
        boot::id().clone_into(&mut self.file.network.boot);
        let bytes = to_vec(&self.file).map_err(|error| failed(error.into()))?;
        durable::write(&self.path, &bytes).map_err(failed)
    }
}

/// Whether these bytes are a state.
#[cfg(feature = "cli")]
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    matches!(parse(bytes, Path::new(STATE)), Ok(Some(_)))
}

/// What stands in the file, and which content that is.
fn load(path: &Path) -> Result<(Option<File>, Option<Version>), EndpointsError> {
    let read = durable::read_version(path).map_err(|source| EndpointsError::Read {
        path: path.to_owned(),
        source,
    })?;
    match read {
        Some((bytes, version)) => Ok((parse(&bytes, path)?, Some(version))),
        None => Ok((None, None)),
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Option<File>, EndpointsError> {
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice::<File>(bytes) {
        Ok(mut file) => {
            file.network.end_earlier_boot();
            Ok(Some(file))
        }
        Err(source) => Err(EndpointsError::Corrupt {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The incumbent's id, `<first 8 characters of the container id>-<interface>`; with the whole container id where
/// that one is another's (`ctr` names all containers `default-…`) or the container id is too short for it.
fn free_id(network: &Network, key: &Key) -> String {
    let short = match key.container.split_at_checked(8) {
        Some((short, rest)) if !rest.is_empty() => format!("{short}-{}", key.interface),
        _ => String::new(),
    };
    if short.is_empty() || network.endpoints.contains_key(&short) {
        format!("{}-{}", key.container, key.interface)
    } else {
        short
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::IpAddr};

    use ipnet::IpNet;
    use serde_json::{Value, json};

    use super::*;
    use crate::{datapath::HostPort, endpoints::format::UplinkRecord};

    fn key(container: &str, interface: &str) -> Key {
        Key {
            network: "azure".to_owned(),
            container: container.to_owned(),
            interface: interface.to_owned(),
        }
    }

    fn add(root: &Root, key: &Key, host: u8) {
        let mut endpoints = Endpoints::open(root, Duration::from_secs(1)).unwrap();
        endpoints
            .insert(&NewEndpoint {
                key,
                uplink: &UplinkRecord {
                    name: "eth0",
                    mac: [0, 0x0d, 0x3a, 1, 2, 3],
                },
                host_if: "azv0123",
                mac: [2, 0, 0, 0, 0, host],
                addresses: &[IpNet::new(IpAddr::from([10, 240, 0, host]), 16).unwrap()],
                gateways: &[IpAddr::from([10, 240, 0, 1])],
                nameservers: &["168.63.129.16".to_owned()],
                netns: "/var/run/netns/x",
                pod: "web",
                namespace: "default",
                host_ports: &[HostPort {
                    is_udp: true,
                    port: 5300,
                }],
                ipam_result: None,
            })
            .unwrap();
        endpoints.save().unwrap();
    }

    fn raw(root: &Root) -> Value {
        serde_json::from_slice(&fs::read(root.path(STATE)).unwrap()).unwrap()
    }

    #[test]
    fn the_file_has_the_incumbents_form() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        add(&root, &key("3f813b02aabbccdd", "eth0"), 5);
        let text = fs::read_to_string(root.path(STATE)).unwrap();
        assert!(text.starts_with("{\n\t\"Network\": {\n\t\t\""), "{text}");
        let interface = &raw(&root)["Network"]["ExternalInterfaces"]["eth0"];
        assert_eq!(interface["MacAddress"], "AA06AQID");
        assert_eq!(interface["Subnets"], json!(["10.240.0.0/16"]));
        let network = &interface["Networks"]["azure"];
        assert_eq!(
            network["Subnets"][0]["Prefix"],
            json!({ "IP": "10.240.0.0", "Mask": "//8AAA==" })
        );
        let endpoint = &network["Endpoints"]["3f813b02-eth0"];
        for (name, value) in [
            ("Id", json!("3f813b02-eth0")),
            ("IfName", json!("eth0")),
            ("HostIfName", json!("azv0123")),
            ("MacAddress", json!("AgAAAAAF")),
            ("IPAddresses", json!([{ "IP": "10.240.0.5", "Mask": "//8AAA==" }])),
            ("Gateways", json!(["10.240.0.1"])),
            ("NetworkNameSpace", json!("/var/run/netns/x")),
            ("ContainerID", json!("3f813b02aabbccdd")),
            ("PODName", json!("web")),
            ("PODNameSpace", json!("default")),
            ("HostPorts", json!([{ "Protocol": "udp", "Port": 5300 }])),
        ] {
            assert_eq!(endpoint[name], value, "{name}");
        }
    }

    #[test]
    fn endpoints_are_found_and_forgotten_one_by_one() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert!(snapshot(&root).unwrap().is_none());
        let keys = [
            key("default-t1", "eth0"),
            key("default-t2", "eth0"),
            key("default-t1", "eth1"),
            key("short", "eth0"),
        ];
        for (host, key) in (5..).zip(&keys) {
            add(&root, key, host);
        }
        add(&root, &keys[1], 77);
        let state = snapshot(&root).unwrap().unwrap();
        assert_eq!(state.endpoints().count(), keys.len());
        assert_eq!(state.subnets("azure"), ["10.240.0.0/16".parse().unwrap()]);
        assert_eq!(
            state.find(&keys[1]).unwrap().addresses()[0].to_string(),
            "10.240.0.77/16"
        );

        let mut endpoints = Endpoints::open(&root, Duration::from_secs(1)).unwrap();
        assert_eq!(endpoints.remove(&keys[0]).unwrap().host_if_name, "azv0123");
        assert!(endpoints.remove(&keys[0]).is_none());
        endpoints.save().unwrap();
        let state = snapshot(&root).unwrap().unwrap();
        assert!(state.find(&keys[0]).is_none());
        assert!(keys[1..].iter().all(|key| state.find(key).is_some()));
        let other = Key {
            network: "other".to_owned(),
            ..keys[1].clone()
        };
        assert!(state.find(&other).is_none());
        assert!(state.is_shared("azv0123", &keys[1]) && !state.is_shared("azv9", &keys[1]));
    }

    #[test]
    fn what_others_wrote_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        fs::create_dir_all(root.path("/var/run")).unwrap();
        let theirs = json!({ "Other": [1], "Network": { "Version": "v1.4.20", "TimeStamp": "x", "New": 2, "ExternalInterfaces": {
            "eth0": { "Name": "eth0", "BridgeName": "azure0", "IPAddresses": null, "Networks": { "azure": {
                "Id": "azure", "Mode": "bridge", "Subnets": null, "Endpoints": { "11111111-eth0": {
                    "Id": "11111111-eth0", "IfName": "eth0", "HostIfName": "azvbr", "ContainerID": "1111111122", "MacAddress": null,
                    "IPAddresses": null, "InfraVnetIP": { "IP": "", "Mask": null } } } } } } } } });
        fs::write(root.path(STATE), theirs.to_string()).unwrap();
        add(&root, &key("3f813b02aabbccdd", "eth0"), 5);
        let ours = raw(&root);
        assert_eq!(ours["Other"], theirs["Other"]);
        assert_eq!(ours["Network"]["New"], 2);
        let eth0 = |file: &Value| file["Network"]["ExternalInterfaces"]["eth0"].clone();
        assert_eq!(eth0(&ours)["BridgeName"], "azure0");
        let pod = |file: &Value| eth0(file)["Networks"]["azure"]["Endpoints"]["11111111-eth0"].clone();
        assert_eq!(pod(&ours)["InfraVnetIP"], pod(&theirs)["InfraVnetIP"]);
        assert_eq!(eth0(&ours)["Networks"]["azure"]["Mode"], "bridge");
    }

    #[test]
    fn the_incumbents_bridge_is_noted_as_the_interface_below_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        fs::create_dir_all(root.path("/var/run")).unwrap();
        let theirs = json!({ "Network": { "ExternalInterfaces": { "eth7": { "Name": "eth7", "BridgeName": "eth0" } } } });
        fs::write(root.path(STATE), theirs.to_string()).unwrap();
        add(&root, &key("3f813b02aabbccdd", "eth0"), 5);
        let interfaces = &raw(&root)["Network"]["ExternalInterfaces"];
        assert_eq!(interfaces.as_object().unwrap().len(), 1, "{interfaces}");
        let network = &interfaces["eth7"]["Networks"]["azure"];
        assert!(network["Endpoints"]["3f813b02-eth0"].is_object(), "{interfaces}");
    }

    #[test]
    fn endpoints_end_with_the_boot() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        add(&root, &key("3f813b02aabbccdd", "eth0"), 5);
        let text = fs::read_to_string(root.path(STATE)).unwrap();
        fs::write(root.path(STATE), text.replace(boot::id(), "an-earlier-one")).unwrap();
        let state = snapshot(&root).unwrap().unwrap();
        assert_eq!(state.endpoints().count(), 0);
        assert_eq!(state.subnets("azure"), ["10.240.0.0/16".parse().unwrap()]);
    }

    #[test]
    fn empty_files_are_empty_states_and_damaged_ones_are_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        add(&root, &key("3f813b02aabbccdd", "eth0"), 5);
        let whole = fs::read(root.path(STATE)).unwrap();
        assert!(parse(&whole, Path::new("x")).unwrap().is_some());
        assert!(parse(b"", Path::new("x")).unwrap().is_none());
        for length in 1..whole.len() {
            assert!(
                parse(&whole[..length], Path::new("x")).is_err(),
                "cut at {length}"
            );
        }
        fs::write(root.path(STATE), &whole[..whole.len() / 2]).unwrap();
        let mut endpoints = Endpoints::open(&root, Duration::from_secs(1)).unwrap();
        assert!(endpoints.remove(&key("3f813b02aabbccdd", "eth0")).is_none());
        endpoints.save().unwrap();
        assert!(root.path(format!("{STATE}.corrupt-0")).exists());
        assert!(snapshot(&root).unwrap().is_some());
    }
}
