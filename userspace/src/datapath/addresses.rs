//! By which addresses the programs know a pod.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The addresses by which the programs know a pod: of a family one at most, and one at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodAddresses {
    /// One of IPv4.
    V4(Ipv4Addr),
    /// One of IPv6, and none of IPv4.
    V6(Ipv6Addr),
    /// One of each.
    Both(Ipv4Addr, Ipv6Addr),
}

impl PodAddresses {
    /// Those among all that a pod has: the first of IPv4, and that of IPv6 if there is one alone. With several, which another
    /// IPAM plug-in may give, IPv6 is the kernel's. `None` if nothing is left to know the pod by.
    pub fn among(addresses: &[IpNet]) -> Option<Self> {
        let (mut of_v4, mut of_v6) = (None, Vec::new());
        for address in addresses {
            match address.addr() {
                IpAddr::V4(addr) => of_v4 = of_v4.or(Some(addr)),
                IpAddr::V6(addr) => of_v6.push(addr),
            }
        }
        match (of_v4, &of_v6[..]) {
            (Some(of_v4), [of_v6]) => Some(Self::Both(of_v4, *of_v6)),
            (Some(of_v4), _) => Some(Self::V4(of_v4)),
            (None, [of_v6]) => Some(Self::V6(*of_v6)),
            (None, _) => None,
        }
    }

    /// That of IPv4.
    pub fn v4(&self) -> Option<Ipv4Addr> {
        match self {
            Self::V4(addr) | Self::Both(addr, _) => Some(*addr),
            Self::V6(_) => None,
        }
    }

    /// That of IPv6.
    pub fn v6(&self) -> Option<Ipv6Addr> {
        match self {
            Self::V6(addr) | Self::Both(_, addr) => Some(*addr),
            Self::V4(_) => None,
        }
    }

    /// The one by which the pod is called: that of IPv4 before that of IPv6.
    pub fn first(&self) -> IpAddr {
        match self {
            Self::V4(addr) | Self::Both(addr, _) => (*addr).into(),
            Self::V6(addr) => (*addr).into(),
        }
    }

    /// All of them, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let (of_v4, of_v6) = (self.v4().map(IpAddr::V4), self.v6().map(IpAddr::V6));
        of_v4.into_iter().chain(of_v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among(texts: &[&str]) -> Option<String> {
        let nets: Vec<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
        let addresses = PodAddresses::among(&nets)?;
        assert_eq!(Some(addresses.first()), addresses.iter().next());
        let all: Vec<String> = addresses.iter().map(|addr| addr.to_string()).collect();
        Some(all.join(" "))
    }

    #[test]
    fn a_pod_is_known_by_one_address_of_a_family() {
        for (given, known) in [
            (&["10.240.0.5/16"][..], Some("10.240.0.5")),
            (&["fd00:10::5/64"], Some("fd00:10::5")),
            (&["fd00:10::5/64", "10.240.0.5/16"], Some("10.240.0.5 fd00:10::5")),
            (&["10.240.0.5/16", "10.240.0.6/16"], Some("10.240.0.5")),
            (
                &["10.240.0.5/16", "fd00:10::5/64", "fd00:11::5/64"],
                Some("10.240.0.5"),
            ),
            (&["fd00:10::5/64", "fd00:11::5/64"], None),
            (&[], None),
        ] {
            assert_eq!(among(given).as_deref(), known, "{given:?}");
        }
    }
}
