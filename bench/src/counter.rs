//! The far end: counts what arrives as it should, checks every 64th packet's checksums, and drops it.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use aya::{
    maps::PerCpuArray,
    programs::{TcAttachType, XdpMode},
};
use causeway_tests::netns::Netns;

use crate::programs::{
    Programs,
    layout::{Counted, Expect},
};

/// How long packets may be under way after their sender has come back.
const SETTLE: Duration = Duration::from_millis(200);

/// A counter on an interface. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Counter(Programs);

/// Where in the interface's receive path the packets are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// In the driver: costs the least.
    Xdp,
    /// At tc ingress: sees what `bpf_redirect_peer` delivers too, and does not copy a socket's packets first.
    Tc,
    /// In the driver what arrives there as a frame, at tc ingress what `bpf_redirect_peer` delivers.
    Either,
}

/// Which packets count: their addresses, by prefix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Source and prefix length.
    pub(crate) src: (Ipv4Addr, u32),
    /// Destination and prefix length.
    pub(crate) dst: (Ipv4Addr, u32),
    /// Whether every 64th packet's checksums are checked. Not those of sockets: they may be left to the hardware.
    pub(crate) verify: bool,
}

impl Counter {
    /// Counts on an interface of `ns` from here on.
    pub(crate) fn new(ns: &Netns, interface: &str, at: At, wanted: Wanted) -> Result<Self> {
        let mut programs = Programs::load()?;
        programs.set("cwb_expect", wanted.expect())?;
        if at != At::Tc {
            let program = programs.xdp("cwb_count_xdp")?;
            ns.run(|| program.attach(interface, XdpMode::Driver))??;
        }
        if at != At::Xdp {
            let program = programs.tc("cwb_count_tc")?;
            ns.run(|| program.attach(interface, TcAttachType::Ingress))??;
        }
        Ok(Self(programs))
    }

    /// Everything so far, over all CPUs.
    pub(crate) fn read(&mut self) -> Result<Counted> {
        let counted = PerCpuArray::<_, Counted>::try_from(self.0.map("cwb_counted")?)?;
        let mut total = Counted::default();
        for one in counted.get(&0, 0).context("cannot read the counter")?.iter() {
            total.packets += one.packets;
            total.bytes += one.bytes;
            total.bad += one.bad;
        }
        Ok(total)
    }

    /// As [`Self::read`], after `packets` more than in `before` have arrived, or have had time enough.
    pub(crate) fn settled(&mut self, before: Counted, packets: u64) -> Result<Counted> {
        let step = Duration::from_micros(200);
        let mut waited = Duration::ZERO;
        loop {
            let now = self.read()?;
            if now.packets - before.packets >= packets || waited >= SETTLE {
                return Ok(now);
            }
            std::thread::sleep(step);
            waited += step;
        }
    }
}

impl Wanted {
    fn expect(&self) -> Expect {
        let mask = |bits: u32| u32::MAX.checked_shl(32 - bits).unwrap_or(0).to_be();
        Expect {
            src: self.src.0.to_bits().to_be(),
            src_mask: mask(self.src.1),
            dst: self.dst.0.to_bits().to_be(),
            dst_mask: mask(self.dst.1),
            verify: self.verify.into(),
        }
    }
}
