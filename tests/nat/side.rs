//! A side of a comparison: the same node and surroundings with Causeway or with the rule that it replaces.

use std::{net::Ipv4Addr, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use causeway_tests::{
    fabric::INTERNET,
    netns::Netns,
    node::{Datapath, Pod},
    ping::Pinger,
    rig::Rig,
    rules,
};

/// A second address of the internet's host.
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);

/// How long silence is listened to. Whatever is on its way takes some hundred microseconds.
pub(crate) const A_WHILE: Duration = Duration::from_millis(150);

/// A node with a pod.
pub(crate) struct Side {
    pub(crate) rig: Rig,
    pub(crate) pod: Pod,
    datapath: Datapath,
}

/// What Causeway does and what nf_nat does, in this order, seen by the same observation at the same time.
pub(crate) fn both<T: Send>(observe: impl Fn(&Side) -> Result<T> + Sync) -> Result<[T; 2]> {
    both_with(&[], observe)
}

/// What both do; fails where they differ.
pub(crate) fn agree<T: Send + PartialEq + std::fmt::Debug>(
    observe: impl Fn(&Side) -> Result<T> + Sync,
) -> Result<T> {
    let [causeway, nf_nat] = both(observe)?;
    ensure!(causeway == nf_nat, "Causeway: {causeway:?}, nf_nat: {nf_nat:?}");
    Ok(causeway)
}

/// As [`both`], with sysctls that are set before the first pod comes.
pub(crate) fn both_with<T: Send>(
    sysctls: &[(&str, &str)],
    observe: impl Fn(&Side) -> Result<T> + Sync,
) -> Result<[T; 2]> {
    let on = |datapath| {
        let side = Side::new(datapath, sysctls)?;
        observe(&side).with_context(|| format!("{datapath:?}"))
    };
    thread::scope(|scope| {
        let nf_nat = scope.spawn(|| on(Datapath::RoutedMasquerade));
        let causeway = on(Datapath::Causeway)?;
        let nf_nat = nf_nat
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok([causeway, nf_nat])
    })
}

impl Side {
    fn new(datapath: Datapath, sysctls: &[(&str, &str)]) -> Result<Self> {
        let rig = if datapath.is_causeway() {
            let rig = Rig::causeway()?;
            // As on every node with kube-proxy: conntrack is at work, and what it cannot place is not forwarded.
            rules::forbid_invalid(&rig.node.ns)?;
            rig
        } else {
            Rig::unwatched(datapath, 20)?
        };
        rig.fabric
            .internet
            .ip(&format!("addr add {SECOND}/24 dev eth0"))?;
        // Nobody is told less because somebody else was told before.
        for ns in [&rig.node.ns, &rig.fabric.router, &rig.fabric.internet] {
            ns.sysctl("net/ipv4/icmp_ratelimit", "0")?;
        }
        for (key, value) in sysctls {
            rig.node.ns.sysctl(key, value)?;
        }
        let pod = rig.pod("a")?;
        Ok(Self { rig, pod, datapath })
    }

    pub(crate) fn is_causeway(&self) -> bool {
        self.datapath.is_causeway()
    }

    /// The host outside, with the addresses [`INTERNET`] and [`SECOND`].
    pub(crate) fn internet(&self) -> &Netns {
        &self.rig.fabric.internet
    }

    /// Returns when everything that was sent before has been dealt with.
    pub(crate) fn settle(&self) -> Result<()> {
        const ID: u16 = 0x5e77;
        Pinger::new(&self.pod.ns, ID)?.ping(INTERNET, 1, 8)?;
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}
