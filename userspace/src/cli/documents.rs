//! What the command line shows, as JSON by name: for the agent's socket.

use causeway::root::Root;

use super::{Failure, config, leases, open, output, pods, ranges, status};

/// The names.
pub(crate) const NAMES: [&str; 5] = ["status", "pods", "ranges", "leases", "config"];

/// The document `name`; `None` if there is none of that name.
pub(crate) fn json(name: &str, root: &Root) -> Option<Result<Vec<u8>, Failure>> {
    Some(match name {
        "status" => status::gather(root, true).and_then(|report| output::json(&report)),
        "pods" => open(root)
            .and_then(|datapath| pods::gather(&datapath))
            .and_then(|report| output::json(&report)),
        "ranges" => open(root)
            .and_then(|datapath| ranges::gather(&datapath))
            .and_then(|report| output::json(&report)),
        "leases" => leases::gather(root, false).and_then(|report| output::json(&report)),
        "config" => config::gather(root).and_then(|report| output::json(&report)),
        _ => return None,
    })
}
