//! Sweeping by the way: there is no daemon that would. Of flows the library decides whether it is due. No call fails for it.

use causeway::{
    attachments::orphans,
    datapath::{self, Datapath, DatapathError, Occasion, Swept},
    durable, endpoints,
    ipam::store,
    root::Root,
};

/// After a DEL that has done its work. Nobody waits for its pod. When the flows were due, so are the addresses of pods
/// that are gone. Not to be called with an attachment's lock held.
pub(crate) fn after_del(root: &Root) {
    let swept = datapath::is_sweep_due(root).and_then(|is_due| {
        let datapath = if is_due { Datapath::open(root)? } else { None };
        datapath.map_or(Ok(None), |datapath| datapath.sweep_if_needed(Occasion::Del))
    });
    if let Ok(Some(_)) = swept {
        orphans::collect(root, |_| true);
    }
    log(swept);
    leftovers(root);
}

/// What a killed call has left of a state file that was being written: the call that repeats it may have nothing to write.
pub(crate) fn leftovers(root: &Root) {
    for state in [endpoints::STATE, store::STATE] {
        if let Err(error) = durable::tidy(&root.path(state)) {
            tracing::warn!(%error, state, "cannot remove what a killed call has left");
        }
    }
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
