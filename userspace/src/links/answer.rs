//! What the kernel answers, as far as it is read.
//!
//! An answer is read as what was asked for and nothing else. Of interfaces, disciplines and filters, which tell a great deal
//! that nobody here asks for, only the attributes of use are looked at: a call reads several of them, and is to be quick.
//! Numbers are those of `linux/rtnetlink.h`, `linux/if_link.h` and `linux/pkt_cls.h`.

use netlink_packet_core::Parseable as _;
use netlink_packet_route::{address::AddressMessage, neighbour::NeighbourMessage, route::RouteMessage};

use super::{Filter, Kind, Link, Qdisc};

/// An object of the kernel.
pub(super) trait Answer: Sized {
    /// Type of the message that describes one.
    const KIND: u16;

    /// Reads the message behind its header; `None` if it has not the form of one.
    fn read(body: &[u8]) -> Option<Self>;
}

impl Answer for Link {
    const KIND: u16 = libc::RTM_NEWLINK;

    fn read(body: &[u8]) -> Option<Self> {
        /// `IF_OPER_UP`.
        const UP: u8 = 6;
        const IFLA_INFO_KIND: u16 = 1;
        // `struct ifinfomsg`.
        let (header, attributes) = body.split_first_chunk::<16>()?;
        let flags = u32_at(header, 8)?.cast_signed();
        let mut link = Self {
            index: u32_at(header, 4)?,
            name: String::new(),
            mac: None,
            mtu: 0,
            is_up: flags & libc::IFF_UP != 0,
            is_operational: false,
            kind: Kind::Other,
            master: None,
        };
        let is_ethernet = u16::from_ne_bytes([header[2], header[3]]) == libc::ARPHRD_ETHER;
        for (kind, value) in each(attributes) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                libc::IFLA_OPERSTATE => link.is_operational = value == [UP],
                libc::IFLA_ADDRESS if is_ethernet => link.mac = value.try_into().ok(),
                libc::IFLA_MASTER => link.master = u32_at(value, 0),
                libc::IFLA_LINKINFO => {
                    link.kind =
                        find(value, IFLA_INFO_KIND).map_or(Kind::Other, |kind| Kind::named(&text(kind)));
                }
                _ => {}
            }
        }
        Some(link)
    }
}

impl Kind {
    fn named(name: &str) -> Self {
        match name {
            "veth" => Self::Veth,
            "bridge" => Self::Bridge,
            "dummy" => Self::Dummy,
            "tun" => Self::Tun,
            _ => Self::Other,
        }
    }
}

impl Answer for AddressMessage {
    const KIND: u16 = libc::RTM_NEWADDR;

    fn read(body: &[u8]) -> Option<Self> {
        Self::parse(body).ok()
    }
}

impl Answer for RouteMessage {
    const KIND: u16 = libc::RTM_NEWROUTE;

    fn read(body: &[u8]) -> Option<Self> {
        Self::parse(body).ok()
    }
}

impl Answer for NeighbourMessage {
    const KIND: u16 = libc::RTM_NEWNEIGH;

    fn read(body: &[u8]) -> Option<Self> {
        Self::parse(body).ok()
    }
}

/// Length of `struct tcmsg`. Bytes.
const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;

/// A discipline; `None` of another kind.
impl Answer for Option<Qdisc> {
    const KIND: u16 = libc::RTM_NEWQDISC;

    fn read(body: &[u8]) -> Option<Self> {
        let kind = find(body.get(TCMSG..)?, TCA_KIND).map(text);
        Some(match kind.as_deref() {
            Some("clsact") => Some(Qdisc::Clsact),
            Some("ingress") => Some(Qdisc::Ingress),
            _ => None,
        })
    }
}

/// A line of a list of filters.
pub(super) enum FilterLine {
    /// A priority that has filters.
    Priority,
    /// A BPF filter.
    Bpf(Filter),
    /// Another filter.
    Foreign,
}

impl Answer for FilterLine {
    const KIND: u16 = libc::RTM_NEWTFILTER;

    fn read(body: &[u8]) -> Option<Self> {
        const TCA_OPTIONS: u16 = 2;
        const TCA_BPF_NAME: u16 = 7;
        const TCA_BPF_ID: u16 = 11;
        let (header, attributes) = body.split_first_chunk::<TCMSG>()?;
        let (handle, info) = (u32_at(header, 8)?, u32_at(header, 16)?);
        if handle == 0 {
            return Some(Self::Priority);
        }
        if find(attributes, TCA_KIND).map(text).as_deref() != Some("bpf") {
            return Some(Self::Foreign);
        }
        let options = find(attributes, TCA_OPTIONS).unwrap_or_default();
        Some(Self::Bpf(Filter {
            priority: (info >> 16) as u16,
            handle,
            name: find(options, TCA_BPF_NAME).map(text).unwrap_or_default(),
            program_id: find(options, TCA_BPF_ID)
                .and_then(|id| u32_at(id, 0))
                .unwrap_or_default(),
        }))
    }
}

/// The attributes, by their numbers. The first that is cut off ends them.
fn each(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// `NLA_TYPE_MASK`.
    const NUMBER: u16 = 0x3fff;
    let mut rest = attributes;
    std::iter::from_fn(move || {
        let (header, _) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let number = u16::from_ne_bytes([header[2], header[3]]) & NUMBER;
        let value = rest.get(header.len()..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((number, value))
    })
}

/// The value of the first attribute of that number.
fn find(attributes: &[u8], number: u16) -> Option<&[u8]> {
    each(attributes).find_map(|(found, value)| (found == number).then_some(value))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// A text of the kernel, with a zero at its end.
fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(number: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), number.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn interface(kind: &[u8]) -> Vec<u8> {
        let mut body = vec![0, 0, 1, 0, 7, 0, 0, 0];
        body.extend([libc::IFF_UP.to_ne_bytes(), [0; 4]].concat());
        for (number, value) in [
            (libc::IFLA_IFNAME, &b"azv1\0"[..]),
            (libc::IFLA_MTU, &1400_u32.to_ne_bytes()),
            (libc::IFLA_OPERSTATE, &[6]),
            (libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 9]),
            (libc::IFLA_MASTER, &3_u32.to_ne_bytes()),
            // Nested, and says so.
            (libc::IFLA_LINKINFO | 0x8000, &attribute(1, kind)),
        ] {
            body.extend(attribute(number, value));
        }
        body
    }

    #[test]
    fn an_interface_is_read_to_the_attribute_that_is_cut_off() {
        let link = Link {
            index: 7,
            name: "azv1".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 9]),
            mtu: 1400,
            is_up: true,
            is_operational: true,
            kind: Kind::Veth,
            master: Some(3),
        };
        let whole = interface(b"veth\0");
        assert_eq!(Link::read(&whole), Some(link.clone()));
        assert_eq!(Link::read(&interface(b"bridge\0")).unwrap().kind, Kind::Bridge);
        let cut = Link {
            kind: Kind::Other,
            ..link
        };
        assert_eq!(Link::read(&whole[..whole.len() - 5]), Some(cut));
        assert_eq!(Link::read(&whole[..15]), None);
        let mut short = whole;
        // An MTU of two bytes.
        short[24 + 4] = 6;
        assert_eq!(Link::read(&short), None);
    }

    #[test]
    fn of_filters_only_those_of_bpf_are_read() {
        let line = |handle: u32, kind: &[u8]| {
            let header = [0, 7, handle, 0, 1 << 16 | 8].map(u32::to_ne_bytes);
            let options = [attribute(7, b"cwy_to_pod\0"), attribute(11, &5_u32.to_ne_bytes())];
            let attributes = [attribute(TCA_KIND, kind), attribute(2, &options.concat())];
            FilterLine::read(&[header.concat(), attributes.concat()].concat()).unwrap()
        };
        let filter = Filter {
            priority: 1,
            handle: 3,
            name: "cwy_to_pod".to_owned(),
            program_id: 5,
        };
        assert!(matches!(line(3, b"bpf\0"), FilterLine::Bpf(found) if found == filter));
        assert!(matches!(line(3, b"u32\0"), FilterLine::Foreign));
        assert!(matches!(line(0, b"bpf\0"), FilterLine::Priority));
    }
}
