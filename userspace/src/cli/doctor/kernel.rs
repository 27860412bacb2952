//! What the kernel can do, and what it is set to.

use super::{
    Code, Finding, Snapshot,
    snapshot::{Kernel, Pinned},
};

/// `rp_filter`: the way back must lead through the interface of arrival (RFC 3704 section 2.2).
const STRICT: u8 = 1;

pub(super) fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let (kernel, mut found) = (&snapshot.kernel, Vec::new());
    if kernel.has_loops == Some(false) {
        found.push(Finding::new(
            Code::NoPrograms,
            format!(
                "Linux {} does not know the helper bpf_loop",
                rustix::system::uname().release().to_string_lossy()
            ),
        ));
    }
    if !kernel.has_btf {
        found.push(Finding::new(Code::NoBtf, "there is no /sys/kernel/btf/vmlinux"));
    }
    let serves = !snapshot.endpoints().is_empty() || !matches!(snapshot.datapath, Pinned::Absent);
    if serves && !kernel.forwards {
        found.push(Finding::new(Code::NotForwarding, "net.ipv4.ip_forward is 0"));
    }
    if let Some(uplink) = snapshot.uplink() {
        // The greater of both is in force (ip-sysctl.rst of Linux 6.18).
        let own = kernel.source_checks.get(&uplink.name).copied().unwrap_or(0);
        if kernel.source_check_of_all.max(own) == STRICT {
            let about = format!(
                "rp_filter is {} for all interfaces and {own} for {}",
                kernel.source_check_of_all, uplink.name
            );
            found.push(Finding::new(Code::StrictSourceCheck, about).with("INTERFACE", &uplink.name));
        }
    }
    found
}

/// What is not wrong, but less than a later kernel has.
pub(super) fn lacks(kernel: &Kernel) -> Vec<&'static str> {
    let mut lacks = Vec::new();
    if kernel.has_tcx == Some(false) {
        lacks.push("tcx (Linux 6.6): the programs are filters at a clsact qdisc, and go with it when somebody removes it");
    }
    lacks
}
