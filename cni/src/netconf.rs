//! The network configuration on standard input, read as the incumbent's Go reads it: keys in any case, `null` for
//! absent, unknown keys ignored.

use std::net::IpAddr;

use causeway::go_json::{Fields, ShapeError, parse_mac};
use serde_json::{Map, Value};

use crate::{
    error::{CniError, code},
    invocation::{Invocation, Verb, is_identifier},
    version::Version,
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
    pub(crate) address: Option<IpAddr>,
    /// The MAC that is asked for.
    pub(crate) mac: Option<[u8; 6]>,
}

/// `mode`. Every mode has the same datapath; the name of the host's interface depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Bridge,
    Tunnel,
    Transparent,
}

/// `ipam`.
#[derive(Clone, Debug)]
pub(crate) struct IpamConf {
    pub(crate) kind: String,
    /// Where the addresses come from; `azure` unless given.
    pub(crate) environment: String,
    /// The subnet, if it is prescribed.
    pub(crate) subnet: Option<String>,
}

/// The only IPAM plug-in that is there, a part of this binary.
pub(crate) const IPAM_KIND: &str = "azure-vnet-ipam";

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

impl NetConf {
    /// Checks the configuration of a call. What only ADD needs is looked at by ADD alone: a configuration that has
    /// changed for the worse must not keep a pod from being deleted.
    pub(crate) fn parse(document: &Value, invocation: &Invocation) -> Result<Self, CniError> {
        let fields = Fields::of(document, "").map_err(|error| shape(&error))?;
        let name = string(&fields, "name")?;
        check_name(&name)?;
        let version = Version::parse(&string(&fields, "cniVersion")?)?;
        check_bridge(&string(&fields, "bridge")?)?;
        let adds = invocation.verb == Verb::Add;
        Ok(Self {
            version,
            name,
            mode: Mode::parse(&string(&fields, "mode")?)?,
            master: filled(string(&fields, "master")?),
            ipam: ipam(&fields)?,
            dns: fields
                .object("dns")
                .map_err(|error| shape(&error))?
                .map(|dns| dns_of(&dns))
                .transpose()?,
            address: if adds {
                requested_address(&fields, invocation)?
            } else {
                None
            },
            mac: if adds {
                requested_mac(&fields, invocation)?
            } else {
                None
            },
        })
    }
}

impl Mode {
    fn parse(text: &str) -> Result<Self, CniError> {
        match text {
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

fn check_name(name: &str) -> Result<(), CniError> {
    if name.is_empty() {
        return Err(CniError::new(
            code::CONFIGURATION,
            "missing network name: set \"name\" in the configuration",
        ));
    }
    if !is_identifier(name) {
        let msg = format!(
            "invalid characters found in network name {name:?}: it must match ^[A-Za-z0-9][A-Za-z0-9_.-]*$"
        );
        return Err(CniError::new(code::CONFIGURATION, msg));
    }
    Ok(())
}

/// The incumbent's character set. No bridge is made, but a bad name is a mistake all the same.
fn check_bridge(name: &str) -> Result<(), CniError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '(' | ')' | ' ');
    if name.chars().all(allowed) {
        return Ok(());
    }
    let msg =
        format!("invalid args value: bridge {name:?} has a character other than letters, digits and ._-()");
    Err(CniError::new(code::CONFIGURATION, msg))
}

fn ipam(fields: &Fields<'_>) -> Result<IpamConf, CniError> {
    let absent = Value::Object(Map::new());
    let ipam = match fields.object("ipam").map_err(|error| shape(&error))? {
        Some(ipam) => ipam,
        None => Fields::of(&absent, "ipam").map_err(|error| shape(&error))?,
    };
    let space = string(&ipam, "addressSpace")?;
    if !matches!(space.as_str(), "" | "local") {
        let msg =
            format!("Invalid address space: {space:?}; leave ipam.addressSpace out or set it to \"local\"");
        return Err(CniError::new(code::CONFIGURATION, msg));
    }
    Ok(IpamConf {
        kind: string(&ipam, "type")?,
        environment: filled(string(&ipam, "environment")?).unwrap_or_else(|| "azure".to_owned()),
        subnet: filled(string(&ipam, "subnet")?),
    })
}

/// The capability `ips` before `args.cni.ips` before `CNI_ARGS` before the plug-in's own key. With `args` in the
/// configuration, `CNI_ARGS` is not looked at.
fn requested_address(fields: &Fields<'_>, invocation: &Invocation) -> Result<Option<IpAddr>, CniError> {
    let lists = [
        object_at(fields, &["runtimeConfig"])?,
        object_at(fields, &["args", "cni"])?,
    ];
    for object in lists.iter().flatten() {
        let wanted = object.strings("ips").map_err(|error| shape(&error))?;
        if !wanted.is_empty() {
            return one_address(&wanted, &object.place("ips")).map(Some);
        }
    }
    let from_args = invocation.args.get("IP").filter(|text| !text.is_empty());
    if let (Some(text), None) = (from_args, fields.get("args")) {
        return one_address(std::slice::from_ref(text), "IP in CNI_ARGS").map(Some);
    }
    match object_at(fields, &["ipam"])? {
        Some(ipam) => match string(&ipam, "ipAddress")?.as_str() {
            "" => Ok(None),
            text => one_address(&[text.to_owned()], "ipam.ipAddress").map(Some),
        },
        None => Ok(None),
    }
}

/// One address may be listed twice: podman does so on a network reload.
fn one_address(texts: &[String], place: &str) -> Result<IpAddr, CniError> {
    let mut addresses = Vec::new();
    for text in texts {
        let address = text
            .split('/')
            .next()
            .and_then(|address| address.parse::<IpAddr>().ok());
        let address = address.ok_or_else(|| {
            CniError::new(
                code::CONFIGURATION,
                format!("{place}: {text:?} is not an IP address"),
            )
        })?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if let [address] = addresses[..] {
        return Ok(address);
    }
    let msg = format!(
        "failed to allocate all requested IPs: {}: an interface has one address",
        texts.join(", ")
    );
    Err(CniError::new(code::CONFIGURATION, msg).with_details(place.to_owned()))
}

fn requested_mac(fields: &Fields<'_>, invocation: &Invocation) -> Result<Option<[u8; 6]>, CniError> {
    let configured = [
        object_at(fields, &["runtimeConfig"])?,
        object_at(fields, &["args", "cni"])?,
    ];
    let mut texts = Vec::new();
    for object in configured.iter().flatten() {
        texts.push(string(object, "mac")?);
    }
    if fields.get("args").is_none() {
        texts.push(invocation.args.get("MAC").cloned().unwrap_or_default());
    }
    let Some(text) = texts.into_iter().find(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match parse_mac(&text) {
        // The lowest bit of the first byte marks groups (IEEE 802): the kernel refuses them as an interface's address.
        Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Some(mac)),
        _ => {
            let msg =
                format!("mac: {text:?} is not the MAC of a single interface, such as 02:00:00:00:00:60");
            Err(CniError::new(code::CONFIGURATION, msg))
        }
    }
}

/// The keys of a result's `dns`, in the case of the specification.
fn dns_of(fields: &Fields<'_>) -> Result<Value, CniError> {
    let mut dns = Map::new();
    for name in ["nameservers", "search", "options"] {
        if fields.get(name).is_some() {
            dns.insert(
                name.to_owned(),
                fields.strings(name).map_err(|error| shape(&error))?.into(),
            );
        }
    }
    match string(fields, "domain")? {
        domain if domain.is_empty() => {}
        domain => drop(dns.insert("domain".to_owned(), domain.into())),
    }
    Ok(dns.into())
}

fn object_at<'a>(fields: &Fields<'a>, path: &[&str]) -> Result<Option<Fields<'a>>, CniError> {
    let mut at = Some(fields.clone());
    for name in path {
        at = match at {
            Some(fields) => fields.object(name).map_err(|error| shape(&error))?,
            None => None,
        };
    }
    Ok(at)
}

fn string(fields: &Fields<'_>, name: &str) -> Result<String, CniError> {
    fields
        .string(name)
        .map(str::to_owned)
        .map_err(|error| shape(&error))
}

fn filled(text: String) -> Option<String> {
    (!text.trim().is_empty()).then_some(text)
}

fn shape(error: &ShapeError) -> CniError {
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
            (conf.ipam.kind.as_str(), conf.ipam.environment.as_str()),
            (IPAM_KIND, "mas")
        );
        assert!(conf.dns.is_none() && conf.address.is_none() && conf.mac.is_none() && conf.master.is_none());
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
            (conf.ipam.subnet.as_deref(), conf.ipam.environment.as_str()),
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
            (json!({ "name": "azure" }), 1),
            (with(&json!({ "bridge": "a/b" })), 7),
            (with(&json!({ "ipam": [] })), 6),
            (with(&json!({ "ipam": { "addressSpace": "global" } })), 7),
            (with(&json!({ "ipam": { "ipAddress": "ten" } })), 7),
            (
                with(&json!({ "runtimeConfig": { "ips": ["10.0.0.1", "10.0.0.2"] } })),
                7,
            ),
            (
                with(&json!({ "runtimeConfig": { "mac": "01:00:5e:00:00:01" } })),
                7,
            ),
            (with(&json!({ "dns": { "nameservers": "8.8.8.8" } })), 6),
        ] {
            assert_eq!(parse(&document).unwrap_err().0, expected, "{document}");
        }
        assert_eq!(decode(b"{").unwrap_err().code, 6);
        assert_eq!(decode(b"").unwrap_err().code, 6);
        assert_eq!(decode(b"[]").unwrap_err().code, 6);
    }

    #[test]
    fn the_precedence_of_requests() {
        let both = "IP=10.0.0.9;MAC=02:00:00:00:00:09";
        let read = |more: Value| {
            let conf = NetConf::parse(&with(&more), &call(both)).unwrap();
            (
                conf.address.map(|address| address.to_string()),
                conf.mac.map(|mac| mac[5]),
            )
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            read(json!({ "ipam": { "ipAddress": "10.0.0.8" } })),
            (text("10.0.0.9"), Some(9))
        );
        assert_eq!(
            read(json!({ "args": { "cni": { "ips": ["10.0.0.7/24"], "mac": "020000000007" } } })),
            (text("10.0.0.7"), Some(7))
        );
        assert_eq!(
            read(json!({ "args": {}, "ipam": { "ipAddress": "10.0.0.8" } })),
            (text("10.0.0.8"), None)
        );
        let runtime = json!({ "args": { "cni": { "ips": ["10.0.0.7"], "mac": "020000000007" } },
            "runtimeConfig": { "ips": ["10.0.0.6", "10.0.0.6"], "mac": "02:00:00:00:00:06" } });
        assert_eq!(read(runtime), (text("10.0.0.6"), Some(6)));
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
