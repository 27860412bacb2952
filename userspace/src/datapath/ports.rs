//! Ports of the node that pods have (`hostPort`): kept out of the translations, and cleared of what is left on them.

use std::{fs, fs::File, io, path::Path};

use causeway_common::tuple::UDP;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeStruct as _};

use super::{Datapath, DatapathError, tables::Key};
use crate::{endpoints, node::Sysctls, settings::Settings};

/// A port of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// UDP; else TCP.
    pub is_udp: bool,
    /// The number, in host order.
    pub port: u16,
}

impl HostPort {
    /// `tcp` or `udp`.
    pub fn protocol(self) -> &'static str {
        if self.is_udp { "udp" } else { "tcp" }
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("HostPort", 2)?;
        fields.serialize_field("Protocol", self.protocol())?;
        fields.serialize_field("Port", &self.port)?;
        fields.end()
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Fields {
            protocol: String,
            port: u16,
        }
        let Fields { protocol, port } = Fields::deserialize(deserializer)?;
        match protocol.as_str() {
            "tcp" => Ok(Self { is_udp: false, port }),
            "udp" => Ok(Self { is_udp: true, port }),
            other => Err(D::Error::custom(format!("{other:?} is neither tcp nor udp"))),
        }
    }
}

impl Datapath {
    /// Keeps the ports out of translations that begin from here on. Those of UDP are cleared: an entry of an earlier
    /// owner must not swallow the first datagrams of a client that goes on sending.
    pub fn reserve_ports(&self, ports: &[HostPort]) -> Result<(), DatapathError> {
        self.change_ports(ports, true)?;
        self.clear_udp(ports)
    }

    /// Lets translations have the ports again, except those that are `kept` by another pod or by the node itself.
    pub fn free_ports(&self, ports: &[HostPort], kept: &[HostPort]) -> Result<(), DatapathError> {
        if ports.is_empty() {
            return Ok(());
        }
        let by_node = Settings::noted(&self.root).reserved(&Sysctls::read());
        let is_free = |port: &&HostPort| {
            !kept.contains(port) && !by_node.iter().any(|range| range.contains(&port.port))
        };
        let free: Vec<HostPort> = ports.iter().filter(is_free).copied().collect();
        self.change_ports(&free, false)?;
        self.clear_udp(ports)
    }

    /// Makes what the settings reserve and what the pods' endpoints have the whole of what no translated flow may take.
    /// Returns whether anything had to be changed. Endpoints that cannot be read reserve nothing new and free nothing.
    pub(crate) fn reserve_by(&self, settings: &Settings, sysctls: &Sysctls) -> Result<bool, DatapathError> {
        let _changing = self.lock_ports()?;
        // Read under the lock: a port is noted before it is reserved.
        let Ok(state) = endpoints::snapshot(&self.root) else {
            return Ok(false);
        };
        let state = state.unwrap_or_default();
        let of_pods: Vec<HostPort> = state
            .endpoints()
            .flat_map(|(_, endpoint)| endpoint.host_ports.iter().copied())
            .collect();
        self.tables.set_ports(&settings.reserved(sysctls), &of_pods)
    }

    fn change_ports(&self, ports: &[HostPort], reserved: bool) -> Result<(), DatapathError> {
        if ports.is_empty() {
            return Ok(());
        }
        let _changing = self.lock_ports()?;
        self.tables.change_ports(ports, reserved)
    }

    fn lock_ports(&self) -> Result<File, DatapathError> {
        let path = self.root.path("/run/causeway/ports.lock");
        lock(&path).map_err(|source| DatapathError::file(path, source))
    }

    /// Deletes the flow entries that have one of the UDP ports at the node's address, with their other halves.
    fn clear_udp(&self, ports: &[HostPort]) -> Result<(), DatapathError> {
        let udp: Vec<[u8; 2]> = ports
            .iter()
            .filter(|port| port.is_udp)
            .map(|port| port.port.to_be_bytes())
            .collect();
        if udp.is_empty() {
            return Ok(());
        }
        let node = self.config()?.node_addr;
        let mut flows = self.tables.flows()?;
        let mut stale: Vec<Key> = Vec::new();
        flows.for_each(|key, entry| {
            let at_node = |addr: [u8; 4], port: [u8; 2]| addr == node && udp.contains(&port);
            let mentions = at_node(key.src, key.src_port)
                || at_node(key.dst, key.dst_port)
                || at_node(entry.nat_addr, entry.nat_port);
            if key.protocol == UDP && mentions {
                stale.extend([key, entry.peer_key(&key)]);
            }
        })?;
        for key in stale {
            flows.remove(&key)?;
        }
        Ok(())
    }
}

/// A word of the bitmap holds 64 ports: two pods must not change it at the same time.
fn lock(path: &Path) -> io::Result<File> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let file = File::options().create(true).append(true).open(path)?;
    file.lock()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_kept_with_its_protocol() {
        let ports = [
            HostPort {
                is_udp: false,
                port: 80,
            },
            HostPort {
                is_udp: true,
                port: 53,
            },
        ];
        let text = serde_json::to_string(&ports).unwrap();
        assert_eq!(
            text,
            r#"[{"Protocol":"tcp","Port":80},{"Protocol":"udp","Port":53}]"#
        );
        assert_eq!(serde_json::from_str::<Vec<HostPort>>(&text).unwrap(), ports);
        assert!(serde_json::from_str::<HostPort>(r#"{"Protocol":"sctp","Port":80}"#).is_err());
    }
}
