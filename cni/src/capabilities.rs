//! What the runtime adds for this pod (`runtimeConfig`), beside the wishes for address and MAC.

use causeway::{datapath::HostPort, go_json::Fields};
use serde_json::{Map, Value};

use crate::{
    error::{CniError, code},
    netconf::{shape, string},
};

/// `portMappings`: the node's ports that are to lead to the pod. To make them do so is the chained `portmap`'s task; a
/// translated flow must not take them.
pub(crate) fn host_ports(fields: &Fields<'_>) -> Result<Vec<HostPort>, CniError> {
    let Some(config) = fields.object("runtimeConfig").map_err(|error| shape(&error))? else {
        return Ok(Vec::new());
    };
    let mut ports = Vec::new();
    for mapping in config.objects("portMappings").map_err(|error| shape(&error))? {
        let number = mapping
            .get("hostPort")
            .and_then(Value::as_u64)
            .unwrap_or_default();
        let port = u16::try_from(number)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| {
                let msg = format!(
                    "Invalid host port number: {number}; {}",
                    mapping.place("hostPort")
                );
                CniError::new(code::CONFIGURATION, msg)
            })?;
        let is_udp = match string(&mapping, "protocol")?.to_ascii_lowercase().as_str() {
            "" | "tcp" => false,
            "udp" => true,
            // Translated by address alone: no port can be taken.
            "sctp" => continue,
            other => {
                let msg = format!("{}: {other:?} is not tcp, udp or sctp", mapping.place("protocol"));
                return Err(CniError::new(code::CONFIGURATION, msg));
            }
        };
        let port = HostPort { is_udp, port };
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

/// `bandwidth`: whether there is a limit in either direction.
pub(crate) fn limits_bandwidth(fields: &Fields<'_>) -> Result<bool, CniError> {
    let config = fields.object("runtimeConfig").map_err(|error| shape(&error))?;
    let limits = match config {
        Some(config) => config.object("bandwidth").map_err(|error| shape(&error))?,
        None => None,
    };
    let is_set = |name| {
        limits
            .as_ref()
            .and_then(|limits| limits.get(name)?.as_u64())
            .is_some_and(|rate| rate != 0)
    };
    Ok(is_set("ingressRate") || is_set("egressRate"))
}

/// `dns`, in the form of a result; `None` when nothing is said in it.
pub(crate) fn dns(fields: &Fields<'_>) -> Result<Option<Value>, CniError> {
    let config = fields.object("runtimeConfig").map_err(|error| shape(&error))?;
    let asked = match config {
        Some(config) => config.object("dns").map_err(|error| shape(&error))?,
        None => None,
    };
    let mut dns = Map::new();
    for (theirs, ours) in [
        ("servers", "nameservers"),
        ("searches", "search"),
        ("options", "options"),
    ] {
        let list = match &asked {
            Some(asked) => asked.strings(theirs).map_err(|error| shape(&error))?,
            None => Vec::new(),
        };
        if !list.is_empty() {
            dns.insert(ours.to_owned(), list.into());
        }
    }
    Ok((!dns.is_empty()).then(|| dns.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read<T>(config: &Value, f: impl Fn(&Fields<'_>) -> Result<T, CniError>) -> Result<T, CniError> {
        let document = json!({ "runtimeConfig": config });
        f(&Fields::of(&document, "").unwrap())
    }

    #[test]
    fn ports_in_containerds_form_and_in_podmans() {
        let containerd = json!({ "PortMappings": [
            { "HostPort": 8082, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "" },
            { "HostPort": 53, "ContainerPort": 53, "Protocol": "UDP" }, { "HostPort": 7, "Protocol": "sctp" }] });
        let podman = json!({ "portMappings": [{ "hostPort": 8082, "containerPort": 80 }, { "hostPort": 8082, "protocol": "tcp" },
            { "hostPort": 53, "protocol": "udp" }] });
        for config in [containerd, podman] {
            let ports = read(&config, host_ports).unwrap();
            assert_eq!(
                ports,
                [
                    HostPort {
                        is_udp: false,
                        port: 8082
                    },
                    HostPort {
                        is_udp: true,
                        port: 53
                    }
                ]
            );
        }
        assert!(
            read(&json!({ "portMappings": null }), host_ports)
                .unwrap()
                .is_empty()
        );
        assert!(read(&Value::Null, host_ports).unwrap().is_empty());
    }

    #[test]
    fn ports_that_do_not_exist_are_refused() {
        for port in [json!(0), json!(70_000), json!(-1), json!(null)] {
            let error = read(&json!({ "portMappings": [{ "hostPort": port }] }), host_ports).unwrap_err();
            assert_eq!(error.code, 7);
            assert!(
                error.msg.contains("runtimeConfig.portMappings[0].hostPort"),
                "{}",
                error.msg
            );
        }
        let error = read(
            &json!({ "portMappings": [{ "hostPort": 1, "protocol": "x" }] }),
            host_ports,
        )
        .unwrap_err();
        assert!(error.msg.contains("is not tcp, udp or sctp"), "{}", error.msg);
    }

    #[test]
    fn a_limit_is_a_rate_that_is_not_zero() {
        let limited = |config: Value| read(&config, limits_bandwidth).unwrap();
        assert!(limited(
            json!({ "bandwidth": { "IngressRate": 10, "IngressBurst": 4_294_967_295u64 } })
        ));
        assert!(limited(json!({ "bandwidth": { "egressRate": 10 } })));
        assert!(
            !limited(json!({ "bandwidth": { "EgressRate": 0, "EgressBurst": 7 } })) && !limited(json!({}))
        );
    }

    #[test]
    fn the_runtimes_name_service_has_the_names_of_a_result() {
        let asked = json!({ "dns": { "Servers": ["10.0.0.10"], "Searches": ["svc.cluster.local"], "Options": null } });
        let dns = read(&asked, dns).unwrap();
        assert_eq!(
            dns,
            Some(json!({ "nameservers": ["10.0.0.10"], "search": ["svc.cluster.local"] }))
        );
        assert_eq!(
            read(&json!({ "dns": { "Servers": [] } }), super::dns).unwrap(),
            None
        );
    }
}
