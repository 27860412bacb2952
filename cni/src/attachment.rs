//! An attachment: one interface of one container in one network. Its names, and the lock that keeps two calls for it
//! apart.

use std::time::Duration;

use causeway::{durable::KeyLock, endpoints::Key, ipam::pool::Holder, root::Root};
use sha1::{Digest, Sha1};

use crate::{
    error::CniError,
    invocation::Invocation,
    netconf::{Mode, NetConf},
};

/// How long a call waits for another one: for the same attachment, or for the state files. Runtimes give a call two
/// minutes; after this time they had better try again.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Locks of attachments; a byte for each.
const LOCKS: &str = "/run/causeway/attachments.lock";

/// The attachment of a call.
pub(crate) fn key(invocation: &Invocation, conf: &NetConf) -> Key {
    Key {
        network: conf.name.clone(),
        container: invocation.container.clone(),
        interface: invocation.interface.clone(),
    }
}

/// The attachment as a holder of addresses.
pub(crate) fn holder(key: &Key) -> Holder {
    Holder {
        container: key.container.clone(),
        interface: key.interface.clone(),
    }
}

/// Waits until no other call for the attachment is under way. A DEL that overtakes its ADD would leave an address
/// behind, which a second pod could get while the first one answers to it.
///
/// A process has one of these at a time: to drop a second one would free the first.
pub(crate) fn lock(root: &Root, key: &Key) -> Result<KeyLock, CniError> {
    lock_within(root, key, PATIENCE)
}

/// As [`lock`], waiting at most `patience`.
pub(crate) fn lock_within(root: &Root, key: &Key, patience: Duration) -> Result<KeyLock, CniError> {
    let number = leading_bits(&format!("{}\0{}\0{}", key.network, key.container, key.interface));
    Ok(KeyLock::acquire(&root.path(LOCKS), number, patience)?)
}

/// Name of the host's end, the incumbent's: others find a pod's interface by it. In mode `transparent` it follows
/// from the pod, else from the attachment.
pub(crate) fn host_interface(invocation: &Invocation, conf: &NetConf) -> String {
    let (namespace, pod) = (invocation.namespace(), invocation.pod());
    let by_pod = conf.mode == Mode::Transparent && invocation.interface == "eth0";
    if by_pod && !namespace.is_empty() && !pod.is_empty() {
        veth_name(&format!("{namespace}.{pod}"))
    } else {
        interface_of(&key(invocation, conf))
    }
}

/// Name of the host's end where it follows from the attachment.
pub(crate) fn interface_of(key: &Key) -> String {
    veth_name(&format!("{}{}{}", key.network, key.container, key.interface))
}

/// `azv` and the first eleven hexadecimal digits of the key's SHA-1.
fn veth_name(key: &str) -> String {
    let eleven_digits = leading_bits(key) >> (64 - 11 * 4);
    format!("azv{eleven_digits:011x}")
}

/// The first 64 bits of the text's SHA-1.
fn leading_bits(text: &str) -> u64 {
    Sha1::digest(text)
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_incumbents_names() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(veth_name(&format!("azure{id}eth0")), "azvb87ebbb93f6");
        assert_eq!(
            veth_name("kube-system.metrics-server-77c8679d7d-6ksdh"),
            "azvd805fb1b0f8"
        );
    }

    #[test]
    fn the_name_follows_from_the_pod_in_mode_transparent_only() {
        let name = |mode: &str, interface: &str, args: &str| {
            let variable = |name: &str| match name {
                "CNI_COMMAND" => Some("ADD".to_owned()),
                "CNI_IFNAME" => Some(interface.to_owned()),
                "CNI_ARGS" => Some(args.to_owned()),
                "CNI_CONTAINERID" => Some("0123456789abcdef".repeat(4)),
                "CNI_NETNS" => Some("/n".to_owned()),
                _ => None,
            };
            let invocation = Invocation::read(variable).unwrap();
            let document = json!({ "cniVersion": "0.3.0", "name": "azure", "mode": mode });
            host_interface(&invocation, &NetConf::parse(&document, &invocation).unwrap())
        };
        let pod = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=metrics-server-77c8679d7d-6ksdh";
        assert_eq!(name("transparent", "eth0", pod), "azvd805fb1b0f8");
        assert_eq!(name("bridge", "eth0", pod), "azvb87ebbb93f6");
        assert_eq!(name("", "eth0", ""), "azvb87ebbb93f6");
        assert_eq!(name("transparent", "eth0", "K8S_POD_NAME=x"), "azvb87ebbb93f6");
        assert_ne!(name("transparent", "eth1", pod), "azvd805fb1b0f8");
    }
}
