//! Addresses whose pods are gone without a DEL, as `ctr run -d` leaves them: the interface goes with the container's
//! namespace, the lease stays.

use std::{net::IpAddr, time::Duration};

use super::{DisconnectError, disconnect, lock};
use crate::{
    leases::{self, Lease, Standing},
    links::Netlink,
    root::Root,
};

/// Disconnects what is left of pods whose interface is gone, if `is_due` says so. Returns how many that were. Attachments
/// that a call is under way for are left alone. Not to be called with an attachment's lock held.
pub fn collect(root: &Root, mut is_due: impl FnMut(&Lease) -> bool) -> usize {
    let leases = match leases::audit(root) {
        Ok(leases) => leases,
        Err(error) => {
            tracing::warn!(%error, "cannot look for addresses without a pod");
            return 0;
        }
    };
    let orphans = leases
        .iter()
        .filter(|lease| lease.standing == Standing::Orphaned && is_due(lease));
    orphans.filter(|orphan| remove(root, orphan)).count()
}

fn remove(root: &Root, orphan: &Lease) -> bool {
    let Ok(_alone) = lock(root, &orphan.key, Duration::ZERO) else {
        return false;
    };
    let container = &orphan.key.container;
    match end(root, orphan) {
        Ok(Some(addresses)) => {
            tracing::warn!(
                container,
                ?addresses,
                "a pod was gone without a DEL: its address is free"
            );
            true
        }
        Ok(None) => false,
        Err(error) => {
            tracing::warn!(container, %error, "cannot collect an address");
            false
        }
    }
}

/// An ADD may have made the interface since it was looked for.
fn end(root: &Root, orphan: &Lease) -> Result<Option<Vec<IpAddr>>, DisconnectError> {
    if Netlink::new()?.link(&orphan.host_if)?.is_some() {
        return Ok(None);
    }
    // The hooks have gone with the interface: there is nothing to wait for.
    disconnect(root, &orphan.key, &orphan.host_if, false).map(Some)
}
