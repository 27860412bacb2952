//! Addresses whose pods are gone without a DEL, as `ctr run -d` leaves them: the interface goes with the container's
//! namespace, the lease stays.

use std::time::Duration;

use causeway::{
    endpoints::{Key, State},
    ipam::{pool::Held, store},
    links::Netlink,
    root::Root,
};

use crate::{add, attachment, del, error::CniError};

/// Disconnects what is left of pods whose interface is gone. Returns how many that were. Attachments that a call is
/// under way for are left alone. Not to be called with an attachment's lock held.
pub(crate) fn collect(root: &Root) -> usize {
    let collected = find(root).map(|orphans| orphans.iter().filter(|orphan| orphan.remove(root)).count());
    collected.unwrap_or_else(|error| {
        tracing::warn!(error = error.msg, "cannot look for addresses without a pod");
        0
    })
}

/// A lease whose interface is gone.
struct Orphan {
    key: Key,
    host_if: String,
}

fn find(root: &Root) -> Result<Vec<Orphan>, CniError> {
    let (space, state) = (store::snapshot(root)?, add::known_endpoints(root)?);
    let mut orphans: Vec<Orphan> = space.held().filter_map(|held| orphan(&held, &state)).collect();
    if !orphans.is_empty() {
        let links = Netlink::new()?.links()?;
        orphans.retain(|orphan| !links.iter().any(|link| link.name == orphan.host_if));
    }
    Ok(orphans)
}

/// A lease without an interface is somebody else's, who called `azure-vnet-ipam` by itself.
fn orphan(held: &Held, state: &State) -> Option<Orphan> {
    let is_it = |key: &Key| key.container == held.holder.container && key.interface == held.holder.interface;
    let noted = state.keys().find(|(key, _)| is_it(key));
    let host_if = match (&held.host_if, &noted) {
        (host_if, _) if !host_if.is_empty() => host_if.clone(),
        (_, Some((_, endpoint))) => endpoint.host_if_name.clone(),
        _ => return None,
    };
    let key = noted.map_or_else(|| attachment::key_of(held), |(key, _)| key);
    (!host_if.is_empty()).then_some(Orphan { key, host_if })
}

impl Orphan {
    fn remove(&self, root: &Root) -> bool {
        let Ok(_alone) = attachment::lock_within(root, &self.key, Duration::ZERO) else {
            return false;
        };
        let removed = self.is_still_gone().and_then(|gone| {
            if gone {
                del::disconnect(root, &self.key, &self.host_if).map(Some)
            } else {
                Ok(None)
            }
        });
        match removed {
            Ok(Some(addresses)) => {
                tracing::warn!(
                    container = self.key.container,
                    addresses = del::list(&addresses),
                    "a pod was gone without a DEL: its address is free"
                );
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(
                    container = self.key.container,
                    error = error.msg,
                    "cannot collect an address"
                );
                false
            }
        }
    }

    /// An ADD may have finished since it was looked for.
    fn is_still_gone(&self) -> Result<bool, CniError> {
        Ok(Netlink::new()?.link(&self.host_if)?.is_none())
    }
}
