//! The far end: counts what arrives as it should, checks every 64th packet's checksums, and drops it.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use aya::{
    maps::PerCpuArray,
    programs::{TcAttachType, XdpMode},
};
use causeway_tests::netns::Netns;

use crate::{
    family::{Family, octets},
    programs::{
        Programs,
        layout::{Counted, Expect, Words},
    },
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
    pub(crate) src: (IpAddr, u32),
    /// Destination, of the same family, and prefix length.
    pub(crate) dst: (IpAddr, u32),
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

    /// Counts other packets from here on, in the same sums.
    pub(crate) fn expect(&mut self, wanted: Wanted) -> Result<()> {
        self.0.set("cwb_expect", wanted.expect())
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
        let mask = |bits: u32| u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        Expect {
            src: words(&octets(self.src.0)),
            src_mask: words(&mask(self.src.1).to_be_bytes()),
            dst: words(&octets(self.dst.0)),
            dst_mask: words(&mask(self.dst.1).to_be_bytes()),
            is_ipv6: (Family::of(self.src.0) == Family::V6).into(),
            verify: self.verify.into(),
        }
    }
}

/// Up to sixteen bytes in words, as they are in memory.
fn words(bytes: &[u8]) -> Words {
    let mut words = Words::default();
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_beyond_the_prefix_do_not_matter() {
        let expect = |addr: &str, bits| {
            let end = (addr.parse().unwrap(), bits);
            Wanted {
                src: end,
                dst: end,
                verify: false,
            }
            .expect()
        };
        let of_ipv4 = expect("10.1.2.3", 16);
        assert_eq!(of_ipv4.src[0].to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(of_ipv4.src_mask[0].to_ne_bytes(), [255, 255, 0, 0]);
        assert_eq!(of_ipv4.is_ipv6, 0);

        let of_ipv6 = expect("fd00:10::1:10", 120);
        assert_eq!(of_ipv6.dst[3].to_ne_bytes(), [0, 1, 0, 0x10]);
        assert_eq!(of_ipv6.dst_mask[2], u32::MAX);
        assert_eq!(of_ipv6.dst_mask[3].to_ne_bytes(), [255, 255, 255, 0]);
        assert_eq!(of_ipv6.is_ipv6, 1);
    }
}
