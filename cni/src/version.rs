//! Which versions of the specification are spoken.

use serde_json::{Value, json};

use crate::error::{CniError, code};

/// The supported versions, the newest last.
pub(crate) const SUPPORTED: [&str; 4] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0"];
/// The newest one: what errors are printed in while the configuration's version is not known.
pub(crate) const NEWEST: &str = "1.0.0";

/// A supported version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version(&'static str);

impl Version {
    /// The version of a configuration.
    pub(crate) fn parse(text: &str) -> Result<Self, CniError> {
        SUPPORTED
            .iter()
            .find(|version| **version == text)
            .map(|version| Self(version))
            .ok_or_else(|| {
                CniError::new(code::VERSION, "incompatible CNI versions").with_details(format!(
                    "config is {text:?}, plugin supports {SUPPORTED:?}: set cniVersion to one of them"
                ))
            })
    }

    pub(crate) fn text(self) -> &'static str {
        self.0
    }

    /// Whether an address in a result names its family (`version`), as it does before 1.0.0.
    pub(crate) fn names_family(self) -> bool {
        self.0 != "1.0.0"
    }

    /// Whether this version of the specification has the verb.
    pub(crate) fn has(self, verb: &str) -> bool {
        match verb {
            "CHECK" => !matches!(self.0, "0.3.0" | "0.3.1"),
            "GC" | "STATUS" => false,
            _ => true,
        }
    }
}

/// The answer to VERSION. `asked` is the version in the configuration, empty when there is none.
pub(crate) fn answer(asked: &str) -> Value {
    let version = Version::parse(asked).map_or(NEWEST, Version::text);
    json!({ "cniVersion": version, "supportedVersions": SUPPORTED })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_lists_what_is_supported() {
        for (asked, version) in [("", "1.0.0"), ("0.4.0", "0.4.0"), ("1.1.0", "1.0.0")] {
            let answer = answer(asked);
            assert_eq!(answer["cniVersion"], version);
            assert_eq!(
                answer["supportedVersions"],
                json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0"])
            );
        }
    }

    #[test]
    fn other_versions_are_refused_with_the_list() {
        let error = Version::parse("9.9.9").unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (1, "incompatible CNI versions"));
        assert!(
            error
                .details
                .contains(r#"config is "9.9.9", plugin supports ["0.3.0", "0.3.1", "0.4.0", "1.0.0"]"#)
        );
    }

    #[test]
    fn verbs_came_with_versions() {
        let has = |version: &str, verb| Version::parse(version).unwrap().has(verb);
        assert!(!has("0.3.1", "CHECK") && has("0.4.0", "CHECK") && has("1.0.0", "CHECK"));
        assert!(!has("1.0.0", "GC") && !has("1.0.0", "STATUS") && has("0.3.0", "DEL"));
    }
}
