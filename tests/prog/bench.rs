//! One node's programs and maps, loaded for one test and pinned nowhere, with the interfaces that packets claim to
//! come from.

mod family;
mod tables;
mod xdp;

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{PerCpuArray, RingBuf},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use causeway_common::{
    event::Event,
    maps::{Count, PodEntry},
    reason::{Reason, Verdict},
};
use causeway_tests::netns::Netns;

pub(crate) use self::{
    family::{Family, of_both_families},
    tables::{Entry, Key, key},
};
use crate::packets::{Link, Mac};

pub(crate) const TC_ACT_UNSPEC: i32 = -1;
pub(crate) const TC_ACT_SHOT: i32 = 2;
pub(crate) const TC_ACT_REDIRECT: i32 = 7;

pub(crate) const NODE: Ipv4Addr = <Ipv4Addr as Family>::NODE;
pub(crate) const INTERNET: Ipv4Addr = <Ipv4Addr as Family>::INTERNET;
pub(crate) const VNET_HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// The next hop behind the uplink.
pub(crate) const ROUTER_MAC: Mac = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc];
pub(crate) const MTU: u16 = 1500;

/// The hook of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    FromPod,
    ToPod,
    FromUplink,
    ToUplink,
}

impl Hook {
    pub(crate) const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromUplink, Self::ToUplink];

    pub(crate) fn of(self, count: &Count) -> u64 {
        match self {
            Self::FromPod => count.from_pod,
            Self::ToPod => count.to_pod,
            Self::FromUplink => count.from_uplink,
            Self::ToUplink => count.to_uplink,
        }
    }
}

/// A pod of the bench.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pod<F = Ipv4Addr> {
    pub(crate) addr: F,
    pub(crate) ifindex: u32,
    pub(crate) mac: Mac,
    pub(crate) host_mac: Mac,
}

impl<F> Pod<F> {
    /// Frame addresses of a packet that the pod sends.
    pub(crate) fn sends(&self) -> Link {
        (self.mac, self.host_mac)
    }
}

/// The outcome of one run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) packet: Vec<u8>,
    /// The one reason with a verdict whose counter moved.
    pub(crate) reason: Reason,
    /// Reasons without a verdict whose counters moved.
    pub(crate) noted: Vec<Reason>,
}

/// Of IPv4, unless its type says another family.
pub(crate) struct Bench<F = Ipv4Addr> {
    object: Ebpf,
    pub(crate) ns: Arc<Netns>,
    pub(crate) a: Pod<F>,
    pub(crate) b: Pod<F>,
    pub(crate) uplink_ifindex: u32,
    pub(crate) uplink_mac: Mac,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with_flow_entries(4096)
    }

    /// A bench whose flow table holds `flow_entries`.
    pub(crate) fn with_flow_entries(flow_entries: u32) -> Self {
        let mut bench = Self::of(flow_entries);
        bench.load_xdp();
        bench
    }
}

impl<F: Family> Bench<F> {
    /// A bench of either family, without XDP. Its flow table holds `flow_entries`.
    pub(crate) fn of(flow_entries: u32) -> Self {
        let ns = Arc::new(Netns::new().unwrap());
        ns.ip("link add eth0 type veth peer name wire\nlink add podA type veth peer name inA\nlink add podB type veth peer name inB")
            .unwrap();
        ns.ip("link set eth0 up\nlink set wire up\nlink set podA up\nlink set podB up\nlink set inA up\nlink set inB up")
            .unwrap();
        ns.sysctl("net/ipv6/conf/eth0/disable_ipv6", "0").unwrap();
        ns.ip(&format!("addr add {}/{} dev eth0", F::NODE, F::SUBNET_BITS))
            .unwrap();
        let object = EbpfLoader::new()
            .map_max_entries(&name_of::<F>("cwy_flows"), flow_entries)
            .load(F::object())
            .unwrap();
        let pod = |addr: F, host: &str, inside: &str| Pod {
            addr,
            ifindex: ns.ifindex(host).unwrap(),
            mac: ns.mac(inside).unwrap(),
            host_mac: ns.mac(host).unwrap(),
        };
        let mut bench = Self {
            a: pod(F::PODS[0], "podA", "inA"),
            b: pod(F::PODS[1], "podB", "inB"),
            uplink_ifindex: ns.ifindex("eth0").unwrap(),
            uplink_mac: ns.mac("eth0").unwrap(),
            object,
            ns,
        };
        for hook in Hook::ALL {
            let program: &mut SchedClassifier = bench
                .object
                .program_mut(F::program(hook))
                .unwrap()
                .try_into()
                .unwrap();
            program.load().unwrap();
        }
        bench.configure(F::NODE);
        for pod in [bench.a, bench.b] {
            bench.register(&pod, PodEntry::READY);
        }
        for (range, bits) in F::EXCLUDED {
            bench.exclude(range.octets(), *bits);
        }
        bench
    }

    /// Seconds of the clock that the programs use.
    #[expect(clippy::unused_self, reason = "reads like the bench's clock")]
    pub(crate) fn now(&self) -> u32 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        u32::try_from(now.tv_sec).unwrap()
    }

    /// Runs a packet through a hook of an interface. Exactly one reason with a verdict must be counted, and the
    /// action must be the verdict's.
    pub(crate) fn run(&mut self, hook: Hook, ifindex: u32, packet: &[u8]) -> Ran {
        self.run_forwarded(hook, ifindex, 0, packet)
    }

    /// As [`Self::run`], for a packet that the stack forwards: it arrived on the interface `from`.
    pub(crate) fn run_forwarded(&mut self, hook: Hook, ifindex: u32, from: u32, packet: &[u8]) -> Ran {
        let before = self.counts(hook);
        let mut out = vec![0; packet.len() + 256];
        // `struct __sk_buff` (Linux 6.18): `ingress_ifindex` stands at offset 36 and `ifindex` at 40.
        let mut context = [0u8; 192];
        context[36..40].copy_from_slice(&from.to_ne_bytes());
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        let program: &SchedClassifier = self.object.program(F::program(hook)).unwrap().try_into().unwrap();
        let result = self
            .ns
            .run(|| {
                program.test_run(TestRunOptions {
                    data_in: Some(packet),
                    data_out: Some(&mut out),
                    ctx_in: Some(&context),
                    ..TestRunOptions::new()
                })
            })
            .unwrap()
            .unwrap();
        out.truncate(result.data_size_out as usize);
        let after = self.counts(hook);
        let moved = |reason: &Reason| after[*reason as usize] - before[*reason as usize];
        let (verdicts, noted): (Vec<_>, Vec<_>) = Reason::ALL
            .iter()
            .copied()
            .filter(|reason| moved(reason) != 0)
            .partition(|reason| reason.verdict() != Verdict::Noted);
        let [reason] = verdicts[..] else {
            panic!("{hook:?} counted {verdicts:?}, not one verdict")
        };
        assert_eq!(moved(&reason), 1, "{reason:?}");
        let action = result.return_value.cast_signed();
        let expected = match reason.verdict() {
            Verdict::Carried | Verdict::Refused => TC_ACT_REDIRECT,
            Verdict::Stack => TC_ACT_UNSPEC,
            Verdict::Dropped => TC_ACT_SHOT,
            Verdict::Noted => unreachable!("partitioned away"),
        };
        assert_eq!(action, expected, "action of {reason:?}");
        Ran {
            packet: out,
            reason,
            noted,
        }
    }

    /// Descriptor of a program, open as long as the bench is.
    pub(crate) fn program_fd(&self, hook: Hook) -> i32 {
        let program: &SchedClassifier = self.object.program(F::program(hook)).unwrap().try_into().unwrap();
        program.fd().unwrap().as_fd().as_raw_fd()
    }

    /// Verifier instructions of a program.
    pub(crate) fn verified_instructions(&self, hook: Hook) -> u32 {
        let program: &SchedClassifier = self.object.program(F::program(hook)).unwrap().try_into().unwrap();
        program.info().unwrap().verified_instruction_count().unwrap()
    }

    /// How often a hook has given each reason, in the order of [`Reason::ALL`].
    pub(crate) fn counts(&self, hook: Hook) -> Vec<u64> {
        let counts = PerCpuArray::<_, Count>::try_from(self.object.map("cwy_count").unwrap()).unwrap();
        let total = |index| {
            counts
                .get(&index, 0)
                .unwrap()
                .iter()
                .map(|count| hook.of(count))
                .sum()
        };
        (0..Reason::ALL.len() as u32).map(total).collect()
    }

    /// The events that nobody has read yet.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        let mut ring = RingBuf::try_from(self.map("cwy_events")).unwrap();
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            // SAFETY: the programs write nothing but events into this ring.
            events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
        events
    }

    pub(crate) fn map(&mut self, name: &str) -> &mut aya::maps::Map {
        self.object.map_mut(name).unwrap()
    }

    /// The map of the family, by the name of IPv4's.
    fn own_map(&mut self, name: &str) -> &mut aya::maps::Map {
        self.map(&name_of::<F>(name))
    }
}

fn name_of<F: Family>(map: &str) -> String {
    format!("{map}{}", F::MAP_SUFFIX)
}
