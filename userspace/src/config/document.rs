//! A document, in YAML or JSON.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::ConfigError;

/// No configuration is larger, in bytes: 16,384 ranges fit.
const LARGEST: usize = 1 << 20;

/// Reads a document. One without content is one without keys.
pub(super) fn parse<T: DeserializeOwned + Default>(path: &Path, bytes: &[u8]) -> Result<T, ConfigError> {
    let failed = |message: String| ConfigError::of(path, message);
    if bytes.len() > LARGEST {
        return Err(failed(format!("is larger than {LARGEST} bytes")));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| failed(format!("is not UTF-8 from byte {} on", error.valid_up_to())))?;
    if text.trim_start().starts_with('{') {
        // JSON may be indented by tabs, which YAML forbids.
        return match serde_json::from_str(text) {
            Ok(document) => Ok(document),
            Err(error) => yaml(text).map_err(|_not_yaml_either| failed(error.to_string())),
        };
    }
    yaml(text).map_err(failed)
}

fn yaml<T: DeserializeOwned + Default>(text: &str) -> Result<T, String> {
    let options = serde_saphyr::options! { with_snippet: false };
    let document: Result<Option<T>, _> = serde_saphyr::from_str_with_options(text, options);
    match document {
        Ok(document) => Ok(document.unwrap_or_default()),
        Err(error) => Err(error.to_string()),
    }
}
