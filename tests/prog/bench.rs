//! One node's programs and maps, loaded for one test and pinned nowhere, with the interfaces that packets claim to
//! come from.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf, lpm_trie},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use causeway_common::{
    event::Event,
    flow::{Exit, Flags, FlowEntry, Nat, Progress, State},
    lifetime::Timeouts,
    maps::{
        Config, Count, IfaceEntry, POD_QUOTA, PodEntry, PortWord, RangeClass, RangeEntry, Usage, WIRE_QUOTA,
    },
    reason::{Reason, Verdict},
    tuple::FlowKey,
};
use causeway_tests::netns::Netns;

use crate::packets::{Ends, Link, Mac};

pub(crate) type Key = FlowKey<[u8; 4]>;
pub(crate) type Entry = FlowEntry<[u8; 4]>;

pub(crate) const TC_ACT_UNSPEC: i32 = -1;
pub(crate) const TC_ACT_SHOT: i32 = 2;
pub(crate) const TC_ACT_REDIRECT: i32 = 7;

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 4);
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
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

    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::FromPod => "cwy_from_pod",
            Self::ToPod => "cwy_to_pod",
            Self::FromUplink => "cwy_from_uplink",
            Self::ToUplink => "cwy_to_uplink",
        }
    }

    fn of(self, count: &Count) -> u64 {
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
pub(crate) struct Pod {
    pub(crate) addr: Ipv4Addr,
    pub(crate) ifindex: u32,
    pub(crate) mac: Mac,
    pub(crate) host_mac: Mac,
}

impl Pod {
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

pub(crate) struct Bench {
    object: Ebpf,
    pub(crate) ns: Arc<Netns>,
    pub(crate) a: Pod,
    pub(crate) b: Pod,
    pub(crate) uplink_ifindex: u32,
    pub(crate) uplink_mac: Mac,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with_flow_entries(4096)
    }

    /// A bench whose flow table holds `flow_entries`.
    pub(crate) fn with_flow_entries(flow_entries: u32) -> Self {
        let ns = Arc::new(Netns::new().unwrap());
        ns.ip("link add eth0 type veth peer name wire\nlink add podA type veth peer name inA\nlink add podB type veth peer name inB")
            .unwrap();
        ns.ip("link set eth0 up\nlink set wire up\nlink set podA up\nlink set podB up\nlink set inA up\nlink set inB up")
            .unwrap();
        ns.ip(&format!("addr add {NODE}/16 dev eth0")).unwrap();
        let object = EbpfLoader::new()
            .map_max_entries("cwy_flows", flow_entries)
            .load(causeway::datapath::OBJECT)
            .unwrap();
        let pod = |addr: [u8; 4], host: &str, inside: &str| Pod {
            addr: addr.into(),
            ifindex: ns.ifindex(host).unwrap(),
            mac: ns.mac(inside).unwrap(),
            host_mac: ns.mac(host).unwrap(),
        };
        let mut bench = Self {
            a: pod([10, 240, 0, 5], "podA", "inA"),
            b: pod([10, 240, 0, 6], "podB", "inB"),
            uplink_ifindex: ns.ifindex("eth0").unwrap(),
            uplink_mac: ns.mac("eth0").unwrap(),
            object,
            ns,
        };
        for hook in Hook::ALL {
            let program: &mut SchedClassifier = bench
                .object
                .program_mut(hook.program())
                .unwrap()
                .try_into()
                .unwrap();
            program.load().unwrap();
        }
        bench.configure(NODE);
        for pod in [bench.a, bench.b] {
            bench.register(&pod, PodEntry::READY);
        }
        bench.exclude([10, 0, 0, 0], 8);
        bench.exclude([168, 63, 129, 16], 32);
        bench
    }

    pub(crate) fn configure(&mut self, node_addr: Ipv4Addr) {
        self.configure_with(node_addr, POD_QUOTA, WIRE_QUOTA);
    }

    /// With quotas of flows, and an account for each pod and the wire.
    pub(crate) fn configure_with(&mut self, node_addr: Ipv4Addr, pod_quota: u32, wire_quota: u32) {
        let accounts = [[0; 4], self.a.addr.octets(), self.b.addr.octets()];
        for account in accounts {
            self.usages().insert(account, Usage::default(), 0).unwrap();
        }
        let config = Config {
            node_addr: node_addr.octets(),
            uplink_ifindex: self.uplink_ifindex,
            uplink_mtu: MTU.into(),
            seed: 0x5eed_5eed,
            pod_quota,
            wire_quota,
            timeouts: Timeouts::DEFAULT,
        };
        Array::<_, Config<[u8; 4]>>::try_from(self.map("cwy_cfg"))
            .unwrap()
            .set(0, config, 0)
            .unwrap();
    }

    pub(crate) fn register(&mut self, pod: &Pod, flags: u16) {
        let entry = PodEntry {
            ifindex: pod.ifindex,
            mac: pod.mac,
            host_mac: pod.host_mac,
            mtu: MTU,
            flags,
            changed: 0,
        };
        HashMap::<_, [u8; 4], PodEntry>::try_from(self.map("cwy_pods"))
            .unwrap()
            .insert(pod.addr.octets(), entry, 0)
            .unwrap();
        let iface = IfaceEntry {
            addr: pod.addr.octets(),
            mac: pod.mac,
            _pad: [0; 2],
        };
        HashMap::<_, u32, IfaceEntry<[u8; 4]>>::try_from(self.map("cwy_ifaces"))
            .unwrap()
            .insert(pod.ifindex, iface, 0)
            .unwrap();
    }

    pub(crate) fn unregister_iface(&mut self, pod: &Pod) {
        HashMap::<_, u32, IfaceEntry<[u8; 4]>>::try_from(self.map("cwy_ifaces"))
            .unwrap()
            .remove(&pod.ifindex)
            .unwrap();
    }

    pub(crate) fn exclude(&mut self, addr: [u8; 4], prefix_len: u32) {
        let entry = RangeEntry {
            class: RangeClass::EXCLUDED,
            _pad: [0; 3],
        };
        lpm_trie::LpmTrie::<_, [u8; 4], RangeEntry>::try_from(self.map("cwy_ranges"))
            .unwrap()
            .insert(&lpm_trie::Key::new(prefix_len, addr), entry, 0)
            .unwrap();
    }

    /// Reserves all ports of both protocols that `reserved` says.
    pub(crate) fn reserve(&mut self, reserved: impl Fn(u16) -> bool) {
        let mut ports = Array::<_, PortWord>::try_from(self.map("cwy_ports")).unwrap();
        for udp in [false, true] {
            for first in (0..=u16::MAX).step_by(64) {
                let bits = (0..64)
                    .filter(|bit| reserved(first + bit))
                    .fold(0, |word, bit| word | 1 << bit);
                let (index, _) = causeway_common::ports::reserved_bit(udp, first);
                ports.set(index, PortWord { reserved: bits }, 0).unwrap();
            }
        }
    }

    /// Writes a carried flow without translation from one pod to the other.
    pub(crate) fn carry_between_pods(&mut self, key: Key) {
        let (a, b) = (self.a, self.b);
        let entry = Entry {
            state: State::CARRIED,
            exit: Exit::POD,
            mtu: MTU,
            out_ifindex: b.ifindex,
            out_dst_mac: b.mac,
            out_src_mac: b.host_mac,
            ..Entry::offer(a.ifindex, a.mac, self.now())
        };
        self.insert(key, entry);
    }

    /// Writes both halves of a carried flow of pod A, translated to `port`. Returns the forward and the answer key.
    pub(crate) fn carry_translated(&mut self, ends: Ends, protocol: u8, port: u16) -> (Key, Key) {
        let (a, now) = (self.a, self.now());
        let forward_key = key(ends, protocol);
        let forward = Entry {
            state: State::CARRIED,
            nat: Nat::SOURCE,
            exit: Exit::UPLINK,
            flags: Flags::WENT_UP | Flags::CAME_OUT,
            mtu: MTU,
            out_ifindex: self.uplink_ifindex,
            out_dst_mac: ROUTER_MAC,
            out_src_mac: self.uplink_mac,
            nat_addr: NODE.octets(),
            nat_port: port.to_be_bytes(),
            ..Entry::offer(a.ifindex, a.mac, now)
        };
        let answer_key = forward.peer_key(&forward_key);
        let answer = Entry {
            state: State::CARRIED,
            nat: Nat::DESTINATION,
            exit: Exit::POD,
            mtu: MTU,
            progress: Progress::NONE.and_peer(Progress::SPOKE).bits(),
            out_ifindex: a.ifindex,
            out_dst_mac: a.mac,
            out_src_mac: a.host_mac,
            nat_addr: forward_key.src,
            nat_port: forward_key.src_port,
            ..Entry::offer(self.uplink_ifindex, [0; 6], now)
        };
        self.insert(forward_key, forward);
        self.insert(answer_key, answer);
        (forward_key, answer_key)
    }

    pub(crate) fn insert(&mut self, key: Key, entry: Entry) {
        self.flows().insert(key, entry, 0).unwrap();
    }

    /// Whether there was room.
    pub(crate) fn try_insert(&mut self, key: Key, entry: Entry) -> bool {
        self.flows().insert(key, entry, 0).is_ok()
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.flows().remove(key).unwrap();
    }

    pub(crate) fn flow(&mut self, key: &Key) -> Option<Entry> {
        self.flows().get(key, 0).ok()
    }

    pub(crate) fn all_flows(&mut self) -> Vec<(Key, Entry)> {
        self.flows().iter().map(Result::unwrap).collect()
    }

    /// Removes every flow.
    pub(crate) fn clear_flows(&mut self) {
        let keys: Vec<Key> = self.flows().keys().map(Result::unwrap).collect();
        for key in keys {
            self.remove(&key);
        }
    }

    pub(crate) fn flow_count(&mut self) -> usize {
        self.flows().keys().count()
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
        let program: &SchedClassifier = self.object.program(hook.program()).unwrap().try_into().unwrap();
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
            Verdict::Carried => TC_ACT_REDIRECT,
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
        let program: &SchedClassifier = self.object.program(hook.program()).unwrap().try_into().unwrap();
        program.fd().unwrap().as_fd().as_raw_fd()
    }

    /// Verifier instructions of a program.
    pub(crate) fn verified_instructions(&self, hook: Hook) -> u32 {
        let program: &SchedClassifier = self.object.program(hook.program()).unwrap().try_into().unwrap();
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

    /// Flows on the account of a pod; of the wire for 0.0.0.0.
    pub(crate) fn usage(&mut self, account: Ipv4Addr) -> i32 {
        self.usages().get(&account.octets(), 0).unwrap().flows
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

    /// Makes both halves of a flow look idle for longer than any lifetime.
    pub(crate) fn age(&mut self, key: &Key) {
        let entry = self.flow(key).unwrap();
        for key in [*key, entry.peer_key(key)] {
            if let Some(entry) = self.flow(&key) {
                let last_seen = self.now().wrapping_sub(1_000_000);
                self.insert(key, Entry { last_seen, ..entry });
            }
        }
    }

    fn usages(&mut self) -> HashMap<&mut MapData, [u8; 4], Usage> {
        HashMap::try_from(self.map("cwy_usage")).unwrap()
    }

    fn flows(&mut self) -> HashMap<&mut MapData, Key, Entry> {
        HashMap::try_from(self.map("cwy_flows")).unwrap()
    }

    pub(crate) fn map(&mut self, name: &str) -> &mut aya::maps::Map {
        self.object.map_mut(name).unwrap()
    }
}

/// The key of one direction. For ICMP the ports are the identifier and zero, as in the maps.
pub(crate) fn key(ends: Ends, protocol: u8) -> Key {
    Key {
        src: ends.src.octets(),
        dst: ends.dst.octets(),
        src_port: ends.src_port.to_be_bytes(),
        dst_port: ends.dst_port.to_be_bytes(),
        protocol,
        _pad: [0; 3],
    }
}
