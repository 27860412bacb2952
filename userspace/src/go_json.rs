//! JSON as Go's `encoding/json` reads and writes it, where serde differs.
//!
//! The incumbent is a Go program: its readers match keys without regard to case and take `null` for "not given",
//! its files hold networks as `{"IP","Mask"}`, byte strings as base64 and times as RFC 3339. This module owns those
//! conventions and knows no particular file.

mod lines;

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::SystemTime,
};

use ::base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value, json};

pub use self::lines::to_vec;

/// A value that has not the form that its reader needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: expected {expected}, found {found}")]
pub struct ShapeError {
    /// Where, as `Interfaces[0].IPSubnets[1].Prefix`.
    pub place: String,
    /// What belongs there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// A JSON object whose keys are found without regard to case and whose `null` members count as absent.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    place: String,
}

impl<'a> Fields<'a> {
    /// Views `value`, which is found at `place` (empty for the whole document).
    pub fn of(value: &'a Value, place: impl Into<String>) -> Result<Self, ShapeError> {
        let place = place.into();
        match value.as_object() {
            Some(map) => Ok(Self { map, place }),
            None => Err(shape(&place, "an object", value)),
        }
    }

    /// The member of that name; one that is spelled exactly so goes before others.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        let found = self.map.get(name).or_else(|| {
            self.map
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
        });
        found.filter(|value| !value.is_null())
    }

    /// A string member, empty when absent.
    pub fn string(&self, name: &str) -> Result<&'a str, ShapeError> {
        match self.get(name) {
            None => Ok(""),
            Some(value) => value
                .as_str()
                .ok_or_else(|| shape(&self.place(name), "a string", value)),
        }
    }

    /// A boolean member, false when absent.
    pub fn flag(&self, name: &str) -> Result<bool, ShapeError> {
        match self.get(name) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| shape(&self.place(name), "true or false", value)),
        }
    }

    /// A list member, empty when absent.
    pub fn list(&self, name: &str) -> Result<&'a [Value], ShapeError> {
        match self.get(name) {
            None => Ok(&[]),
            Some(value) => match value.as_array() {
                Some(list) => Ok(list),
                None => Err(shape(&self.place(name), "a list", value)),
            },
        }
    }

    /// The strings of a list member, empty when absent.
    pub fn strings(&self, name: &str) -> Result<Vec<String>, ShapeError> {
        let place = self.place(name);
        let string = |(i, value): (usize, &Value)| match value.as_str() {
            Some(string) => Ok(string.to_owned()),
            None => Err(shape(&format!("{place}[{i}]"), "a string", value)),
        };
        self.list(name)?.iter().enumerate().map(string).collect()
    }

    /// The objects of a list member, empty when absent.
    pub fn objects(&self, name: &str) -> Result<Vec<Self>, ShapeError> {
        let place = self.place(name);
        let object = |(i, value)| Fields::of(value, format!("{place}[{i}]"));
        self.list(name)?.iter().enumerate().map(object).collect()
    }

    /// An object member.
    pub fn object(&self, name: &str) -> Result<Option<Self>, ShapeError> {
        self.get(name)
            .map(|value| Fields::of(value, self.place(name)))
            .transpose()
    }

    /// A member that `parse` understands, `None` when absent or an empty string.
    pub fn parsed<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ShapeError> {
        match self.string(name)? {
            "" => Ok(None),
            text => match parse(text) {
                Some(value) => Ok(Some(value)),
                None => Err(self.unlike(name, expected)),
            },
        }
    }

    /// The error for a member that is not `expected`.
    pub fn unlike(&self, name: &str, expected: &str) -> ShapeError {
        shape(
            &self.place(name),
            expected,
            self.get(name).unwrap_or(&Value::Null),
        )
    }

    /// Where the member of that name is.
    pub fn place(&self, name: &str) -> String {
        if self.place.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.place)
        }
    }
}

fn shape(place: &str, expected: &str, found: &Value) -> ShapeError {
    let place = if place.is_empty() { "the document" } else { place };
    let found = match found {
        Value::Null => "nothing".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => scalar.to_string(),
    };
    ShapeError {
        place: place.to_owned(),
        expected: expected.to_owned(),
        found,
    }
}

/// For `#[serde(deserialize_with)]`: `null`, as Go writes an empty list or map, is the default.
pub fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// As [`null_default`], for a map of many entries, mostly in order: looking for the place of each would take longer than
/// reading it.
pub fn sorted_entries<'de, D, V>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    let entries: Option<Entries<V>> = Option::deserialize(deserializer)?;
    Ok(entries
        .map(|entries| entries.0.into_iter().collect())
        .unwrap_or_default())
}

/// The members of an object in the order of the text; of two of one name the later one counts.
struct Entries<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Members<V> {
            type Value = Entries<V>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = members.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// An address with a mask as Go's `net.IPNet`. The address keeps its host bits.
pub fn ip_net(net: IpNet) -> Value {
    let mask = match net {
        IpNet::V4(net) => base64(&net.netmask().octets()),
        IpNet::V6(net) => base64(&net.netmask().octets()),
    };
    json!({ "IP": net.addr().to_string(), "Mask": mask })
}

/// Go's `net.IPNet{}`.
pub fn no_ip_net() -> Value {
    json!({ "IP": "", "Mask": null })
}

/// Reads what [`ip_net`] writes.
pub fn parse_ip_net(value: &Value) -> Option<IpNet> {
    let address: IpAddr = value.get("IP")?.as_str()?.parse().ok()?;
    let mask = parse_base64(value.get("Mask")?.as_str()?)?;
    let mask: IpAddr = match mask.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(mask).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(mask).ok()?).into(),
        _ => return None,
    };
    IpNet::with_netmask(address, mask).ok()
}

/// `#[serde(with)]` for a network that is kept as [`ip_net`].
pub mod ip_net_field {
    use serde::{Serializer, de::Error};

    use serde::Serialize;

    use super::{Deserialize, Deserializer, IpNet, Value, ip_net, parse_ip_net};

    /// Writes the network.
    pub fn serialize<S: Serializer>(net: &IpNet, serializer: S) -> Result<S::Ok, S::Error> {
        ip_net(*net).serialize(serializer)
    }

    /// Reads the network.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
        let value = Value::deserialize(deserializer)?;
        parse_ip_net(&value)
            .ok_or_else(|| D::Error::custom(format!("{value} is no network with IP and Mask")))
    }
}

/// A MAC address in any usual spelling: with colons, dashes or nothing between the bytes.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b':' | b'-')).collect();
    if digits.len() != 12 || !matches!(text.len(), 12 | 17) {
        return None;
    }
    let mut mac = [0; 6];
    for (byte, pair) in mac.iter_mut().zip(digits.chunks(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(mac)
}

/// A MAC address as `0a:1b:2c:3d:4e:5f`.
pub fn mac_text(mac: [u8; 6]) -> String {
    let bytes = mac.map(|byte| format!("{byte:02x}"));
    bytes.join(":")
}

/// A time as RFC 3339 in UTC with microseconds, which Go's `time.Time` reads. What RFC 3339 has no year for is 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.6}")
}

/// Reads a time of RFC 3339, as Go writes it: with any number of decimals, in UTC or with an offset.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// Go's text of a byte string: base64 with padding (RFC 4648, section 4).
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes of such a text, `None` when it is not base64.
pub fn parse_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn keys_are_found_in_any_case_and_null_is_absent() {
        let value = json!({ "MACADDRESS": "x", "list": null, "List": [1], "Flag": null });
        let fields = Fields::of(&value, "").unwrap();
        assert_eq!(fields.string("macAddress").unwrap(), "x");
        assert_eq!(fields.list("List").unwrap().len(), 1, "the exact key goes first");
        assert!(fields.list("list").unwrap().is_empty());
        assert!(!fields.flag("flag").unwrap());
        assert_eq!(fields.string("none").unwrap(), "");
    }

    #[test]
    fn errors_name_the_place() {
        let value = json!({ "Interfaces": [{}, { "IPSubnets": [{ "Prefix": 5 }] }] });
        let interfaces = Fields::of(&value, "").unwrap().objects("interfaces").unwrap();
        let error = interfaces[1].objects("IPSubnets").unwrap()[0]
            .string("Prefix")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "interfaces[1].IPSubnets[0].Prefix: expected a string, found 5"
        );
        assert_eq!(Fields::of(&json!(7), "").unwrap_err().place, "the document");
    }

    #[test]
    fn networks_as_go_writes_them() {
        let net: IpNet = "10.240.0.0/16".parse().unwrap();
        assert_eq!(ip_net(net), json!({ "IP": "10.240.0.0", "Mask": "//8AAA==" }));
        for text in ["10.240.0.5/12", "0.0.0.0/0", "fd00::1/64", "10.0.0.1/32"] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(parse_ip_net(&ip_net(net)), Some(net));
        }
        for bad in [
            no_ip_net(),
            json!({ "IP": "10.0.0.0", "Mask": "AP8AAA==" }),
            json!(null),
            json!({ "IP": "x", "Mask": "" }),
        ] {
            assert_eq!(parse_ip_net(&bad), None, "{bad}");
        }
    }

    #[test]
    fn macs_with_and_without_colons() {
        let mac = [0x00, 0x0d, 0x3a, 0x0a, 0x0b, 0x0c];
        for text in ["000D3A0A0B0C", "00:0d:3a:0a:0b:0c", "00-0D-3A-0a-0b-0c"] {
            assert_eq!(parse_mac(text), Some(mac));
        }
        for text in [
            "",
            "*",
            "00:0d:3a:0a:0b",
            "00:0d:3a:0a:0b:0g",
            "000D3A0A0B0C00",
            "é00D3A0A0B0",
        ] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
        assert_eq!(mac_text(mac), "00:0d:3a:0a:0b:0c");
    }

    #[test]
    fn base64_vectors_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(parse_base64(text).unwrap(), bytes.as_bytes());
        }
        for bad in ["Zg=", "Z", "====", "Z===", "Zg=v", "Zm 9"] {
            assert_eq!(parse_base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn times() {
        let at = |seconds, micros: u32| rfc3339(UNIX_EPOCH + Duration::new(seconds, micros * 1000));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_399, 999_999), "2000-02-28T23:59:59.999999Z");
        assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.000001Z");
        assert_eq!(at(1_735_689_599, 0), "2024-12-31T23:59:59.000000Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn times_as_go_writes_them() {
        let read = |text| parse_rfc3339(text).map(rfc3339);
        for text in [
            "1970-01-01T00:00:00.000000Z",
            "2000-02-29T00:00:00.000001Z",
            "2100-03-01T23:59:59.999999Z",
        ] {
            assert_eq!(read(text).as_deref(), Some(text));
        }
        assert_eq!(
            read("2026-08-20T10:11:12Z").unwrap(),
            "2026-08-20T10:11:12.000000Z"
        );
        assert_eq!(
            read("2026-08-20T10:11:12.123456789+02:00").unwrap(),
            "2026-08-20T08:11:12.123456Z"
        );
        assert_eq!(
            read("2026-12-31T23:30:00-01:00").unwrap(),
            "2027-01-01T00:30:00.000000Z"
        );
        for bad in [
            "",
            "x",
            "2026-13-01T00:00:00Z",
            "2026-08-20",
            "2026-08-20T10:11:12",
            "é026-08-20T",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
