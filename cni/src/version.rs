//! Which versions of the specification are spoken.

use serde_json::{Value, json};

use crate::error::{CniError, code};

/// The supported versions, the newest last.
pub(crate) const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest one: what errors are printed in while the configuration's version is not known.
pub(crate) const NEWEST: &str = "1.1.0";
/// What a configuration without a version is taken for, as the incumbent does.
const UNSAID: &str = "0.2.0";

/// A supported version. They are ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(usize);

impl Version {
    /// That of results that are noted.
    pub(crate) const NOTED: Self = Self(SUPPORTED.len() - 1);

    /// The version of a configuration.
    pub(crate) fn parse(text: &str) -> Result<Self, CniError> {
        let text = if text.is_empty() { UNSAID } else { text };
        SUPPORTED
            .iter()
            .position(|version| *version == text)
            .map(Self)
            .ok_or_else(|| {
                CniError::new(code::VERSION, "incompatible CNI versions").with_details(format!(
                    "config is {text:?}, plugin supports {SUPPORTED:?}: set cniVersion to one of them"
                ))
            })
    }

    pub(crate) fn text(self) -> &'static str {
        SUPPORTED[self.0]
    }

    /// Whether a result lists interfaces and any number of addresses, not one of each family.
    pub(crate) fn has_interfaces(self) -> bool {
        self.is_since("0.3.0")
    }

    /// Whether an address in a result names its family (`version`).
    pub(crate) fn names_family(self) -> bool {
        self.has_interfaces() && !self.is_since("1.0.0")
    }

    /// Whether an interface in a result has its MTU.
    pub(crate) fn has_mtu(self) -> bool {
        self.is_since("1.1.0")
    }

    /// Whether this version of the specification has the verb.
    pub(crate) fn has(self, verb: &str) -> bool {
        match verb {
            "CHECK" => self.is_since("0.4.0"),
            "GC" | "STATUS" => self.is_since("1.1.0"),
            _ => true,
        }
    }

    fn is_since(self, version: &str) -> bool {
        SUPPORTED
            .iter()
            .position(|known| *known == version)
            .is_some_and(|first| self.0 >= first)
    }
}

/// The answer to VERSION. `asked` is the version in the configuration, empty when there is none.
pub(crate) fn answer(asked: &str) -> Value {
    let version = match asked {
        "" => NEWEST,
        asked => Version::parse(asked).map_or(NEWEST, Version::text),
    };
    json!({ "cniVersion": version, "supportedVersions": SUPPORTED })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_lists_what_is_supported() {
        for (asked, version) in [
            ("", "1.1.0"),
            ("0.4.0", "0.4.0"),
            ("1.0.0", "1.0.0"),
            ("2.0.0", "1.1.0"),
        ] {
            let answer = answer(asked);
            assert_eq!(answer["cniVersion"], version);
            assert_eq!(answer["supportedVersions"], json!(SUPPORTED));
        }
    }

    #[test]
    fn other_versions_are_refused_with_the_list() {
        let error = Version::parse("9.9.9").unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (1, "incompatible CNI versions"));
        assert!(
            error
                .details
                .contains(r#"config is "9.9.9", plugin supports ["0.1.0", "0.2.0", "0.3.0","#)
        );
        assert_eq!(Version::parse("").unwrap().text(), "0.2.0");
    }

    #[test]
    fn verbs_and_forms_came_with_versions() {
        let at = |version: &str| Version::parse(version).unwrap();
        assert!(!at("0.3.1").has("CHECK") && at("0.4.0").has("CHECK") && at("1.1.0").has("CHECK"));
        assert!(!at("1.0.0").has("GC") && at("1.1.0").has("STATUS") && at("0.1.0").has("DEL"));
        assert!(!at("0.2.0").has_interfaces() && at("0.3.0").has_interfaces());
        assert!(!at("0.2.0").names_family() && at("0.4.0").names_family() && !at("1.0.0").names_family());
    }
}
