//! The incumbent's command `GET_ENDPOINT_STATE`: every endpoint, in its form.

use causeway::{endpoints, go_json::ip_net, root::Root};
use serde_json::{Map, Value, json};

use crate::error::CniError;

/// The object to print.
pub(crate) fn dump(root: &Root) -> Result<Value, CniError> {
    let state = endpoints::readable(root)?;
    let mut interfaces = Map::new();
    for (_, endpoint) in state.endpoints() {
        let addresses: Vec<Value> = endpoint.addresses().into_iter().map(ip_net).collect();
        let described = json!({
            "PodName": endpoint.pod, "PodNamespace": endpoint.namespace, "PodEndpointId": endpoint.id,
            "ContainerID": endpoint.container_id, "IPAddresses": addresses,
        });
        interfaces.insert(endpoint.id.clone(), described);
    }
    Ok(json!({ "ContainerInterfaces": interfaces }))
}
