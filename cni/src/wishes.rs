//! The addresses and the MAC that a runtime asks for, by one of the several ways there are.
//!
//! The capabilities (`runtimeConfig`) go before `args.cni`, that before `CNI_ARGS`, and the plug-in's own key comes
//! last. With `args` in the configuration, `CNI_ARGS` is not looked at (CNI conventions).

use std::net::IpAddr;

use causeway::go_json::{Fields, parse_mac};

use crate::{
    error::{CniError, code},
    invocation::Invocation,
    netconf::{shape, string},
};

/// The addresses that are asked for, of a family at most one: `ips`, `IP` or `ipam.ipAddress`.
pub(crate) fn addresses(fields: &Fields<'_>, invocation: &Invocation) -> Result<Vec<IpAddr>, CniError> {
    let lists = [
        object_at(fields, &["runtimeConfig"])?,
        object_at(fields, &["args", "cni"])?,
    ];
    for object in lists.iter().flatten() {
        let wanted = object.strings("ips").map_err(|error| shape(&error))?;
        if !wanted.is_empty() {
            return one_of_each_family(&wanted, &object.place("ips"));
        }
    }
    let from_args = invocation.args.get("IP").filter(|text| !text.is_empty());
    if let (Some(text), None) = (from_args, fields.get("args")) {
        return one_of_each_family(&listed(text), "IP in CNI_ARGS");
    }
    match object_at(fields, &["ipam"])? {
        Some(ipam) => match string(&ipam, "ipAddress")?.as_str() {
            "" => Ok(Vec::new()),
            text => one_of_each_family(&listed(text), "ipam.ipAddress"),
        },
        None => Ok(Vec::new()),
    }
}

/// `10.240.0.9,fd00::9`.
fn listed(text: &str) -> Vec<String> {
    text.split(',').map(|part| part.trim().to_owned()).collect()
}

/// One address may be listed twice: podman does so on a network reload.
fn one_of_each_family(texts: &[String], place: &str) -> Result<Vec<IpAddr>, CniError> {
    let mut addresses: Vec<IpAddr> = Vec::new();
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
    let of_ipv4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    if of_ipv4 <= 1 && addresses.len() - of_ipv4 <= 1 {
        return Ok(addresses);
    }
    let msg = format!(
        "failed to allocate all requested IPs: {}: an interface has one address of a family",
        texts.join(", ")
    );
    Err(CniError::new(code::CONFIGURATION, msg).with_details(place.to_owned()))
}

/// The MAC that is asked for: `mac` or `MAC`.
pub(crate) fn mac(fields: &Fields<'_>, invocation: &Invocation) -> Result<Option<[u8; 6]>, CniError> {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn call(args: &str) -> Invocation {
        let get = |name: &str| match name {
            "CNI_COMMAND" => Some("VERSION".to_owned()),
            "CNI_ARGS" => Some(args.to_owned()),
            _ => None,
        };
        Invocation::read(get).unwrap()
    }

    #[test]
    fn the_precedence_of_requests() {
        let both = "IP=10.0.0.9;MAC=02:00:00:00:00:09";
        let read = |more: Value| {
            let fields = Fields::of(&more, "").unwrap();
            let addresses = addresses(&fields, &call(both)).unwrap();
            let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            (
                (!texts.is_empty()).then(|| texts.join(" ")),
                mac(&fields, &call(both)).unwrap().map(|mac| mac[5]),
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
        let pair = json!({ "args": { "cni": { "ips": ["10.0.0.7/24", "fd00::7/64"] } } });
        assert_eq!(read(pair), (text("10.0.0.7 fd00::7"), None));
        let list = json!({ "args": {}, "ipam": { "ipAddress": "fd00::8, 10.0.0.8" } });
        assert_eq!(read(list), (text("fd00::8 10.0.0.8"), None));
    }

    #[test]
    fn bad_wishes_are_refused() {
        for bad in [
            json!({ "ipam": { "ipAddress": "ten" } }),
            json!({ "runtimeConfig": { "ips": ["10.0.0.1", "10.0.0.2"] } }),
            json!({ "runtimeConfig": { "ips": [""] } }),
            json!({ "runtimeConfig": { "ips": ["fd00::1", "10.0.0.1", "fd00::2"] } }),
            json!({ "ipam": { "ipAddress": "10.0.0.1," } }),
        ] {
            let error = addresses(&Fields::of(&bad, "").unwrap(), &call("")).unwrap_err();
            assert_eq!(error.code, code::CONFIGURATION, "{bad}");
        }
        for bad in ["01:00:5e:00:00:01", "00:00:00:00:00:00", "x"] {
            let config = json!({ "runtimeConfig": { "mac": bad } });
            let error = mac(&Fields::of(&config, "").unwrap(), &call("")).unwrap_err();
            assert_eq!(error.code, code::CONFIGURATION, "{bad}");
        }
    }
}
