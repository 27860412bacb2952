//! The network configuration on standard input, read as the incumbent's Go reads it: keys in any case, `null` for
//! absent, unknown keys ignored.

mod ipam;
mod limits;

use std::net::IpAddr;

use causeway::{
    apiserver::{Description, Document},
    datapath::HostPort,
    go_json::{Fields, ShapeError},
};
use serde::Deserialize as _;
use serde_json::{Map, Value};

pub(crate) use self::ipam::{IPAM_KIND, IpamConf};
use self::limits::{check_bridge, check_name, mtu};
use crate::{
    accepted, capabilities,
    error::{CniError, code},
    invocation::{Invocation, Verb},
    result::CniResult,
    version::Version,
    wishes,
};

/// What is used of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct NetConf {
    pub(crate) version: Version,
    /// The network's name.
    pub(crate) name: String,
    pub(crate) mode: Mode,
    /// The uplink's name, if it is prescribed.
    pub(crate) master: Option<String>,
    pub(crate) ipam: IpamConf,
    /// The name service of the result, in place of the one that belongs to the addresses.
    pub(crate) dns: Option<Value>,
    /// The address that is asked for.
    pub(crate) addresses: Vec<IpAddr>,
    /// The MAC that is asked for.
    pub(crate) mac: Option<[u8; 6]>,
    /// The MTU that is asked for, in bytes.
    pub(crate) mtu: Option<u32>,
    /// Ports of the node that are to be the pod's.
    pub(crate) host_ports: Vec<HostPort>,
    /// Whether somebody limits the pod's bandwidth.
    pub(crate) has_limits: bool,
    /// Whether the kernel may be told not to be slow about changing a hook's programs.
    pub(crate) expedite: bool,
    /// Whether XDP is to carry at the uplink; `None` leaves it as it is.
    pub(crate) uplink_xdp: Option<bool>,
    /// Where the API server is, if the configuration says so.
    pub(crate) api_server: Option<(Document, Description)>,
    /// What the plug-ins before this one have made.
    pub(crate) prev_result: Option<CniResult>,
    /// The attachments that GC is to leave alone: container and interface.
    pub(crate) valid: Option<Vec<(String, String)>>,
}

/// `mode`. Every mode has the same datapath; the name of the host's interface depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    Bridge,
    #[default]
    Tunnel,
    Transparent,
}

/// Decodes standard input, without judging it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, CniError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| {
        CniError::new(
            code::DECODE,
            format!("error unmarshall network config on standard input: {error}"),
        )
    })?;
    Fields::of(&value, "").map_err(|error| shape(&error))?;
    Ok(value)
}

/// The version that the configuration names, empty if it names none.
pub(crate) fn version(document: &Value) -> String {
    let text = Fields::of(document, "").and_then(|fields| fields.string("cniVersion").map(str::to_owned));
    text.unwrap_or_default()
}

/// Refuses keys of the incumbent that ask for what there is not. An ADD notes those that change nothing.
pub(crate) fn consider_keys(document: &Value, verb: Verb) -> Result<(), CniError> {
    let fields = Fields::of(document, "").map_err(|error| shape(&error))?;
    accepted::refuse(&fields)?;
    if verb == Verb::Add {
        accepted::note(&fields);
    }
    Ok(())
}

impl NetConf {
    /// Checks the configuration of a call.
    pub(crate) fn parse(document: &Value, invocation: &Invocation) -> Result<Self, CniError> {
        let fields = Fields::of(document, "").map_err(|error| shape(&error))?;
        let name = string(&fields, "name")?;
        check_name(&name)?;
        let version = Version::parse(&string(&fields, "cniVersion")?)?;
        check_bridge(&string(&fields, "bridge")?)?;
        let strict = !matches!(invocation.verb, Verb::Del | Verb::Gc);
        let master = filled(string(&fields, "master")?);
        Ok(Self {
            version,
            name,
            mode: unless_leaving(strict, Mode::read(&fields))?,
            ipam: unless_leaving(strict, IpamConf::read(&fields, master.as_deref()))?,
            dns: unless_leaving(strict, dns(&fields))?,
            addresses: unless_leaving(strict, wishes::addresses(&fields, invocation))?,
            mac: unless_leaving(strict, wishes::mac(&fields, invocation))?,
            mtu: unless_leaving(strict, mtu(&fields))?,
            host_ports: unless_leaving(strict, capabilities::host_ports(&fields))?,
            has_limits: unless_leaving(strict, capabilities::limits_bandwidth(&fields))?,
            expedite: unless_leaving(strict, flag(&fields, "expediteRcu"))?.unwrap_or(true),
            uplink_xdp: unless_leaving(strict, flag(&fields, "uplinkXdp"))?,
            api_server: unless_leaving(strict, api_server(&fields))?,
            prev_result: unless_leaving(strict, prev_result(&fields))?,
            valid: match invocation.verb {
                Verb::Gc => valid_attachments(&fields)?,
                _ => None,
            },
            master,
        })
    }
}

impl NetConf {
    /// Whether another IPAM plug-in than ours has the addresses.
    pub(crate) fn delegates(&self) -> bool {
        !matches!(self.ipam.kind.as_str(), "" | IPAM_KIND)
    }
}

/// A configuration that has changed for the worse must not keep a pod from being deleted.
fn unless_leaving<T: Default>(strict: bool, read: Result<T, CniError>) -> Result<T, CniError> {
    if strict {
        read
    } else {
        Ok(read.unwrap_or_default())
    }
}

impl Mode {
    fn read(fields: &Fields<'_>) -> Result<Self, CniError> {
        match string(fields, "mode")?.as_str() {
            "bridge" => Ok(Self::Bridge),
            "" | "tunnel" => Ok(Self::Tunnel),
            "transparent" => Ok(Self::Transparent),
            other => {
                let msg = format!("Network mode is invalid: {other:?}; use bridge, tunnel or transparent");
                Err(CniError::new(code::CONFIGURATION, msg))
            }
        }
    }
}

/// Yes, no, or nothing said.
fn flag(fields: &Fields<'_>, name: &str) -> Result<Option<bool>, CniError> {
    let is_set = fields.get(name).is_some();
    let value = fields.flag(name).map_err(|error| shape(&error))?;
    Ok(is_set.then_some(value))
}

/// `apiServer` of `causeway`, the keys that are not the incumbent's.
fn api_server(fields: &Fields<'_>) -> Result<Option<(Document, Description)>, CniError> {
    let Some(own) = fields.object("causeway").map_err(|error| shape(&error))? else {
        return Ok(None);
    };
    let Some(value) = own.get("apiServer") else {
        return Ok(None);
    };
    let wrong = |error: String| CniError::new(code::CONFIGURATION, format!("causeway.apiServer: {error}"));
    let document = Document::deserialize(value).map_err(|error| wrong(error.to_string()))?;
    let description = document.clone().check().map_err(wrong)?;
    Ok(Some((document, description)))
}

fn prev_result(fields: &Fields<'_>) -> Result<Option<CniResult>, CniError> {
    let read = |value| CniResult::from_json(value, "prevResult");
    fields
        .get("prevResult")
        .map(read)
        .transpose()
        .map_err(|error| CniError::new(code::DECODE, format!("could not parse prevResult: {error}")))
}

fn valid_attachments(fields: &Fields<'_>) -> Result<Option<Vec<(String, String)>>, CniError> {
    // libcni writes the second key as well, and early ones only that.
    let names = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    let Some(name) = names.into_iter().find(|name| fields.get(name).is_some()) else {
        return Ok(None);
    };
    let attachments = fields.objects(name).map_err(|error| shape(&error))?;
    let pair = |fields: &Fields<'_>| Ok((string(fields, "containerID")?, string(fields, "ifname")?));
    attachments.iter().map(pair).collect::<Result<_, _>>().map(Some)
}

/// The name service that the runtime asks for, else `dns` with its keys in the case of the specification.
fn dns(fields: &Fields<'_>) -> Result<Option<Value>, CniError> {
    if let Some(dns) = capabilities::dns(fields)? {
        return Ok(Some(dns));
    }
    let Some(fields) = fields.object("dns").map_err(|error| shape(&error))? else {
        return Ok(None);
    };
    let mut dns = Map::new();
    for name in ["nameservers", "search", "options"] {
        if fields.get(name).is_some() {
            dns.insert(
                name.to_owned(),
                fields.strings(name).map_err(|error| shape(&error))?.into(),
            );
        }
    }
    if let Some(domain) = filled(string(&fields, "domain")?) {
        dns.insert("domain".to_owned(), domain.into());
    }
    Ok(Some(dns.into()))
}

/// A string member, empty when absent.
pub(crate) fn string(fields: &Fields<'_>, name: &str) -> Result<String, CniError> {
    fields
        .string(name)
        .map(str::to_owned)
        .map_err(|error| shape(&error))
}

/// A text that says something.
fn filled(text: String) -> Option<String> {
    (!text.trim().is_empty()).then_some(text)
}

/// A part of the configuration that has not the form it must have.
pub(crate) fn shape(error: &ShapeError) -> CniError {
    CniError::new(code::DECODE, format!("error unmarshall network config: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(args: &str) -> Invocation {
        let get = |name: &str| {
            Some(match name {
                "CNI_COMMAND" => "ADD".to_owned(),
                "CNI_ARGS" => args.to_owned(),
                "CNI_NETNS_OVERRIDE" => String::new(),
                _ => "x".to_owned(),
            })
        };
        Invocation::read(get).unwrap()
    }

    fn parse(document: &Value) -> Result<NetConf, (u32, String)> {
        NetConf::parse(document, &call("")).map_err(|error| (error.code, error.msg))
    }

    fn with(more: &Value) -> Value {
        let mut document = json!({ "cniVersion": "0.3.0", "name": "azure", "type": "azure-vnet" });
        for (key, value) in more.as_object().unwrap() {
            document[key] = value.clone();
        }
        document
    }

    #[test]
    fn the_stock_bridge_configuration() {
        let conf = parse(&with(&json!({ "mode": "bridge", "bridge": "azure0",
            "ipam": { "type": "azure-vnet-ipam", "environment": "mas" } })))
        .unwrap();
        assert_eq!(
            (conf.name.as_str(), conf.mode, conf.version.text()),
            ("azure", Mode::Bridge, "0.3.0")
        );
        assert_eq!(
            (conf.ipam.kind.as_str(), conf.ipam.settings.environment.as_str()),
            (IPAM_KIND, "mas")
        );
        assert!(conf.expedite);
        assert!(
            conf.dns.is_none() && conf.addresses.is_empty() && conf.mac.is_none() && conf.master.is_none()
        );
    }

    #[test]
    fn keys_in_any_case_null_and_unknown_ones() {
        let conf = parse(
            &json!({ "CNIVERSION": "1.0.0", "Name": "azure", "MODE": "transparent", "Master": "eth1", "x": 1,
            "IPAM": { "Type": "azure-vnet-ipam", "Subnet": "10.0.0.0/24", "environment": null },
            "RuntimeConfig": { "PortMappings": null, "IPs": null }, "dns": null, "prevResult": null }),
        )
        .unwrap();
        assert_eq!(
            (conf.mode, conf.master.as_deref()),
            (Mode::Transparent, Some("eth1"))
        );
        assert_eq!(
            (
                conf.ipam.subnet.as_deref(),
                conf.ipam.settings.environment.as_str()
            ),
            (Some("10.0.0.0/24"), "azure")
        );
    }

    #[test]
    fn the_modes() {
        for (text, mode) in [
            ("", Mode::Tunnel),
            ("tunnel", Mode::Tunnel),
            ("transparent", Mode::Transparent),
        ] {
            assert_eq!(parse(&with(&json!({ "mode": text }))).unwrap().mode, mode);
        }
        let (code, msg) = parse(&with(&json!({ "mode": "transparent-vlan" }))).unwrap_err();
        assert_eq!((code, msg.starts_with("Network mode is invalid")), (7, true));
    }

    #[test]
    fn bad_configurations_have_their_codes() {
        for (document, expected) in [
            (json!({ "cniVersion": "0.3.0" }), 7),
            (with(&json!({ "name": "a/b" })), 7),
            (with(&json!({ "name": 5 })), 6),
            (with(&json!({ "cniVersion": "9.9.9" })), 1),
            (with(&json!({ "mtu": 67 })), 7),
            (with(&json!({ "ipam": { "queryInterval": "soon" } })), 6),
            (with(&json!({ "prevResult": { "ips": [{ "address": "x" }] } })), 6),
            (with(&json!({ "bridge": "a/b" })), 7),
            (with(&json!({ "ipam": [] })), 6),
            (with(&json!({ "expediteRcu": "no" })), 6),
            (with(&json!({ "uplinkXdp": "yes" })), 6),
            (with(&json!({ "ipam": { "addressSpace": "global" } })), 7),
            (with(&json!({ "dns": { "nameservers": "8.8.8.8" } })), 6),
        ] {
            assert_eq!(parse(&document).unwrap_err().0, expected, "{document}");
        }
        let del = |name: &str| {
            (name == "CNI_COMMAND")
                .then(|| "DEL".to_owned())
                .or(Some("x".to_owned()))
        };
        let worse = with(&json!({ "mode": "later", "ipam": [], "dns": 7, "runtimeConfig": 7 }));
        NetConf::parse(&worse, &Invocation::read(del).unwrap()).unwrap();
        assert_eq!(decode(b"{").unwrap_err().code, 6);
        assert_eq!(decode(b"").unwrap_err().code, 6);
        assert_eq!(decode(b"[]").unwrap_err().code, 6);
    }

    #[test]
    fn the_list_of_gc_is_absent_or_whole() {
        let gc = |document: Value| {
            let verb = |name: &str| (name == "CNI_COMMAND").then(|| "GC".to_owned());
            NetConf::parse(&with(&document), &Invocation::read(verb).unwrap()).map(|conf| conf.valid)
        };
        assert_eq!(gc(json!({})).unwrap(), None);
        assert_eq!(gc(json!({ "cni.dev/valid-attachments": null })).unwrap(), None);
        assert_eq!(
            gc(json!({ "cni.dev/valid-attachments": [] })).unwrap(),
            Some(vec![])
        );
        let one = json!([{ "containerID": "a", "ifname": "eth0" }]);
        let read = Some(vec![("a".to_owned(), "eth0".to_owned())]);
        assert_eq!(gc(json!({ "cni.dev/valid-attachments": one })).unwrap(), read);
        assert_eq!(gc(json!({ "cni.dev/attachments": one })).unwrap(), read);
        assert_eq!(
            gc(json!({ "cni.dev/valid-attachments": ["a"] }))
                .unwrap_err()
                .code,
            6
        );
    }

    #[test]
    fn dns_is_kept_as_given() {
        let conf = parse(&with(
            &json!({ "dns": { "Nameservers": [], "domain": "x.y", "search": ["a"] } }),
        ))
        .unwrap();
        assert_eq!(
            conf.dns,
            Some(json!({ "nameservers": [], "domain": "x.y", "search": ["a"] }))
        );
    }
}
