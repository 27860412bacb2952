//! Environment `podCIDRs`: the subnets that Kubernetes gave this node, its Node object's `spec.podCIDRs`.
//!
//! They never change once they are given, so nobody asks for them at an ADD: `causeway pod-cidrs` does so once a boot, and
//! notes them in a file, which is read here. This is the place that knows what of them can be used.

use std::{collections::BTreeSet, fs, io, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Answer, LocalNic, Settings, SourceError, SourceList, SourcePool, cache, is_reserved};
use crate::{durable, go_json, root::Root};

/// The subnets as `causeway pod-cidrs` noted them. Goes with the boot.
pub const FILE: &str = "/run/causeway/pod-cidrs.json";

/// The `ipam.environment`, in any case.
pub const ENVIRONMENT: &str = "podCIDRs";

/// How many addresses of IPv4 are offered: the leases stand in a file that every ADD reads, one record an address.
const MOST: usize = 1_024;

/// What a Node object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCidrs {
    /// `metadata.name`.
    pub node: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.podCIDRs`.
    #[serde(rename = "podCIDRs")]
    pub cidrs: Vec<String>,
    /// When it was asked for, as RFC 3339 has it.
    pub read_at: String,
}

impl PodCidrs {
    /// What was noted; `None` where nothing was.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a file that holds something else.
    pub fn read(root: &Root) -> io::Result<Option<Self>> {
        let bytes = durable::read(&root.path(FILE))?;
        Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?)
    }

    /// Notes it in place of what was noted before.
    pub fn write(&self, root: &Root) -> io::Result<()> {
        durable::write(&root.path(FILE), &go_json::to_vec(self)?)
    }

    /// The subnets: of a family at most one, without host bits.
    ///
    /// # Errors
    ///
    /// Which is none that pods could have addresses of, and why.
    pub fn subnets(&self) -> Result<Vec<IpNet>, String> {
        let mut subnets: Vec<IpNet> = Vec::new();
        for text in &self.cidrs {
            let subnet = usable(text).map_err(|problem| format!("{text:?} {problem}"))?;
            let is_ipv4 = subnet.addr().is_ipv4();
            if let Some(first) = subnets.iter().find(|first| first.addr().is_ipv4() == is_ipv4) {
                return Err(format!(
                    "{text:?} is a second subnet beside {first}: a node has one of each family"
                ));
            }
            subnets.push(subnet);
        }
        if subnets.is_empty() {
            return Err("the list is empty".to_owned());
        }
        Ok(subnets)
    }
}

fn usable(text: &str) -> Result<IpNet, String> {
    let subnet: IpNet = text
        .parse()
        .map_err(|_| "is not a subnet such as 10.244.3.0/24")?;
    if subnet != subnet.trunc() {
        return Err(format!(
            "has bits behind its prefix: {} is meant?",
            subnet.trunc()
        ));
    }
    // The shortest: everything that was ever given to one organisation. The longest: room for an address beside the
    // subnet's own, the gateway's and the broadcast address.
    let (shortest, longest) = if subnet.addr().is_ipv4() {
        (8, 30)
    } else {
        (16, 126)
    };
    if !(shortest..=longest).contains(&subnet.prefix_len()) {
        return Err(format!("is not between /{shortest} and /{longest}"));
    }
    let is_special = match subnet.addr() {
        IpAddr::V4(first) => {
            first.octets()[0] == 0 || first.is_loopback() || first.is_link_local() || first.octets()[0] >= 224
        }
        IpAddr::V6(first) => first.is_unspecified() || first.is_unicast_link_local() || first.is_multicast(),
    };
    if is_special {
        return Err("has addresses that no pod can have".to_owned());
    }
    Ok(subnet)
}

/// The addresses of the subnets, for a node with the interfaces `local`.
pub(super) fn ask(root: &Root, settings: &Settings, local: &[LocalNic]) -> Answer {
    let path = root.path(FILE);
    let failed = |problem: String| SourceError::PodCidrs {
        path: path.clone(),
        problem,
    };
    let noted = match PodCidrs::read(root) {
        Ok(Some(noted)) => Ok(noted),
        Ok(None) => Err(failed("there is no such file".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    };
    let age = fs::metadata(&path).and_then(|metadata| metadata.modified());
    let age = age.ok().map_or(String::new(), cache::age);
    let origin = match &noted {
        Ok(noted) => format!("{} of node {}{age}", path.display(), noted.node),
        Err(_) => path.display().to_string(),
    };
    let list = noted.and_then(|noted| {
        let subnets = noted.subnets();
        let subnets = subnets.map_err(|problem| failed(format!("podCIDRs: {problem}")))?;
        Ok(list(&subnets, settings.master.as_deref(), local))
    });
    Answer::of(list, origin)
}

/// The subnets are the pods' alone: what has an address in one is no uplink, but a bridge of whoever served pods before. So
/// no interface carries them unless `master` is named.
fn list(subnets: &[IpNet], master: Option<&str>, local: &[LocalNic]) -> SourceList {
    let own: BTreeSet<IpAddr> = local
        .iter()
        .flat_map(|nic| nic.addresses.iter().copied())
        .collect();
    let of_ipv4 = subnets.iter().find(|subnet| subnet.addr().is_ipv4());
    let of_ipv4 = of_ipv4.map(|subnet| first_of(subnet, MOST, &own));
    // A pod has one of each.
    let most = of_ipv4.as_ref().map_or(MOST, BTreeSet::len);
    let pool = |subnet: &IpNet| SourcePool {
        subnet: *subnet,
        interface: master.unwrap_or_default().to_owned(),
        priority: 0,
        addresses: match &of_ipv4 {
            Some(addresses) if subnet.addr().is_ipv4() => addresses.clone(),
            _ => first_of(subnet, most, &own),
        },
        on_interface: false,
    };
    SourceList {
        pools: subnets.iter().map(pool).collect(),
        skipped: Vec::new(),
        misses_an_interface: false,
    }
}

/// The first so many addresses that pods may have. Never looks at the rest: a /64 has no end.
fn first_of(subnet: &IpNet, most: usize, own: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let hosts = subnet.hosts();
    hosts
        .filter(|address| !is_reserved(subnet, *address) && !own.contains(address))
        .take(most)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(cidrs: &[&str]) -> PodCidrs {
        PodCidrs {
            node: "aks-pool-0".to_owned(),
            uid: "7f0c".to_owned(),
            cidrs: cidrs.iter().map(|text| (*text).to_owned()).collect(),
            read_at: "2026-01-02T03:04:05Z".to_owned(),
        }
    }

    fn pools(cidrs: &[&str], local: &[LocalNic]) -> Vec<SourcePool> {
        list(&noted(cidrs).subnets().unwrap(), None, local).pools
    }

    fn ends(pool: &SourcePool) -> (usize, String, String) {
        let text = |address: Option<&IpAddr>| address.map(IpAddr::to_string).unwrap_or_default();
        (
            pool.addresses.len(),
            text(pool.addresses.first()),
            text(pool.addresses.last()),
        )
    }

    #[test]
    fn every_address_of_a_subnet_but_its_own_the_gateways_and_the_last() {
        let of = |cidr: &str| ends(&pools(&[cidr], &[])[0]);
        assert_eq!(
            of("10.244.3.0/24"),
            (253, "10.244.3.2".to_owned(), "10.244.3.254".to_owned())
        );
        assert_eq!(
            of("10.244.3.8/30"),
            (1, "10.244.3.10".to_owned(), "10.244.3.10".to_owned())
        );
        assert_eq!(of("fd00::/126"), (1, "fd00::2".to_owned(), "fd00::2".to_owned()));
    }

    #[test]
    fn of_a_large_subnet_the_first_ones_and_of_ipv6_as_many_as_of_ipv4() {
        let both = pools(&["10.244.0.0/16", "fd00:10::/64"], &[]);
        assert_eq!(
            ends(&both[0]),
            (1_024, "10.244.0.2".to_owned(), "10.244.4.1".to_owned())
        );
        assert_eq!(
            ends(&both[1]),
            (1_024, "fd00:10::2".to_owned(), "fd00:10::401".to_owned())
        );
        let both = pools(&["fd00:10::/64", "10.244.3.0/24"], &[]);
        assert_eq!((both[0].addresses.len(), both[1].addresses.len()), (253, 253));
        assert_eq!(ends(&pools(&["fd00::/16"], &[])[0]).0, 1_024);
    }

    #[test]
    fn the_nodes_own_addresses_are_no_pods_and_what_has_them_is_no_uplink() {
        let bridge = LocalNic {
            name: "cbr0".to_owned(),
            mac: [2; 6],
            addresses: vec!["10.244.3.1".parse().unwrap(), "10.244.3.2".parse().unwrap()],
            secondary: Vec::new(),
        };
        let pool = &pools(&["10.244.3.0/24"], &[bridge])[0];
        assert_eq!(ends(pool).1, "10.244.3.3");
        assert_eq!(pool.interface, "");
    }

    #[test]
    fn what_cannot_be_pods_subnets_is_refused_by_name() {
        for (cidrs, needle) in [
            (&[][..], "the list is empty"),
            (&["10.244.3.0"], "\"10.244.3.0\" is not a subnet"),
            (&["10.244.3.0/33"], "is not a subnet"),
            (
                &["10.244.3.7/24"],
                "bits behind its prefix: 10.244.3.0/24 is meant?",
            ),
            (&["10.244.3.0/31"], "is not between /8 and /30"),
            (&["0.0.0.0/0"], "is not between /8 and /30"),
            (&["fd00::/127"], "is not between /16 and /126"),
            (&["127.0.0.0/24"], "no pod can have"),
            (&["224.0.0.0/24"], "no pod can have"),
            (&["fe80::/64"], "no pod can have"),
            (
                &["10.244.3.0/24", "fd00::/64", "10.244.4.0/24"],
                "\"10.244.4.0/24\" is a second subnet",
            ),
        ] {
            let error = noted(cidrs).subnets().unwrap_err();
            assert!(error.contains(needle), "{cidrs:?}: {error}");
        }
        assert_eq!(noted(&["FD00::/64", "10.244.3.0/24"]).subnets().unwrap().len(), 2);
    }

    #[test]
    fn a_file_that_is_missing_or_garbled_says_which_and_who_writes_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let ask = || ask(&root, &Settings::new("podcidrs"), &[]);
        let failed = |needle: &str| {
            let answer = ask();
            assert!(answer.list.is_none());
            let error = answer.error.unwrap().to_string();
            let says_how = error.contains(FILE) && error.contains("`causeway pod-cidrs`");
            assert!(error.contains(needle) && says_how, "{error}");
        };
        failed("there is no such file");
        noted(&["10.244.3.0/24"]).write(&root).unwrap();
        let answer = ask();
        assert_eq!(answer.list.unwrap().pools.len(), 1);
        assert!(
            answer.origin.contains("of node aks-pool-0, 0 s old"),
            "{}",
            answer.origin
        );
        noted(&["10.244.3.1/24"]).write(&root).unwrap();
        failed("podCIDRs: \"10.244.3.1/24\" has bits");
        for (text, needle) in [
            ("{", "EOF"),
            ("[]", "invalid"),
            ("{\"node\":\"a\"}", "missing field"),
        ] {
            fs::write(root.path(FILE), text).unwrap();
            failed(needle);
        }
    }
}
