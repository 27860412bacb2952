//! The attachment of a call, and the name of its host interface.

use causeway::{
    attachments::{self, PATIENCE, interface_of, veth_name},
    durable::KeyLock,
    endpoints::Key,
    root::Root,
};

use crate::{
    error::CniError,
    invocation::Invocation,
    netconf::{Mode, NetConf},
};

/// The attachment of a call.
pub(crate) fn key(invocation: &Invocation, conf: &NetConf) -> Key {
    Key {
        network: conf.name.clone(),
        container: invocation.container.clone(),
        interface: invocation.interface.clone(),
    }
}

/// [`attachments::lock`], as long as a call waits.
pub(crate) fn lock(root: &Root, key: &Key) -> Result<KeyLock, CniError> {
    Ok(attachments::lock(root, key, PATIENCE)?)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
