//! A document of the Azure CLI, and whether it is the one that was asked for.
//!
//! `az … show` writes a resource's properties beside its name; the REST interface and templates keep them under
//! `properties`. Both are read, in UTF-8 or, as a Windows shell redirects it, in UTF-16 with a byte order mark.

use std::{fmt, path::Path};

use serde_json::Value;

use super::error::InputError;
use crate::go_json::ShapeError;

/// A parsed document.
#[derive(Clone, Debug)]
pub struct Document {
    origin: String,
    /// Its content, nothing of it under `properties`.
    pub value: Value,
}

/// What a document is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `az aks show`.
    Cluster,
    /// `az network vnet show`.
    Network,
    /// `az network vnet subnet show`.
    Subnet,
    /// `az network nsg show`, or `az network nsg rule list`.
    SecurityGroup,
}

impl Kind {
    fn command(self) -> &'static str {
        match self {
            Self::Cluster => "az aks show",
            Self::Network => "az network vnet show",
            Self::Subnet => "az network vnet subnet show",
            Self::SecurityGroup => "az network nsg rule list",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "a cluster",
            Self::Network => "a virtual network",
            Self::Subnet => "a subnet",
            Self::SecurityGroup => "a network security group",
        })
    }
}

impl Document {
    /// Reads the content of the file at `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, InputError> {
        let origin = path.display().to_string();
        let fault = |message: String| InputError::new(&origin, message);
        let text = text(bytes).map_err(fault)?;
        if text.trim().is_empty() {
            return Err(fault("is empty: did the command that wrote it fail?".to_owned()));
        }
        let value: Value = serde_json::from_str(&text)
            .map_err(|error| fault(format!("is not JSON: {error}; write it with `--output json`")))?;
        Ok(Self {
            origin,
            value: without_properties(value),
        })
    }

    /// The resources of that kind in it: of a list each, else the one.
    pub fn each(self, kind: Kind) -> Result<Vec<Self>, InputError> {
        let Self { origin, value } = self;
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        let documents: Vec<Self> = values
            .into_iter()
            .map(|value| Self {
                origin: origin.clone(),
                value,
            })
            .collect();
        documents.iter().try_for_each(|document| document.is(kind))?;
        Ok(documents)
    }

    /// The one resource of that kind.
    pub fn one(self, kind: Kind) -> Result<Self, InputError> {
        let origin = self.origin.clone();
        let mut documents = self.each(kind)?;
        let count = documents.len();
        match (documents.pop(), count) {
            (Some(document), 1) => Ok(document),
            _ => Err(InputError::new(
                origin,
                format!(
                    "is a list of {}, and one is needed: write it with `{}`",
                    count,
                    kind.command()
                ),
            )),
        }
    }

    /// A security group, or its list of rules, which stays a list.
    pub fn group(self) -> Result<Self, InputError> {
        let rules = |values: &[Value]| values.iter().all(|value| value.get("access").is_some());
        if let Value::Array(values) = &self.value
            && rules(values)
        {
            return Ok(self);
        }
        self.one(Kind::SecurityGroup)
    }

    fn is(&self, wanted: Kind) -> Result<(), InputError> {
        match self.kind() {
            Some(kind) if kind == wanted => Ok(()),
            Some(kind) => Err(self.fault(format!(
                "is about {kind}; write {wanted} with `{}`",
                wanted.command()
            ))),
            None if self.value.get("error").is_some() => {
                Err(self.fault("is an error message of Azure's, not the resource".to_owned()))
            }
            None => Err(self.fault(format!(
                "is not what `{}` writes about {wanted}",
                wanted.command()
            ))),
        }
    }

    fn kind(&self) -> Option<Kind> {
        let named = self.value.get("type").and_then(Value::as_str).unwrap_or_default();
        match named.to_ascii_lowercase().as_str() {
            "microsoft.containerservice/managedclusters" => return Some(Kind::Cluster),
            "microsoft.network/virtualnetworks" => return Some(Kind::Network),
            "microsoft.network/virtualnetworks/subnets" => return Some(Kind::Subnet),
            "microsoft.network/networksecuritygroups" => return Some(Kind::SecurityGroup),
            _ => {}
        }
        let has = |key| self.value.get(key).is_some();
        if has("agentPoolProfiles") || has("networkProfile") {
            Some(Kind::Cluster)
        } else if has("addressSpace") {
            Some(Kind::Network)
        } else if has("addressPrefix") || has("addressPrefixes") {
            Some(Kind::Subnet)
        } else if has("securityRules") || has("access") {
            Some(Kind::SecurityGroup)
        } else {
            None
        }
    }

    /// The file's name, for a resource that does not say its own.
    pub fn name(&self) -> String {
        let path = Path::new(&self.origin);
        path.file_stem()
            .map_or_else(|| self.origin.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// An error of this document.
    pub fn fault(&self, message: impl Into<String>) -> InputError {
        InputError::new(&self.origin, message)
    }

    /// A value of it that has another form.
    pub fn shape(&self, error: &ShapeError) -> InputError {
        self.fault(error.to_string())
    }
}

fn text(bytes: &[u8]) -> Result<String, String> {
    if let Some(little) = bytes.strip_prefix(b"\xff\xfe") {
        let units = little
            .chunks(2)
            .map(|pair| u16::from_le_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        let text: Result<String, _> = char::decode_utf16(units).collect();
        return text.map_err(|error| format!("is not UTF-16: {error}"));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(format!("is not UTF-8 from byte {} on", error.valid_up_to())),
    }
}

/// Moves what is under `properties` beside it, at every depth. What is beside it already stays.
fn without_properties(value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(without_properties).collect(),
        Value::Object(mut members) => {
            if let Some(Value::Object(inner)) = members.remove("properties") {
                for (key, value) in inner {
                    members.entry(key).or_insert(value);
                }
            }
            let members = members
                .into_iter()
                .map(|(key, value)| (key, without_properties(value)));
            Value::Object(members.collect())
        }
        scalar => scalar,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(bytes: &[u8]) -> Result<Document, String> {
        Document::parse(Path::new("exports/vnet.json"), bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn a_byte_order_mark_does_not_matter() {
        let utf16: Vec<u8> = "\u{feff}{\"name\":\"ü\"}"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        for bytes in [&b"\xef\xbb\xbf{\"name\":\"\xc3\xbc\"}"[..], &utf16] {
            assert_eq!(document(bytes).unwrap().value, json!({ "name": "ü" }));
        }
    }

    #[test]
    fn properties_are_found_wherever_the_interface_keeps_them() {
        let text = r#"{"name":"v","properties":{"name":"inner","subnets":[{"properties":{"addressPrefix":"10.0.0.0/24"}}]}}"#;
        assert_eq!(
            document(text.as_bytes()).unwrap().value,
            json!({ "name": "v", "subnets": [{ "addressPrefix": "10.0.0.0/24" }] })
        );
    }

    #[test]
    fn errors_name_the_file_and_what_is_wrong() {
        for (bytes, needle) in [
            (&b""[..], "exports/vnet.json: is empty"),
            (b"\xff", "is not UTF-8 from byte 0 on"),
            (b"\xff\xfe\x00\xd8", "is not UTF-16"),
            (
                b"{\"a\":",
                "is not JSON: EOF while parsing a value at line 1 column 5",
            ),
            (&[b'['; 10_000], "recursion limit exceeded"),
        ] {
            let error = document(bytes).unwrap_err();
            assert!(error.contains(needle), "{error}");
        }
    }

    #[test]
    fn a_document_of_another_kind_is_told_from_the_right_one() {
        let subnet =
            json!({ "type": "Microsoft.Network/virtualNetworks/subnets", "addressPrefix": "10.0.0.0/24" });
        let of = |value: &Value| document(value.to_string().as_bytes()).unwrap();
        let error = of(&subnet).one(Kind::Network).unwrap_err().to_string();
        assert_eq!(
            error,
            "exports/vnet.json: is about a subnet; write a virtual network with `az network vnet show`"
        );
        let failed = of(&json!({ "error": { "code": "ResourceNotFound" } }))
            .one(Kind::Cluster)
            .unwrap_err();
        assert!(
            failed.to_string().contains("an error message of Azure's"),
            "{failed}"
        );
        let unknown = of(&json!(5)).one(Kind::Subnet).unwrap_err().to_string();
        assert!(
            unknown.contains("is not what `az network vnet subnet show` writes"),
            "{unknown}"
        );
        assert_eq!(
            of(&json!([subnet])).one(Kind::Subnet).unwrap().value,
            subnet,
            "a list of one is one"
        );
        assert_eq!(of(&json!([subnet, subnet])).each(Kind::Subnet).unwrap().len(), 2);
        let two = of(&json!([subnet, subnet]))
            .one(Kind::Subnet)
            .unwrap_err()
            .to_string();
        assert!(two.contains("a list of 2"), "{two}");
        let none = of(&json!([])).one(Kind::Subnet).unwrap_err().to_string();
        assert!(none.contains("a list of 0"), "{none}");
    }
}
