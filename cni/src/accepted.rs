//! Keys of the incumbent's configuration that change nothing here, and why. Those that ask for another network than a
//! pod would get are refused.

use causeway::go_json::Fields;
use serde_json::Value;

use crate::{
    error::{CniError, code},
    netconf::{shape, string},
};

/// Keys without an effect, and the reason.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("adapterName", "it is for Windows"),
    ("windowsSettings", "it is for Windows"),
    ("additionalArgs", "it is for Windows"),
    ("logLevel", "every call is logged, as the incumbent does"),
    ("logTarget", "the log is the file that it always is"),
    (
        "ipsToRouteViaHost",
        "the node's own addresses are always reached through its stack",
    ),
    (
        "disableHairpinOnHostInterface",
        "there is no bridge whose port could send back",
    ),
    ("disableIPTableLock", "no rule is written by iptables"),
    (
        "ipv6Mode",
        "pods get an address of IPv6 where the address list has some, and it is not translated",
    ),
    ("vnetCidrs", "it belongs to ipv6Mode"),
    ("serviceCidrs", "services are what the kernel's rules say"),
    (
        "enableSnatOnHost",
        "it belongs to CNS; what leaves the uplink is translated in any case",
    ),
    ("enableExactMatchForPodName", "it belongs to CNS"),
    ("infraVnetAddressSpace", "it belongs to CNS"),
    ("podNamespaceForDualNetwork", "it belongs to CNS"),
    ("cnsurl", "it belongs to CNS"),
    ("disableAsyncDelete", "DEL is never put off"),
    ("env", "it is for the incumbent's tests"),
];

/// Says in the log which keys of the configuration have no effect. Keys at their zero value say nothing.
pub(crate) fn note(fields: &Fields<'_>) {
    let said: Vec<String> = WITHOUT_EFFECT
        .iter()
        .filter(|(name, _)| fields.get(name).is_some_and(says_something))
        .map(|(name, reason)| format!("{name}: {reason}"))
        .collect();
    if !said.is_empty() {
        tracing::info!(keys = said.join("; "), "keys of the configuration without effect");
    }
}

/// Refuses what would have to be read otherwise than it is meant.
pub(crate) fn refuse(fields: &Fields<'_>) -> Result<(), CniError> {
    let cns = "addresses and networks of CNS are not supported";
    let refusal = |key: &str, reason: &str| {
        Err(CniError::new(
            code::CONFIGURATION,
            format!("{key}: {reason}; remove it from the configuration"),
        ))
    };
    if fields.flag("multiTenancy").map_err(|error| shape(&error))? {
        return refusal("multiTenancy", cns);
    }
    match string(fields, "executionMode")?.as_str() {
        "" | "default" | "baremetal" => {}
        other => return refusal(&format!("executionMode {other:?}"), cns),
    }
    let Some(ipam) = fields.object("ipam").map_err(|error| shape(&error))? else {
        return Ok(());
    };
    match string(&ipam, "type")?.as_str() {
        "azure-cns" => refusal("ipam.type \"azure-cns\"", cns),
        "internal" => refusal("ipam.type \"internal\"", "it is for the incumbent's tests"),
        "" => Err(CniError::new(
            code::CONFIGURATION,
            "ipam.type is missing: set it to \"azure-vnet-ipam\", or to the name of another IPAM plug-in",
        )),
        "azure-vnet-ipam" => match string(&ipam, "mode")?.as_str() {
            "" => Ok(()),
            other => refusal(&format!("ipam.mode {other:?}"), cns),
        },
        _ => Ok(()),
    }
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(members) => !members.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_asks_for_another_network_is_refused() {
        let ours = json!({ "type": "azure-vnet-ipam" });
        for (document, needle) in [
            (json!({ "multiTenancy": true, "ipam": ours }), "multiTenancy"),
            (
                json!({ "executionMode": "v4swift", "ipam": ours }),
                "executionMode \"v4swift\"",
            ),
            (json!({ "ipam": { "type": "azure-cns" } }), "azure-cns"),
            (
                json!({ "ipam": { "type": "azure-vnet-ipam", "mode": "v4overlay" } }),
                "ipam.mode",
            ),
            (json!({ "ipam": {} }), "ipam.type is missing"),
        ] {
            let error = refuse(&Fields::of(&document, "").unwrap()).unwrap_err();
            assert!(
                error.code == 7 && error.msg.contains(needle),
                "{document}: {}",
                error.msg
            );
        }
        for document in [
            json!({ "multiTenancy": false, "executionMode": "default", "ipam": ours }),
            json!({ "ipam": { "type": "host-local", "mode": "its own" } }),
        ] {
            refuse(&Fields::of(&document, "").unwrap()).unwrap();
        }
    }

    #[test]
    fn zero_values_say_nothing() {
        assert!(!says_something(&json!([])) && !says_something(&json!("")) && !says_something(&json!(false)));
        assert!(says_something(&json!(["169.254.20.10"])) && says_something(&json!(true)));
    }
}
