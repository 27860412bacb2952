//! What the runtime says through the environment (CNI specification, "Parameters").

use std::collections::BTreeMap;

use crate::error::{CniError, code};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Version,
    Status,
    Gc,
    /// The incumbent's `GET_ENDPOINT_STATE`.
    EndpointState,
}

impl Verb {
    /// The value of `CNI_COMMAND`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Version => "VERSION",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::EndpointState => "GET_ENDPOINT_STATE",
        }
    }
}

/// The environment of a call, checked for the verb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub(crate) verb: Verb,
    /// The container's id, not empty for ADD and DEL.
    pub(crate) container: String,
    /// Path of the container's namespace, as it was given. May be empty or stale for DEL.
    pub(crate) netns: String,
    /// Name of the interface in the container.
    pub(crate) interface: String,
    /// `CNI_ARGS`.
    pub(crate) args: BTreeMap<String, String>,
    /// `CNI_PATH`: the directories of other plug-ins.
    pub(crate) path: String,
    /// `CNI_NETNS_OVERRIDE`: the container's namespace may be the plug-in's own.
    pub(crate) own_netns_allowed: bool,
}

impl Invocation {
    /// Reads the environment through `get`, which gives the value of a variable.
    pub(crate) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let value = |name: &str| get(name).unwrap_or_default();
        let verb = verb(&value("CNI_COMMAND"))?;
        let invocation = Self {
            verb,
            container: value("CNI_CONTAINERID"),
            netns: value("CNI_NETNS"),
            interface: value("CNI_IFNAME"),
            args: parse_args(&value("CNI_ARGS")),
            path: value("CNI_PATH"),
            own_netns_allowed: matches!(
                value("CNI_NETNS_OVERRIDE").to_ascii_lowercase().as_str(),
                "1" | "true"
            ),
        };
        invocation.check_presence()?;
        invocation.check_form()?;
        Ok(invocation)
    }

    /// The pod's name, empty when the client did not say.
    pub(crate) fn pod(&self) -> &str {
        self.args.get("K8S_POD_NAME").map_or("", String::as_str)
    }

    /// The pod's Kubernetes namespace, empty when the client did not say.
    pub(crate) fn namespace(&self) -> &str {
        self.args.get("K8S_POD_NAMESPACE").map_or("", String::as_str)
    }

    fn check_presence(&self) -> Result<(), CniError> {
        let needed: &[(&str, &str)] = match self.verb {
            Verb::Add | Verb::Check => &[
                ("CNI_CONTAINERID", &self.container),
                ("CNI_NETNS", &self.netns),
                ("CNI_IFNAME", &self.interface),
            ],
            Verb::Del => &[
                ("CNI_CONTAINERID", &self.container),
                ("CNI_IFNAME", &self.interface),
            ],
            Verb::Version | Verb::Status | Verb::Gc | Verb::EndpointState => &[],
        };
        let missing: Vec<&str> = needed
            .iter()
            .filter(|(_, value)| value.is_empty())
            .map(|(name, _)| *name)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(environment(format!(
            "required env variables [{}] missing",
            missing.join(",")
        )))
    }

    fn check_form(&self) -> Result<(), CniError> {
        if !matches!(self.verb, Verb::Add | Verb::Del | Verb::Check) {
            return Ok(());
        }
        if !is_identifier(&self.container) {
            let msg = format!(
                "invalid characters in CNI_CONTAINERID {:?}: it must match ^[A-Za-z0-9][A-Za-z0-9_.-]*$",
                self.container
            );
            return Err(environment(msg));
        }
        check_interface(&self.interface)
    }
}

fn verb(command: &str) -> Result<Verb, CniError> {
    match command {
        "ADD" => Ok(Verb::Add),
        "DEL" => Ok(Verb::Del),
        "CHECK" => Ok(Verb::Check),
        "VERSION" => Ok(Verb::Version),
        "STATUS" => Ok(Verb::Status),
        "GC" => Ok(Verb::Gc),
        "GET_ENDPOINT_STATE" => Ok(Verb::EndpointState),
        "UPDATE" => Err(environment(
            "CNI_COMMAND UPDATE is for networks of several tenants, which are not supported".to_owned(),
        )),
        other => Err(environment(format!("unknown CNI_COMMAND: {other}"))),
    }
}

/// Whether the text is a name in the sense of the specification: of a container or a network.
pub(crate) fn is_identifier(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(inner)
}

/// The kernel's rules (`dev_valid_name`), without the characters that the incumbent refuses; `%` would make the kernel
/// pick another name.
fn check_interface(name: &str) -> Result<(), CniError> {
    /// `IFNAMSIZ` less the closing zero.
    const LONGEST: usize = 15;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '(' | ')');
    let problem = if name.len() > LONGEST {
        "is longer than 15 characters"
    } else if matches!(name, "." | "..") {
        "is a directory's name"
    } else if !name.chars().all(allowed) {
        "has a character other than letters, digits and ._-()"
    } else {
        return Ok(());
    };
    Err(environment(format!("invalid CNI_IFNAME: {name:?} {problem}")))
}

/// `K=V;K=V`. What has another form is left out: runtimes add what they like.
fn parse_args(text: &str) -> BTreeMap<String, String> {
    let pair = |part: &str| {
        part.split_once('=')
            .map(|(key, value)| (key.trim().to_owned(), value.to_owned()))
    };
    text.split(';').filter_map(pair).collect()
}

fn environment(msg: String) -> CniError {
    CniError::new(code::ENVIRONMENT, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Invocation, String> {
        let get = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, v)| (*v).to_owned())
        };
        Invocation::read(get).map_err(|error| {
            assert_eq!(error.code, code::ENVIRONMENT);
            error.msg
        })
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/n"),
        ("CNI_IFNAME", "eth0"),
    ];

    fn add_with(name: &str, value: &str) -> Result<Invocation, String> {
        let mut variables = ADD
            .map(|(key, old)| (key, if key == name { value } else { old }))
            .to_vec();
        if !ADD.iter().any(|(key, _)| *key == name) {
            variables.push((name, value));
        }
        read(&variables)
    }

    #[test]
    fn each_verb_needs_its_variables() {
        assert_eq!(
            read(&[("CNI_COMMAND", "ADD")]).unwrap_err(),
            "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing"
        );
        assert_eq!(
            read(&[("CNI_COMMAND", "DEL")]).unwrap_err(),
            "required env variables [CNI_CONTAINERID,CNI_IFNAME] missing"
        );
        let del = read(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
        ])
        .unwrap();
        assert_eq!((del.verb, del.netns.as_str()), (Verb::Del, ""));
        assert_eq!(
            read(&[("CNI_COMMAND", "VERSION"), ("CNI_IFNAME", "a b")])
                .unwrap()
                .verb,
            Verb::Version
        );
        assert_eq!(
            read(&[("CNI_COMMAND", "FOO")]).unwrap_err(),
            "unknown CNI_COMMAND: FOO"
        );
        assert_eq!(
            read(&[("CNI_COMMAND", "add")]).unwrap_err(),
            "unknown CNI_COMMAND: add"
        );
    }

    #[test]
    fn names_are_checked() {
        assert!(add_with("CNI_IFNAME", "eth0.100").is_ok());
        for bad in [
            "a/b",
            ".",
            "..",
            "a:b",
            "a b",
            "0123456789abcdef",
            "eth%d",
            "é",
            "a\nb",
        ] {
            assert!(
                add_with("CNI_IFNAME", bad)
                    .unwrap_err()
                    .starts_with("invalid CNI_IFNAME"),
                "{bad}"
            );
        }
        for bad in ["-c1", "a/b", "a b", ".x", "ü"] {
            assert!(
                add_with("CNI_CONTAINERID", bad)
                    .unwrap_err()
                    .contains("CNI_CONTAINERID"),
                "{bad}"
            );
        }
    }

    #[test]
    fn arguments_come_in_any_order_and_form() {
        let call = add_with(
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAME=a=b;;junk;K8S_POD_NAMESPACE=ns",
        )
        .unwrap();
        assert_eq!((call.pod(), call.namespace()), ("a=b", "ns"));
        assert_eq!(add_with("CNI_ARGS", "").unwrap().pod(), "");
        assert!(add_with("CNI_NETNS_OVERRIDE", "TRUE").unwrap().own_netns_allowed);
        assert!(!add_with("CNI_NETNS_OVERRIDE", "0").unwrap().own_netns_allowed);
    }
}
