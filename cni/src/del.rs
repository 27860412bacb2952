//! `azure-vnet` DEL: everything of an attachment goes, however much of it is there. The address is given back last, and
//! only when nothing answers to it any more.

use std::net::IpAddr;

use causeway::attachments;

use crate::{Call, attachment, error::CniError, invocation::Verb, summary::Summary, sweep};

/// Disconnects the pod. Nothing to disconnect is success.
pub(crate) fn run(call: &Call<'_>, summary: &mut Summary) -> Result<(), CniError> {
    let Call {
        root,
        invocation,
        conf,
        ..
    } = call;
    let key = attachment::key(invocation, conf);
    {
        let _alone = attachment::lock(root, &key)?;
        let host_if = attachment::host_interface(invocation, conf);
        let addresses = attachments::disconnect(root, &key, &host_if, conf.expedite)?;
        summary.ip = list(&addresses);
        if conf.delegates() {
            call.delegate().and_then(|delegate| delegate.call(Verb::Del))?;
        }
    }
    sweep::after_del(root);
    Ok(())
}

/// For the log.
pub(crate) fn list(addresses: &[IpAddr]) -> String {
    addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}
