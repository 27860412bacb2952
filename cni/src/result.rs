//! Results of ADD, in every version of the specification: ours, those of plug-ins before us, those of delegates.

use std::net::IpAddr;

use causeway::go_json::{Fields, ShapeError, mac_text};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::{
    Call,
    error::{CniError, code},
    version::Version,
};

/// What an ADD has made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CniResult {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ips: Vec<Ip>,
    pub(crate) routes: Vec<Route>,
    /// An object, or `null` when nothing was said.
    pub(crate) dns: Value,
}

/// An interface, in a sandbox or on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    /// Empty when it was not said.
    pub(crate) mac: String,
    /// Path of the namespace as it was given, empty for the host's.
    pub(crate) sandbox: String,
    pub(crate) mtu: Option<u32>,
}

/// An address with its subnet's mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) address: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    /// Place of its interface in the list.
    pub(crate) interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    /// What 1.1.0 has besides: `mtu`, `advmss`, `priority`, `table`, `scope`.
    pub(crate) more: Map<String, Value>,
}

impl Route {
    /// The default route of the gateway's family.
    pub(crate) fn default_by(gateway: IpAddr) -> Self {
        let to = match gateway {
            IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        Self {
            to,
            gateway: Some(gateway),
            more: Map::new(),
        }
    }
}

impl Ip {
    /// An address of the first interface.
    pub(crate) fn of_first(address: IpNet, gateway: Option<IpAddr>) -> Self {
        Self {
            address,
            gateway,
            interface: Some(0),
        }
    }
}

impl CniResult {
    /// Of a connected pod, from what its IPAM plug-in gave. `macs` are those of its own end and of the host's.
    pub(crate) fn of_pod(call: &Call<'_>, host_if: &str, macs: [[u8; 6]; 2], mtu: u32, given: Self) -> Self {
        let end = |name: &str, mac, sandbox: &str| Interface {
            name: name.to_owned(),
            mac: mac_text(mac),
            sandbox: sandbox.to_owned(),
            mtu: Some(mtu),
        };
        let ips = given.ips.into_iter();
        Self {
            // The pod's interface comes first, as in the incumbent's result, where it is the only one.
            interfaces: vec![
                end(&call.invocation.interface, macs[0], &call.invocation.netns),
                end(host_if, macs[1], ""),
            ],
            ips: ips.map(|ip| Ip::of_first(ip.address, ip.gateway)).collect(),
            routes: given.routes,
            // Name servers of the configuration, even an empty list, before those that come with the address.
            dns: call.conf.dns.clone().unwrap_or(given.dns),
        }
    }

    /// With what came before it; indices follow their interfaces.
    pub(crate) fn after(mut self, earlier: Option<&Self>) -> Self {
        let mut all = earlier.cloned().unwrap_or_default();
        let shift = all.interfaces.len();
        for ip in &mut self.ips {
            ip.interface = ip.interface.map(|index| index + shift);
        }
        all.interfaces.append(&mut self.interfaces);
        all.ips.append(&mut self.ips);
        all.routes.append(&mut self.routes);
        if !self.dns.is_null() {
            all.dns = self.dns;
        }
        all
    }

    /// The object to print.
    pub(crate) fn to_json(&self, version: Version) -> Result<Value, CniError> {
        let dns = if self.dns.is_null() {
            json!({})
        } else {
            self.dns.clone()
        };
        let mut object = json!({ "cniVersion": version.text(), "dns": dns });
        if version.has_interfaces() {
            if !self.interfaces.is_empty() {
                object["interfaces"] = self
                    .interfaces
                    .iter()
                    .map(|interface| interface.to_json(version))
                    .collect();
            }
            object["ips"] = self.ips.iter().map(|ip| ip.to_json(version)).collect();
            object["routes"] = self.routes.iter().map(Route::to_json).collect();
            return Ok(object);
        }
        for (name, is_ipv4) in [("ip4", true), ("ip6", false)] {
            let mut ips = self
                .ips
                .iter()
                .filter(|ip| ip.address.addr().is_ipv4() == is_ipv4);
            let Some(ip) = ips.next() else {
                continue;
            };
            if ips.next().is_some() {
                let msg = format!(
                    "CNI version {} does not support more than 1 address per family",
                    version.text()
                );
                return Err(CniError::new(code::PLUGIN, msg));
            }
            let routes = self
                .routes
                .iter()
                .filter(|route| route.to.addr().is_ipv4() == is_ipv4);
            let routes: Vec<Value> = routes.map(Route::to_json).collect();
            let mut family = json!({ "ip": ip.address.to_string(), "routes": routes });
            if let Some(gateway) = ip.gateway {
                family["gateway"] = gateway.to_string().into();
            }
            object[name] = family;
        }
        Ok(object)
    }

    /// Reads a result of any version: each is known by its own keys.
    pub(crate) fn from_json(value: &Value, place: &str) -> Result<Self, ShapeError> {
        let fields = Fields::of(value, place)?;
        let mut result = Self {
            interfaces: fields
                .objects("interfaces")?
                .iter()
                .map(interface)
                .collect::<Result<_, _>>()?,
            ips: fields.objects("ips")?.iter().map(ip).collect::<Result<_, _>>()?,
            routes: fields
                .objects("routes")?
                .iter()
                .map(route)
                .collect::<Result<_, _>>()?,
            dns: fields.get("dns").cloned().unwrap_or_default(),
        };
        for name in ["ip4", "ip6"] {
            if let Some(family) = fields.object(name)? {
                result.ips.push(Ip {
                    address: address(&family, "ip")?,
                    gateway: gateway(&family, "gateway")?,
                    interface: None,
                });
                for old in family.objects("routes")? {
                    result.routes.push(route(&old)?);
                }
            }
        }
        let count = result.interfaces.len();
        match result
            .ips
            .iter()
            .find(|ip| ip.interface.is_some_and(|index| index >= count))
        {
            Some(_) => Err(fields.unlike("ips", "addresses whose interface is one of the list")),
            None => Ok(result),
        }
    }
}

impl Interface {
    fn to_json(&self, version: Version) -> Value {
        let mut object = json!({ "name": self.name, "sandbox": self.sandbox });
        if !self.mac.is_empty() {
            object["mac"] = self.mac.clone().into();
        }
        if let Some(mtu) = self.mtu.filter(|_| version.has_mtu()) {
            object["mtu"] = mtu.into();
        }
        object
    }
}

impl Ip {
    fn to_json(&self, version: Version) -> Value {
        let mut object = json!({ "address": self.address.to_string() });
        if version.names_family() {
            object["version"] = if self.address.addr().is_ipv4() { "4" } else { "6" }.into();
        }
        if let Some(gateway) = self.gateway {
            object["gateway"] = gateway.to_string().into();
        }
        if let Some(index) = self.interface {
            object["interface"] = index.into();
        }
        object
    }
}

impl Route {
    fn to_json(&self) -> Value {
        let mut object = self.more.clone();
        object.insert("dst".to_owned(), self.to.to_string().into());
        if let Some(gateway) = self.gateway {
            object.insert("gw".to_owned(), gateway.to_string().into());
        }
        object.into()
    }
}

fn interface(fields: &Fields<'_>) -> Result<Interface, ShapeError> {
    let mtu = fields
        .get("mtu")
        .and_then(Value::as_u64)
        .and_then(|mtu| u32::try_from(mtu).ok());
    Ok(Interface {
        name: fields.string("name")?.to_owned(),
        mac: fields.string("mac")?.to_owned(),
        sandbox: fields.string("sandbox")?.to_owned(),
        mtu: mtu.filter(|mtu| *mtu != 0),
    })
}

fn ip(fields: &Fields<'_>) -> Result<Ip, ShapeError> {
    let interface = match fields.get("interface") {
        None => None,
        Some(value) => {
            let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
            Some(index.ok_or_else(|| fields.unlike("interface", "the place of an interface"))?)
        }
    };
    Ok(Ip {
        address: address(fields, "address")?,
        gateway: gateway(fields, "gateway")?,
        interface,
    })
}

fn route(fields: &Fields<'_>) -> Result<Route, ShapeError> {
    let mut more = Map::new();
    for name in ["mtu", "advmss", "priority", "table", "scope"] {
        if let Some(value) = fields.get(name) {
            more.insert(name.to_owned(), value.clone());
        }
    }
    Ok(Route {
        to: address(fields, "dst")?,
        gateway: gateway(fields, "gw")?,
        more,
    })
}

fn address(fields: &Fields<'_>, name: &str) -> Result<IpNet, ShapeError> {
    let expected = "an address with a mask, such as 10.240.0.5/16";
    let found = fields.parsed(name, expected, |text| text.parse::<IpNet>().ok())?;
    found.ok_or_else(|| fields.unlike(name, expected))
}

fn gateway(fields: &Fields<'_>, name: &str) -> Result<Option<IpAddr>, ShapeError> {
    fields.parsed(name, "an address", |text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::SUPPORTED;

    fn pod() -> CniResult {
        CniResult {
            interfaces: vec![
                Interface {
                    name: "eth0".to_owned(),
                    mac: "02:00:00:00:00:05".to_owned(),
                    sandbox: "/proc/7/ns/net".to_owned(),
                    mtu: Some(1400),
                },
                Interface {
                    name: "azv0123456789a".to_owned(),
                    mac: "02:00:00:00:01:05".to_owned(),
                    ..Interface::default()
                },
            ],
            ips: vec![Ip {
                address: "10.240.0.5/12".parse().unwrap(),
                gateway: "10.240.0.1".parse().ok(),
                interface: Some(0),
            }],
            routes: vec![Route::default_by("10.240.0.1".parse().unwrap())],
            dns: json!({ "nameservers": ["168.63.129.16"] }),
        }
    }

    fn printed(version: &str) -> Value {
        pod().to_json(Version::parse(version).unwrap()).unwrap()
    }

    #[test]
    fn each_version_has_its_form() {
        let routes = json!([{ "dst": "0.0.0.0/0", "gw": "10.240.0.1" }]);
        let dns = json!({ "nameservers": ["168.63.129.16"] });
        for version in SUPPORTED {
            let mut expected = json!({ "cniVersion": version, "dns": dns });
            if version < "0.3" {
                expected["ip4"] = json!({ "ip": "10.240.0.5/12", "gateway": "10.240.0.1", "routes": routes });
            } else {
                expected["interfaces"] = json!([
                    { "name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/proc/7/ns/net" },
                    { "name": "azv0123456789a", "mac": "02:00:00:00:01:05", "sandbox": "" },
                ]);
                expected["ips"] =
                    json!([{ "interface": 0, "address": "10.240.0.5/12", "gateway": "10.240.0.1" }]);
                expected["routes"] = routes.clone();
            }
            if version.starts_with("0.3") || version == "0.4.0" {
                expected["ips"][0]["version"] = "4".into();
            }
            if version == "1.1.0" {
                expected["interfaces"][0]["mtu"] = 1400.into();
            }
            assert_eq!(printed(version), expected);
        }
    }

    #[test]
    fn what_is_printed_is_read_in_every_version() {
        for version in SUPPORTED {
            let read = CniResult::from_json(&printed(version), "").unwrap();
            assert_eq!(
                (&read.ips[0].address, &read.routes),
                (&pod().ips[0].address, &pod().routes)
            );
            if version == "1.1.0" {
                assert_eq!(read, pod());
            }
        }
    }

    #[test]
    fn old_versions_have_one_address_of_a_family() {
        let mut two = pod();
        two.ips.push(two.ips[0].clone());
        let error = two.to_json(Version::parse("0.2.0").unwrap()).unwrap_err();
        assert_eq!(
            error.msg,
            "CNI version 0.2.0 does not support more than 1 address per family"
        );
        two.to_json(Version::parse("0.3.0").unwrap()).unwrap();
    }

    #[test]
    fn a_later_result_points_at_its_own_interfaces() {
        let later = CniResult {
            dns: Value::Null,
            ..pod()
        };
        let both = later.after(Some(&pod()));
        let indices: Vec<_> = both.ips.iter().map(|ip| ip.interface).collect();
        assert_eq!((indices, both.interfaces.len()), (vec![Some(0), Some(2)], 4));
        assert_eq!(both.dns, pod().dns);
    }

    #[test]
    fn indices_out_of_range_are_refused() {
        for index in [json!(2), json!(-1), json!("0")] {
            let mut result = printed("1.0.0");
            result["ips"][0]["interface"] = index;
            CniResult::from_json(&result, "prevResult").unwrap_err();
        }
        assert_eq!(
            CniResult::from_json(&json!({}), "").unwrap(),
            CniResult::default()
        );
    }
}
