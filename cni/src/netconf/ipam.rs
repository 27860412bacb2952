//! `ipam` of the configuration: which addresses.

use std::time::Duration;

use causeway::{go_json::Fields, ipam::source::Settings};
use ipnet::IpNet;
use serde_json::{Map, Value};

use super::{filled, shape, string};
use crate::error::{CniError, code};

/// `ipam`.
#[derive(Clone, Debug)]
pub(crate) struct IpamConf {
    pub(crate) kind: String,
    /// Where the addresses come from.
    pub(crate) settings: Settings,
    /// How long a released address is not given to anybody. Milliseconds.
    pub(crate) quarantine: u64,
    /// The subnets as they are prescribed.
    pub(crate) subnet: Option<String>,
}

impl Default for IpamConf {
    fn default() -> Self {
        Self {
            kind: String::new(),
            settings: Settings::new(ENVIRONMENT),
            quarantine: 0,
            subnet: None,
        }
    }
}

/// Of a configuration that names none, as the incumbent has it.
const ENVIRONMENT: &str = "azure";

/// The IPAM plug-in that is a part of this binary.
pub(crate) const IPAM_KIND: &str = "azure-vnet-ipam";

impl IpamConf {
    /// Reads `ipam` of a network's configuration.
    pub(super) fn read(fields: &Fields<'_>, master: Option<&str>) -> Result<Self, CniError> {
        let absent = Value::Object(Map::new());
        let ipam = match fields.object("ipam").map_err(|error| shape(&error))? {
            Some(ipam) => ipam,
            None => Fields::of(&absent, "ipam").map_err(|error| shape(&error))?,
        };
        let space = string(&ipam, "addressSpace")?;
        if !matches!(space.as_str(), "" | "local") {
            let msg = format!(
                "Invalid address space: {space:?}; leave ipam.addressSpace out or set it to \"local\""
            );
            return Err(CniError::new(code::CONFIGURATION, msg));
        }
        let environment = filled(string(&ipam, "environment")?).unwrap_or_else(|| ENVIRONMENT.to_owned());
        let subnet = filled(string(&ipam, "subnet")?);
        let interval = seconds(&ipam, "queryInterval")?;
        let kind = string(&ipam, "type")?;
        // Of other plug-ins these keys are their own.
        let is_ours = kind == IPAM_KIND;
        Ok(Self {
            settings: Settings {
                addresses: if is_ours || environment == "static" {
                    ipam.strings("addresses").map_err(|error| shape(&error))?
                } else {
                    Vec::new()
                },
                subnets: subnet.as_deref().map(subnets).unwrap_or_default(),
                master: master.map(str::to_owned),
                query_interval: interval.unwrap_or(Settings::QUERY_INTERVAL),
                ..Settings::new(environment)
            },
            quarantine: seconds(&ipam, "quarantine")?
                .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            kind,
            subnet,
        })
    }
}

/// `10.240.0.0/16`, or one of each family: `10.240.0.0/16,fd00:10::/64`. None if one of them is none.
fn subnets(text: &str) -> Vec<IpNet> {
    let subnets: Option<Vec<IpNet>> = text
        .split(',')
        .map(|part| Some(part.trim().parse::<IpNet>().ok()?.trunc()))
        .collect();
    subnets.unwrap_or_default()
}

/// A time in seconds, as a string like the incumbent's or as a number.
fn seconds(fields: &Fields<'_>, name: &str) -> Result<Option<Duration>, CniError> {
    let value = match fields.get(name) {
        None => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => text.trim().parse::<u32>().ok(),
        Some(value) => value.as_u64().and_then(|value| u32::try_from(value).ok()),
    };
    match value {
        Some(value) => Ok(Some(Duration::from_secs(value.into()))),
        None => Err(shape(&fields.unlike(name, "a time in seconds, such as \"10\""))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_strings_like_the_incumbents_or_numbers() {
        let conf = |ipam: Value| {
            let document = json!({ "ipam": ipam });
            IpamConf::read(&Fields::of(&document, "").unwrap(), None).unwrap()
        };
        assert_eq!(conf(json!({})).settings.query_interval, Duration::from_secs(10));
        assert_eq!(
            conf(json!({ "queryInterval": "60" })).settings.query_interval,
            Duration::from_mins(1)
        );
        assert_eq!(conf(json!({ "quarantine": 30 })).quarantine, 30_000);
    }
}
