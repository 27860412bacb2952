//! Takes programs off their hooks, however the kernel holds them there.

use anyhow::Result;
use causeway_common::maps::SCHEMA;
use causeway_tests::rig::Rig;

/// Takes a program off its hook as others can: a link is detached, its pin stays and nothing hangs on it; a filter is deleted.
pub(crate) fn take_off(rig: &Rig, interface: &str, direction: &str) -> Result<()> {
    let owner = if interface == "eth0" { "uplink" } else { interface };
    let pin = rig.node.root.join(&format!(
        "/sys/fs/bpf/causeway/v{SCHEMA}/links/{owner}_{direction}"
    ));
    let ns = &rig.node.ns;
    if pin.exists() {
        let pin = pin.display().to_string();
        return ns
            .output("bpftool", &["link", "detach", "pinned", &pin])
            .map(drop);
    }
    ns.output(
        "tc",
        &["filter", "del", "dev", interface, direction, "pref", "50"],
    )
    .map(drop)
}
