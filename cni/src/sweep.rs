//! Sweeping flows by the way: there is no daemon that would. The library decides whether it is due; no call fails for it.

use causeway::{
    datapath::{Datapath, DatapathError, Occasion, Swept},
    root::Root,
};

use crate::orphans;

/// After a DEL that has done its work. Nobody waits for its pod. When the flows were due, so are the addresses of pods
/// that are gone. Not to be called with an attachment's lock held.
pub(crate) fn after_del(root: &Root) {
    let swept = Datapath::open(root).and_then(|datapath| match datapath {
        Some(datapath) => datapath.sweep_if_needed(Occasion::Del),
        None => Ok(None),
    });
    if let Ok(Some(_)) = swept {
        orphans::collect(root);
    }
    log(swept);
}

/// After an ADD whose result is printed: only a table that fills up is worth the time for which the runtime waits.
pub(crate) fn after_add(datapath: &Datapath) {
    log(datapath.sweep_if_needed(Occasion::Add));
}

fn log(swept: Result<Option<Swept>, DatapathError>) {
    match swept {
        Ok(Some(Swept { scanned, deleted, .. })) => tracing::info!(scanned, deleted, "flows were swept"),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cannot sweep the flows"),
    }
}
