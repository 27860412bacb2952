//! Environment `azure`: the fabric's own list, from the wireserver.
//!
//! Asked at most once in an interval by all processes of the node together, and by one at a time; everybody else goes
//! on with the answer before. An answer that is no list does not replace one that was.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};

use super::{
    Answer, LocalNic, SourceError,
    cache::{self, Cache},
    http,
    listed::{ListedNic, ListedSubnet, for_this_node},
};
use crate::{go_json::parse_mac, root::Root};

/// The platform's own host.
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)), 80);
/// What the incumbent asks for.
const PATH: &str = "/machine/plugins?comp=nmagent&type=getinterfaceinfov1";

/// The list, asked for if the last answer is older than `interval`.
pub(super) fn ask(root: &Root, interval: Duration, local: &[LocalNic]) -> Answer {
    let cached = Cache::read(root);
    if cached.is_fresh(interval) {
        return answer(&cached, local);
    }
    // Whoever has an old list does not wait for the one who is asking.
    match cached.claim(root) {
        Err(error) if cached.body.is_empty() => Answer::of(Err(SourceError::Waiting(error)), url()),
        Err(_) => answer(&cached, local),
        Ok(_asking) => {
            let mut cached = Cache::read(root);
            if !cached.is_fresh(interval) {
                cached.note(http::get(SERVER, PATH).and_then(|body| parse(&body).map(|_| body)));
                if let Err(error) = cached.write(root) {
                    tracing::warn!(%error, "the address list cannot be kept for the next call");
                }
            }
            answer(&cached, local)
        }
    }
}

/// The list as it was last seen.
pub(super) fn last_seen(root: &Root, local: &[LocalNic]) -> Answer {
    answer(&Cache::read(root), local)
}

fn answer(cached: &Cache, local: &[LocalNic]) -> Answer {
    let failed = |problem: &str| SourceError::Wireserver {
        url: url(),
        problem: problem.to_owned(),
    };
    let age = cached
        .fetched()
        .map_or_else(|| ", never seen".to_owned(), cache::age);
    let list = if cached.body.is_empty() {
        let problem = if cached.error.is_empty() {
            "it has not been asked for yet"
        } else {
            &cached.error
        };
        Err(failed(problem))
    } else {
        parse(&cached.body)
            .map_err(|problem| failed(&problem))
            .and_then(|listed| for_this_node(&listed, &url(), local))
    };
    let mut answer = Answer::of(list, format!("{}{age}", url()));
    if answer.error.is_none() && !cached.error.is_empty() {
        answer.error = Some(failed(&cached.error));
    }
    answer
}

fn url() -> String {
    format!("http://{}{PATH}", SERVER.ip())
}

/// Reads `<Interfaces><Interface MacAddress IsPrimary><IPSubnet Prefix><IPAddress Address IsPrimary/>`. Names are
/// case-sensitive, unlike those of the file; elements and attributes of other names are passed over.
fn parse(xml: &str) -> Result<Vec<ListedNic>, String> {
    let mut reader = Reader::from_str(xml.trim_start_matches('\u{feff}'));
    reader.config_mut().expand_empty_elements = true;
    let mut path: Vec<String> = Vec::new();
    let mut nics: Vec<ListedNic> = Vec::new();
    loop {
        match reader
            .read_event()
            .map_err(|error| format!("the answer is not XML: {error}"))?
        {
            Event::Start(element) => {
                path.push(String::from_utf8_lossy(element.local_name().as_ref()).into_owned());
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                take_in(&path, &element, &mut nics)?;
            }
            Event::End(_) => {
                path.pop();
            }
            Event::Eof if !path.is_empty() => return Err("the answer is cut short".to_owned()),
            Event::Eof if reader.buffer_position() == 0 => return Err("the answer is empty".to_owned()),
            Event::Eof => return Ok(nics),
            _ => {}
        }
    }
}

fn take_in(path: &[&str], element: &BytesStart<'_>, nics: &mut Vec<ListedNic>) -> Result<(), String> {
    match path {
        [root] if *root != "Interfaces" => Err(format!("the answer is a {root:?}, not a list of Interfaces")),
        ["Interfaces", "Interface"] => {
            nics.push(ListedNic {
                mac: mac(&attribute(element, "MacAddress")?)?,
                primary: flag(&attribute(element, "IsPrimary")?),
                subnets: Vec::new(),
            });
            Ok(())
        }
        ["Interfaces", "Interface", "IPSubnet"] => {
            let text = attribute(element, "Prefix")?;
            let prefix: IpNet = text
                .parse()
                .map_err(|_| format!("IPSubnet Prefix {text:?} is not a subnet"))?;
            if let Some(nic) = nics.last_mut() {
                nic.subnets.push(ListedSubnet {
                    prefix: prefix.trunc(),
                    addresses: Vec::new(),
                });
            }
            Ok(())
        }
        ["Interfaces", "Interface", "IPSubnet", "IPAddress"] => {
            let address = (
                attribute(element, "Address")?,
                flag(&attribute(element, "IsPrimary")?),
            );
            if let Some(subnet) = nics.last_mut().and_then(|nic| nic.subnets.last_mut()) {
                subnet.addresses.push(address);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The attribute of that name, empty when there is none.
fn attribute(element: &BytesStart<'_>, name: &str) -> Result<String, String> {
    let found = element
        .try_get_attribute(name)
        .map_err(|error| format!("the answer is not XML: {error}"))?;
    match found {
        Some(found) => {
            let value = found.unescape_value();
            value
                .map(|value| value.trim().to_owned())
                .map_err(|error| format!("{name}: {error}"))
        }
        None => Ok(String::new()),
    }
}

/// `*` stands for any interface.
fn mac(text: &str) -> Result<Option<[u8; 6]>, String> {
    match text {
        "" | "*" => Ok(None),
        text => match parse_mac(text) {
            Some(mac) => Ok(Some(mac)),
            None => Err(format!("MacAddress {text:?} is not six bytes in hexadecimal")),
        },
    }
}

/// As Go's `strconv.ParseBool`.
fn flag(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const LIST: &str = r#"<Interfaces><Interface MacAddress="000D3A0A0B0C" IsPrimary="true"><IPSubnet Prefix="10.240.0.0/16">
        <IPAddress Address="10.240.0.4" IsPrimary="true"/><IPAddress Address="10.240.0.5" IsPrimary="false"/>
        </IPSubnet></Interface></Interfaces>"#;

    fn local(mac: [u8; 6]) -> [LocalNic; 1] {
        [LocalNic {
            name: "eth0".to_owned(),
            mac,
            addresses: vec!["10.240.0.4".parse().unwrap()],
            secondary: Vec::new(),
        }]
    }

    #[test]
    fn the_reference_example() {
        let nics = parse(LIST).unwrap();
        assert_eq!(nics.len(), 1);
        assert_eq!(
            (nics[0].mac, nics[0].primary),
            (Some([0, 0x0d, 0x3a, 0x0a, 0x0b, 0x0c]), true)
        );
        assert_eq!(nics[0].subnets[0].prefix.to_string(), "10.240.0.0/16");
        let addresses = &nics[0].subnets[0].addresses;
        assert_eq!(
            addresses[..],
            [("10.240.0.4".to_owned(), true), ("10.240.0.5".to_owned(), false)]
        );
    }

    #[test]
    fn what_the_wireserver_may_put_around_it() {
        let dressed = format!("\u{feff}<?xml version=\"1.0\"?>\n<!-- x -->{LIST}")
            .replace(
                "<Interfaces>",
                "<Interfaces xmlns='urn:x'><Other MacAddress='zz'/>",
            )
            .replace("10.240.0.5", "10.240.0.&#53;")
            .replace("/></", " Extra='1'></IPAddress></");
        let nics = parse(&dressed).unwrap();
        assert_eq!(nics[0].subnets[0].addresses[1].0, "10.240.0.5");
    }

    #[test]
    fn any_mac_is_matched_by_the_subnet() {
        let any = parse(&LIST.replace("000D3A0A0B0C", "*")).unwrap();
        let list = for_this_node(&any, "x", &local([2; 6])).unwrap();
        assert_eq!((list.pools.len(), list.pools[0].interface.as_str()), (1, "eth0"));
        assert!(for_this_node(&parse(LIST).unwrap(), "x", &local([2; 6])).is_err());
    }

    #[test]
    fn names_are_case_sensitive() {
        let error = parse(&LIST.replace("Interfaces", "interfaces")).unwrap_err();
        assert!(error.contains("not a list of Interfaces"), "{error}");
        assert!(
            parse(&LIST.replace("Address=", "address=")).unwrap()[0].subnets[0].addresses[0]
                .0
                .is_empty()
        );
    }

    #[test]
    fn what_is_no_list_is_refused_wherever_it_is_cut() {
        for length in 0..LIST.len() {
            assert!(parse(&LIST[..length]).is_err(), "cut at {length}");
        }
        for (bad, needle) in [
            ("<html><body>no</body></html>", "not a list of Interfaces"),
            (
                r#"<Interfaces><Interface MacAddress="xy"/></Interfaces>"#,
                "not six bytes",
            ),
            (
                "<Interfaces><Interface><IPSubnet/></Interface></Interfaces>",
                "is not a subnet",
            ),
            ("<Interfaces></Other>", "not XML"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(needle), "{bad}: {error}");
        }
    }

    #[test]
    fn an_old_list_serves_while_the_server_does_not() {
        let mut cache = Cache::default();
        let none = answer(&cache, &local([2; 6]));
        assert!(none.list.is_none() && none.error.unwrap().to_string().contains("not been asked for"));
        cache.note(Ok(LIST.replace("000D3A0A0B0C", "*")));
        cache.note(Err("no answer within 10 s".to_owned()));
        let old = answer(&cache, &local([2; 6]));
        assert_eq!(old.list.unwrap().pools.len(), 1);
        assert!(old.error.unwrap().to_string().ends_with("no answer within 10 s"));
        assert!(
            old.origin.contains("168.63.129.16") && old.origin.contains(" old"),
            "{}",
            old.origin
        );
        assert!(cache.fetched().unwrap() <= SystemTime::now());
    }
}
