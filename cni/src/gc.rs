//! GC: what is there for attachments that the runtime does not know any more goes, and nothing else.
//!
//! Only the configuration's network is looked at. A lease of the incumbent names no network: it is this network's
//! unless an endpoint of another one says otherwise.

use causeway::{
    attachments::{self, PATIENCE},
    endpoints::{self, Key, State},
    ipam::{self, pool::Held, store},
    root::Root,
};

use crate::{
    Call, attachment, del,
    delegate::Delegate,
    error::{CniError, code},
    invocation::Verb,
    sweep,
};

/// `azure-vnet`. Without a list of valid attachments nothing is done.
pub(crate) fn run(call: &Call<'_>) -> Result<(), CniError> {
    let Some(valid) = &call.conf.valid else {
        return Ok(());
    };
    let delegate = if call.conf.delegates() {
        Some(call.delegate()?)
    } else {
        None
    };
    let state = endpoints::readable(call.root)?;
    let mut failures = Vec::new();
    for (key, host_if) in attachments(call.root, &call.conf.name, &state)? {
        if !is_valid(&key, valid)
            && let Err(error) = collect(call, &key, &host_if, delegate.as_ref())
        {
            failures.push(format!("{} {}: {}", key.container, key.interface, error.msg));
        }
    }
    if let Some(delegate) = delegate {
        delegate.call(Verb::Gc)?;
    }
    sweep::leftovers(call.root);
    if failures.is_empty() {
        return Ok(());
    }
    Err(CniError::new(
        code::TRY_AGAIN,
        format!("GC is incomplete: {}", failures.join("; ")),
    ))
}

/// `azure-vnet-ipam`.
pub(crate) fn ipam(call: &Call<'_>) -> Result<(), CniError> {
    let Some(valid) = &call.conf.valid else {
        return Ok(());
    };
    let state = State::default();
    for (key, _) in attachments(call.root, &call.conf.name, &state)? {
        if !is_valid(&key, valid) {
            let freed = ipam::release(call.root, PATIENCE, &attachments::holder(&key), &[])?;
            tracing::info!(
                container = key.container,
                addresses = del::list(&freed),
                "collected"
            );
        }
    }
    sweep::leftovers(call.root);
    Ok(())
}

fn is_valid(key: &Key, valid: &[(String, String)]) -> bool {
    valid
        .iter()
        .any(|(container, interface)| *container == key.container && *interface == key.interface)
}

fn collect(
    call: &Call<'_>,
    key: &Key,
    host_if: &str,
    delegate: Option<&Delegate<'_>>,
) -> Result<(), CniError> {
    let _alone = attachment::lock(call.root, key)?;
    let freed = attachments::disconnect(call.root, key, host_if, call.conf.expedite)?;
    if let Some(delegate) = delegate {
        delegate.del(key)?;
    }
    tracing::info!(
        container = key.container,
        interface = key.interface,
        addresses = del::list(&freed),
        "collected"
    );
    Ok(())
}

/// What the network has, by its endpoints and by its leases; and the name of each host's end.
fn attachments(root: &Root, network: &str, state: &State) -> Result<Vec<(Key, String)>, CniError> {
    let of_network = state.keys().filter(|(key, _)| key.network == network);
    let mut found: Vec<(Key, String)> = of_network
        .map(|(key, endpoint)| (key, endpoint.host_if_name.clone()))
        .collect();
    for held in store::snapshot(root)?.held() {
        let key = Key {
            network: network.to_owned(),
            ..held.key()
        };
        if is_of(&held, network, state) && !found.iter().any(|(known, _)| *known == key) {
            let host_if = match held.host_if.as_str() {
                "" => attachments::interface_of(&key),
                noted => noted.to_owned(),
            };
            found.push((key, host_if));
        }
    }
    Ok(found)
}

fn is_of(held: &Held, network: &str, state: &State) -> bool {
    if !held.network.is_empty() {
        return held.network == network;
    }
    let is_it = |key: &Key| key.container == held.holder.container && key.interface == held.holder.interface;
    !state.keys().any(|(key, _)| key.network != network && is_it(&key))
}
