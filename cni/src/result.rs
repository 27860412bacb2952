//! What a successful ADD prints, in the version of the configuration.
//!
//! The incumbent's result, and beside it what containerd, podman and the chained plug-ins look for: the host's end,
//! MACs, the sandbox and the index from the address to the pod's interface.

use causeway::{go_json::mac_text, ipam::pool::Lease};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::version::Version;

/// A pod's interface and the host's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interfaces<'a> {
    /// Name in the pod.
    pub(crate) name: &'a str,
    /// MAC in the pod.
    pub(crate) mac: [u8; 6],
    /// The namespace's path as it was given.
    pub(crate) sandbox: &'a str,
    /// Name of the host's end.
    pub(crate) host_name: &'a str,
    /// MAC of the host's end.
    pub(crate) host_mac: [u8; 6],
}

/// The result of `azure-vnet`. The pod's interface comes first, as in the incumbent's, where it is the only one.
pub(crate) fn network(version: Version, lease: &Lease, interfaces: &Interfaces<'_>, dns: &Value) -> Value {
    let mut result = addresses(version, lease, dns);
    result["interfaces"] = json!([
        { "name": interfaces.name, "mac": mac_text(interfaces.mac), "sandbox": interfaces.sandbox },
        { "name": interfaces.host_name, "mac": mac_text(interfaces.host_mac), "sandbox": "" },
    ]);
    result["ips"][0]["interface"] = 0.into();
    result
}

/// The result of `azure-vnet-ipam`: no interfaces, and no index to one.
pub(crate) fn addresses(version: Version, lease: &Lease, dns: &Value) -> Value {
    let prefix_len = lease.subnet.prefix_len();
    let mut ip = json!({ "address": format!("{}/{prefix_len}", lease.address), "gateway": lease.gateway });
    let (family, default) = match lease.subnet {
        IpNet::V4(_) => ("4", "0.0.0.0/0"),
        IpNet::V6(_) => ("6", "::/0"),
    };
    if version.names_family() {
        ip["version"] = family.into();
    }
    json!({
        "cniVersion": version.text(),
        "ips": [ip],
        "routes": [{ "dst": default, "gw": lease.gateway }],
        "dns": dns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            address: "10.240.0.5".parse().unwrap(),
            subnet: "10.240.0.0/12".parse().unwrap(),
            gateway: "10.240.0.1".parse().unwrap(),
            uplink: "eth0".to_owned(),
        }
    }

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn the_incumbents_result_is_in_it() {
        let interfaces = Interfaces {
            name: "eth0",
            mac: [2, 0, 0, 0, 0, 5],
            sandbox: "/proc/7/ns/net",
            host_name: "azv0123456789a",
            host_mac: [2, 0, 0, 0, 1, 5],
        };
        let dns = json!({ "nameservers": ["168.63.129.16"] });
        let result = network(version("0.3.0"), &lease(), &interfaces, &dns);
        let expected = json!({
            "cniVersion": "0.3.0",
            "interfaces": [
                { "name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/proc/7/ns/net" },
                { "name": "azv0123456789a", "mac": "02:00:00:00:01:05", "sandbox": "" },
            ],
            "ips": [{ "version": "4", "interface": 0, "address": "10.240.0.5/12", "gateway": "10.240.0.1" }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.240.0.1" }],
            "dns": { "nameservers": ["168.63.129.16"] },
        });
        assert_eq!(result, expected);
    }

    #[test]
    fn the_family_is_named_before_1_0_0() {
        for (text, named) in [
            ("0.3.0", true),
            ("0.3.1", true),
            ("0.4.0", true),
            ("1.0.0", false),
        ] {
            let result = addresses(version(text), &lease(), &json!({}));
            assert_eq!(result["ips"][0].get("version").is_some(), named, "{text}");
            assert_eq!(result["cniVersion"], text);
            assert!(result.get("interfaces").is_none() && result["ips"][0].get("interface").is_none());
        }
    }
}
