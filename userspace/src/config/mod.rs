//! The node's configuration: who may write it where, what is in force, and where each value comes from.
//!
//! The places: [`FILE`], Causeway's own; [`API_SERVER`], which `causeway apiserver set` writes; and the files of ip-masq-agent in [`IP_MASQ`], from which nodes have their list
//! of excluded ranges today. Everything is read and checked as a whole; what is wrong anywhere leaves all of it out of
//! force.

mod document;
mod file;
mod ip_masq;
mod range;

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Serialize, de::DeserializeOwned};

use self::file::File;
pub use self::file::{Listen, REFERENCE};
use self::range::Cidr;
use crate::{
    apiserver::{Description, Document, conflist},
    durable,
    root::Root,
    settings::Settings,
};

/// Causeway's own file.
pub const FILE: &str = "/etc/causeway/config.yaml";
/// What was said of the API server last, over what [`FILE`] says of it.
pub const API_SERVER: &str = "/etc/causeway/apiserver.json";
/// The directory of ip-masq-agent's files, every one whose name begins with `ip-masq`.
pub const IP_MASQ: &str = "/etc/config";

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The datapath's.
    pub settings: Settings,
    /// The API server's, if it is in the cluster's network.
    pub api_server: Option<Description>,
    /// Where the agent answers over TCP; `None` for nowhere.
    pub listen: Option<SocketAddr>,
    /// Each value and where it comes from.
    pub values: Vec<Setting>,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The key in [`FILE`].
    pub key: &'static str,
    /// The value as it would stand there.
    pub value: String,
    /// The file, or `default`.
    pub source: String,
}

/// What is wrong with the configuration, each with its file, and its line where there is one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ConfigError(Vec<Fault>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    path: PathBuf,
    message: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Fault { path, message }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {message}", path.display())?;
        }
        Ok(())
    }
}

impl ConfigError {
    fn of(path: &Path, message: impl fmt::Display) -> Self {
        Self(vec![Fault {
            path: path.to_owned(),
            message: message.to_string(),
        }])
    }
}

/// Reads all files. No file at all is a configuration: the defaults.
///
/// # Errors
///
/// Everything that is wrong with any of them, so that it is mended in one go.
pub fn load(root: &Root) -> Result<Configuration, ConfigError> {
    let path = root.path(FILE);
    let own = read::<File>(&path).and_then(|file| {
        file.check().map_err(|fault| ConfigError::of(&path, fault))?;
        let api_server = api_server(root, &path, file.api_server.clone())?;
        Ok((file, api_server))
    });
    let ip_masq = ip_masq::load(&root.path(IP_MASQ));
    match (own, ip_masq) {
        (Ok((own, api_server)), Ok(ip_masq)) => Ok(merge(own, api_server, ip_masq, root)),
        (own, ip_masq) => {
            let faults = [own.err(), ip_masq.err()];
            Err(ConfigError(
                faults.into_iter().flatten().flat_map(|error| error.0).collect(),
            ))
        }
    }
}

/// What is said of the API server in either place, with the place that said more of it last.
fn api_server(
    root: &Root,
    below: &Path,
    of_file: Option<Document>,
) -> Result<Option<(Description, PathBuf)>, ConfigError> {
    describe(root, below, of_file, api_server_document(root)?)
}

/// What would be in force of the API server if `over` stood in [`API_SERVER`].
pub fn describe_api_server(root: &Root, over: Document) -> Result<Option<Description>, ConfigError> {
    let path = root.path(FILE);
    let of_file = read::<File>(&path)?.api_server;
    Ok(describe(root, &path, of_file, over)?.map(|(description, _)| description))
}

fn describe(
    root: &Root,
    below: &Path,
    of_file: Option<Document>,
    over: Document,
) -> Result<Option<(Description, PathBuf)>, ConfigError> {
    let over_path = root.path(API_SERVER);
    let of_conflist = conflist::noted(root).map(|document| (document, root.path(conflist::CONFLIST)));
    let of_file = of_file.map(|document| (document, below.to_owned()));
    let said = (over != Document::default()).then_some((over, over_path));
    let layers = [of_conflist, of_file, said].into_iter().flatten();
    let Some((document, path)) = layers.reduce(|(below, _), (over, path)| (below.with(over), path)) else {
        return Ok(None);
    };
    match document.check() {
        Ok(description) => Ok(Some((description, path))),
        Err(fault) => Err(ConfigError::of(&path, format!("apiServer.{fault}"))),
    }
}

/// What `causeway apiserver set` has said.
pub fn api_server_document(root: &Root) -> Result<Document, ConfigError> {
    read(&root.path(API_SERVER))
}

/// The directories in which a change of a file may change what is in force.
pub fn directories(root: &Root) -> [PathBuf; 3] {
    let directory = |file| {
        let file = root.path(file);
        file.parent().map_or_else(|| file.clone(), Path::to_owned)
    };
    [directory(FILE), root.path(IP_MASQ), conflist::directory(root)]
}

fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ConfigError> {
    match durable::read_configuration(path) {
        Ok(bytes) => document::parse(path, &bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(ConfigError::of(path, error)),
    }
}

/// Excluded ranges of either place are joined; the defaults stand only where neither names any. Everything else is of
/// [`FILE`] alone.
fn merge(
    own: File,
    api_server: Option<(Description, PathBuf)>,
    ip_masq: Option<ip_masq::List>,
    root: &Root,
) -> Configuration {
    let path = root.path(FILE).display().to_string();
    let mut values = Vec::new();
    let mut settings = own.settings(&path, &mut values);
    let listen = own.listen(&path, &mut values);
    let of_file = own.excluded_ranges;
    if of_file.is_some() || ip_masq.is_some() {
        settings.excluded.clear();
        settings.excluded_v6.clear();
    }
    let mut excluded: Vec<(IpNet, String)> = of_file
        .into_iter()
        .flatten()
        .map(|Cidr(range)| (range, path.clone()))
        .collect();
    excluded.extend(ip_masq.into_iter().flat_map(|list| list.ranges));
    let of_v4 = settings.excluded.iter().copied().map(IpNet::from);
    let defaults = of_v4.chain(settings.excluded_v6.iter().copied().map(IpNet::from));
    excluded.extend(defaults.map(|range| (range, "default".to_owned())));
    excluded.sort();
    excluded.dedup_by_key(|(range, _)| *range);
    (settings.excluded, settings.excluded_v6) = range::by_family(excluded.iter().map(|(range, _)| *range));
    values.extend(excluded.into_iter().map(|(range, source)| Setting {
        key: "excludedRanges",
        value: range.to_string(),
        source,
    }));
    settings.api_server = api_server.as_ref().map(|(server, _)| server.at_rest());
    if let Some((server, path)) = &api_server {
        values.extend(server.values().map(|(key, value)| Setting {
            key,
            value,
            source: path.display().to_string(),
        }));
    }
    Configuration {
        settings,
        api_server: api_server.map(|(server, _)| server),
        listen,
        values,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Node {
        root: Root,
        _directory: tempfile::TempDir,
    }

    impl Node {
        fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let node = Self {
                root: Root::new(directory.path()),
                _directory: directory,
            };
            for (path, text) in files {
                node.write(path, text);
            }
            node
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn excluded(&self) -> Vec<String> {
            let settings = load(&self.root).unwrap().settings;
            settings.excluded.iter().map(ToString::to_string).collect()
        }

        fn error(&self) -> String {
            load(&self.root).unwrap_err().to_string()
        }
    }

    const MASQ: &str = "/etc/config/ip-masq-agent";

    #[test]
    fn without_a_file_the_rule_that_is_replaced_is_in_force() {
        let node = Node::new(&[]);
        assert_eq!(load(&node.root).unwrap().settings, Settings::default());
        assert_eq!(node.excluded(), ["10.0.0.0/8", "168.63.129.16/32"]);
    }

    #[test]
    fn files_of_ip_masq_agent_are_joined_whatever_their_case_and_form() {
        let node = Node::new(&[
            (
                MASQ,
                "nonMasqueradeCIDRs:\n  - 10.0.0.0/8\n  - 192.168.0.0/16\nresyncInterval: 60s\n",
            ),
            (
                "/etc/config/ip-masq-agent-reconciled",
                r#"{"NonMasqueradeCIDRs": ["192.168.0.0/16", "172.16.0.0/12"], "MASQLINKLOCAL": false}"#,
            ),
            ("/etc/config/other", "::: not ours"),
            ("/etc/config/..data", "neither"),
        ]);
        assert_eq!(
            node.excluded(),
            ["10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"]
        );
    }

    #[test]
    fn one_file_that_masquerades_link_local_is_enough() {
        let node = Node::new(&[
            (MASQ, "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLocal: false\n"),
            ("/etc/config/ip-masq-b", "MasqLinkLocal: true\n"),
        ]);
        assert_eq!(node.excluded(), ["10.0.0.0/8"]);
    }

    #[test]
    fn a_file_without_a_list_excludes_nothing_but_link_local() {
        for text in [
            "",
            "{}",
            "resyncInterval: 5s",
            "nonMasqueradeCIDRs: null",
            "nonMasqueradeCIDRs: []",
        ] {
            assert_eq!(
                Node::new(&[(MASQ, text)]).excluded(),
                ["169.254.0.0/16"],
                "{text}"
            );
        }
    }

    #[test]
    fn our_own_ranges_are_joined_with_those_of_ip_masq_agent() {
        let node = Node::new(&[
            (
                FILE,
                "excludedRanges: [100.64.0.0/10, 'fd00::/8']\nmasqueradedRanges: [10.9.0.0/16]\n",
            ),
            (MASQ, "masqLinkLocal: true\nnonMasqueradeCIDRs: [10.0.0.0/8]"),
        ]);
        assert_eq!(node.excluded(), ["10.0.0.0/8", "100.64.0.0/10"]);
        let configuration = load(&node.root).unwrap();
        assert_eq!(
            configuration.settings.masqueraded,
            ["10.9.0.0/16".parse().unwrap()]
        );
        let source = |value: &str| {
            let found = configuration.values.iter().find(|entry| entry.value == value);
            found.unwrap().source.clone()
        };
        assert!(source("10.0.0.0/8").ends_with(MASQ));
        assert!(source("100.64.0.0/10").ends_with(FILE));
        assert_eq!(source("65536"), "default");
    }

    #[test]
    fn everything_can_be_chosen() {
        let node = Node::new(&[(FILE, REFERENCE)]);
        let settings = load(&node.root).unwrap().settings;
        assert_eq!(settings.uplink.as_deref(), Some("eth0"));
        assert_eq!(settings.reserved_ports, [8080..=8080, 9000..=9010]);
        assert_eq!(settings.timeouts.tcp_established, Some(432_000));
        assert_eq!(load(&node.root).unwrap().listen.unwrap().port(), 61_690);
        node.write(FILE, "listen: none\n");
        assert_eq!(load(&node.root).unwrap().listen, None);
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_line_all_at_once() {
        let node = Node::new(&[
            (FILE, "podQuota: 10\nuplnk: eth0\n"),
            (MASQ, "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.0.0.4/8\n"),
            ("/etc/config/ip-masq-b", "{\"nonMasqueradeCIDRs\": [\"x\"]}"),
        ]);
        let error = node.error();
        for part in [
            FILE,
            "uplnk",
            "line 2",
            MASQ,
            "line 3",
            "10.0.0.0/8",
            "ip-masq-b",
            "line 1",
            "\"x\"",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for (text, part) in [
            ("nodePorts: 32767-30000", "first"),
            ("nodePorts: 0-70000", "65535"),
            ("reservedPorts: [a]", "\"a\""),
            ("podQuota: 0", "podQuota"),
            ("podQuota: 600000", "262144"),
            ("maxFlows: 100000\noutsideQuota: 100001", "outsideQuota"),
            ("maxFlows: 5000000", "4194304"),
            ("maxFlows: 5", "16384"),
            ("timeouts: {udp: 10}", "120"),
            ("timeouts: {upd: 200}", "upd"),
            ("listen: localhost", "listen"),
            ("listen: 0.0.0.0:61690", "127.0.0.1"),
            ("translationPorts: 30000-32767", "nodePorts"),
            ("uplink: ''", "uplink"),
            ("excludedRanges: 10.0.0.0/8", "sequence"),
            ("excludedRanges: [10.0.0.1]", "/32"),
            ("- 1", "line 1"),
            ("a: b: c", "line 1"),
        ] {
            let error = Node::new(&[(FILE, text)]).error();
            assert!(error.contains(part) && error.contains(FILE), "{text}: {error}");
        }
    }

    #[test]
    fn a_document_of_any_bytes_is_read_or_refused() {
        use proptest::prelude::*;
        let mut runner = proptest::test_runner::TestRunner::default();
        let words = "[-:{}\\[\\]\"'&*!|>%@,#a-z0-9./ \n\t]{0,80}";
        runner
            .run(&words, |text| {
                document::parse::<File>(Path::new("x"), text.as_bytes()).ok();
                Ok(())
            })
            .unwrap();
        let bytes = proptest::collection::vec(any::<u8>(), 0..200);
        runner
            .run(&bytes, |bytes| {
                document::parse::<File>(Path::new("x"), &bytes).ok();
                Ok(())
            })
            .unwrap();
    }
}
