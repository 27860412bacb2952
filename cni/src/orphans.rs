//! Addresses whose pods are gone without a DEL, as `ctr run -d` leaves them: the interface goes with the container's
//! namespace, the lease stays.

use std::time::Duration;

use causeway::{
    leases::{self, Lease, Standing},
    links::Netlink,
    root::Root,
};

use crate::{attachment, del, error::CniError};

/// Makes an attempt; and another one if it found no free address and some were those of pods that are gone.
pub(crate) fn making_room(
    root: &Root,
    mut attempt: impl FnMut() -> Result<(), CniError>,
) -> Result<(), CniError> {
    match attempt() {
        Err(error) if error.is_exhaustion => match collect(root) {
            0 => Err(error),
            _ => attempt(),
        },
        done => done,
    }
}

/// Disconnects what is left of pods whose interface is gone. Returns how many that were. Attachments that a call is
/// under way for are left alone. Not to be called with an attachment's lock held.
pub(crate) fn collect(root: &Root) -> usize {
    let leases = match leases::audit(root) {
        Ok(leases) => leases,
        Err(error) => {
            tracing::warn!(%error, "cannot look for addresses without a pod");
            return 0;
        }
    };
    let orphans = leases.iter().filter(|lease| lease.standing == Standing::Orphaned);
    orphans.filter(|orphan| remove(root, orphan)).count()
}

fn remove(root: &Root, orphan: &Lease) -> bool {
    let Ok(_alone) = attachment::lock_within(root, &orphan.key, Duration::ZERO) else {
        return false;
    };
    let container = &orphan.key.container;
    match disconnect(root, orphan) {
        Ok(Some(addresses)) => {
            tracing::warn!(
                container,
                addresses,
                "a pod was gone without a DEL: its address is free"
            );
            true
        }
        Ok(None) => false,
        Err(error) => {
            tracing::warn!(container, error = error.msg, "cannot collect an address");
            false
        }
    }
}

/// An ADD may have made the interface since it was looked for.
fn disconnect(root: &Root, orphan: &Lease) -> Result<Option<String>, CniError> {
    if Netlink::new()?.link(&orphan.host_if)?.is_some() {
        return Ok(None);
    }
    // The hooks have gone with the interface: there is nothing to wait for.
    let addresses = del::disconnect(root, &orphan.key, &orphan.host_if, false)?;
    Ok(Some(del::list(&addresses)))
}
