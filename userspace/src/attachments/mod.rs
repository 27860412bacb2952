//! An attachment: one interface of one container in one network. Its names, the lock that keeps two calls for it apart,
//! and how it ends ([`disconnect`]), also without anybody who asks for it ([`orphans`]).

mod disconnect;
pub mod orphans;

use std::time::Duration;

pub use disconnect::{DisconnectError, disconnect, forget_endpoint, put_back};
use sha1::{Digest, Sha1};

use crate::{
    durable::{KeyLock, LockError},
    endpoints::Key,
    ipam::pool::Holder,
    root::Root,
};

/// How long a call waits for another one: for the same attachment, or for the state files. Runtimes give a call two
/// minutes; after this time they had better try again.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Locks of attachments; a byte for each.
const LOCKS: &str = "/run/causeway/attachments.lock";

/// The attachment as a holder of addresses.
pub fn holder(key: &Key) -> Holder {
    Holder {
        container: key.container.clone(),
        interface: key.interface.clone(),
    }
}

/// Waits until no other call for the attachment is under way, at most for `patience`. A DEL that overtakes its ADD would
/// leave an address behind, which a second pod could get while the first one answers to it.
///
/// A process has one of these at a time: to drop a second one would free the first.
pub fn lock(root: &Root, key: &Key, patience: Duration) -> Result<KeyLock, LockError> {
    let number = leading_bits(&format!("{}\0{}\0{}", key.network, key.container, key.interface));
    KeyLock::acquire(&root.path(LOCKS), number, patience)
}

/// Name of the host's end where it follows from the attachment.
pub fn interface_of(key: &Key) -> String {
    veth_name(&format!("{}{}{}", key.network, key.container, key.interface))
}

/// `azv` and the first eleven hexadecimal digits of the key's SHA-1, as the incumbent names host interfaces.
pub fn veth_name(key: &str) -> String {
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
}
