//! What the node's maps hold: configuration, pods, ranges, reserved ports, flows.

use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues, lpm_trie};
use causeway_common::{
    balance::BACKEND_SLOTS,
    flow::{Exit, Flags, FlowEntry, Nat, Progress, State},
    lifetime::Timeouts,
    maps::{
        Backend, Balancer, Budget, Config, IfaceEntry, POD_QUOTA, PodEntry, PortWord, RangeClass, RangeEntry,
        RangeKey, Usage, WIRE_QUOTA,
    },
    reason::Reason,
    tuple::FlowKey,
};

use super::{Bench, Family, MTU, Pod, ROUTER_MAC};
use crate::packets::Ends;

pub(crate) type Key = FlowKey<[u8; 4]>;
pub(crate) type Entry = FlowEntry<[u8; 4]>;
/// One direction of a flow.
type Flow<A> = (FlowKey<A>, FlowEntry<A>);

impl<F: Family> Bench<F> {
    pub(crate) fn configure(&mut self, node_addr: F) {
        self.configure_with(node_addr, POD_QUOTA, WIRE_QUOTA);
    }

    /// With quotas of flows, and an account for each pod and the wire.
    pub(crate) fn configure_with(&mut self, node_addr: F, pod_quota: u32, wire_quota: u32) {
        let accounts = [F::UNSPECIFIED, self.a.addr, self.b.addr].map(F::octets);
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
            range_list: 0,
            timeouts: Timeouts::DEFAULT,
        };
        Array::<_, Config<F::Octets>>::try_from(self.own_map("cwy_cfg"))
            .unwrap()
            .set(0, config, 0)
            .unwrap();
    }

    pub(crate) fn register(&mut self, pod: &Pod<F>, flags: u16) {
        let entry = PodEntry {
            ifindex: pod.ifindex,
            mac: pod.mac,
            host_mac: pod.host_mac,
            mtu: MTU,
            flags,
            changed: 0,
        };
        HashMap::<_, F::Octets, PodEntry>::try_from(self.own_map("cwy_pods"))
            .unwrap()
            .insert(pod.addr.octets(), entry, 0)
            .unwrap();
        let iface = IfaceEntry {
            addr: pod.addr.octets(),
            mac: pod.mac,
            _pad: [0; 2],
        };
        HashMap::<_, u32, IfaceEntry<F::Octets>>::try_from(self.own_map("cwy_ifaces"))
            .unwrap()
            .insert(pod.ifindex, iface, 0)
            .unwrap();
    }

    pub(crate) fn unregister_iface(&mut self, pod: &Pod<F>) {
        HashMap::<_, u32, IfaceEntry<F::Octets>>::try_from(self.own_map("cwy_ifaces"))
            .unwrap()
            .remove(&pod.ifindex)
            .unwrap();
    }

    pub(crate) fn exclude(&mut self, addr: F::Octets, prefix_len: u32) {
        self.classify(addr, prefix_len, RangeClass::EXCLUDED);
    }

    /// Gives a range its class.
    pub(crate) fn classify(&mut self, addr: F::Octets, prefix_len: u32, class: u8) {
        let entry = RangeEntry { class, _pad: [0; 3] };
        let bits = RangeKey::<F::Octets>::LIST_BITS + prefix_len;
        lpm_trie::LpmTrie::<_, RangeKey<F::Octets>, RangeEntry>::try_from(self.own_map("cwy_ranges"))
            .unwrap()
            .insert(&lpm_trie::Key::new(bits, RangeKey { list: 0, addr }), entry, 0)
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
    pub(crate) fn carry_between_pods(&mut self, key: FlowKey<F::Octets>) {
        let (a, b) = (self.a, self.b);
        let entry = FlowEntry {
            state: State::CARRIED,
            exit: Exit::POD,
            mtu: MTU,
            out_ifindex: b.ifindex,
            out_dst_mac: b.mac,
            out_src_mac: b.host_mac,
            ..FlowEntry::offer(a.ifindex, a.mac, self.now())
        };
        self.insert(key, entry);
    }

    /// Writes both halves of a carried flow of pod A, translated to `port`. Returns the forward and the answer key.
    pub(crate) fn carry_translated(
        &mut self,
        ends: Ends<F>,
        protocol: u8,
        port: u16,
    ) -> (FlowKey<F::Octets>, FlowKey<F::Octets>) {
        let (a, now) = (self.a, self.now());
        let forward_key = key(ends, protocol);
        let forward = FlowEntry {
            state: State::CARRIED,
            nat: Nat::SOURCE,
            exit: Exit::UPLINK,
            flags: Flags::WENT_UP | Flags::CAME_OUT,
            mtu: MTU,
            out_ifindex: self.uplink_ifindex,
            out_dst_mac: ROUTER_MAC,
            out_src_mac: self.uplink_mac,
            nat_addr: F::NODE.octets(),
            nat_port: port.to_be_bytes(),
            ..FlowEntry::offer(a.ifindex, a.mac, now)
        };
        let answer_key = forward.peer_key(&forward_key);
        let answer = FlowEntry {
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
            ..FlowEntry::offer(self.uplink_ifindex, [0; 6], now)
        };
        self.insert(forward_key, forward);
        self.insert(answer_key, answer);
        (forward_key, answer_key)
    }

    pub(crate) fn insert(&mut self, key: FlowKey<F::Octets>, entry: FlowEntry<F::Octets>) {
        self.flows().insert(key, entry, 0).unwrap();
    }

    /// Whether there was room.
    pub(crate) fn try_insert(&mut self, key: FlowKey<F::Octets>, entry: FlowEntry<F::Octets>) -> bool {
        self.flows().insert(key, entry, 0).is_ok()
    }

    pub(crate) fn remove(&mut self, key: &FlowKey<F::Octets>) {
        self.flows().remove(key).unwrap();
    }

    pub(crate) fn flow(&mut self, key: &FlowKey<F::Octets>) -> Option<FlowEntry<F::Octets>> {
        self.flows().get(key, 0).ok()
    }

    pub(crate) fn all_flows(&mut self) -> Vec<Flow<F::Octets>> {
        self.flows().iter().map(Result::unwrap).collect()
    }

    /// Removes every flow.
    pub(crate) fn clear_flows(&mut self) {
        let keys: Vec<FlowKey<F::Octets>> = self.flows().keys().map(Result::unwrap).collect();
        for key in keys {
            self.remove(&key);
        }
    }

    pub(crate) fn flow_count(&mut self) -> usize {
        self.flows().keys().count()
    }

    /// Every CPU may tell as much as in a second that has just begun.
    pub(crate) fn forget_budgets(&mut self) {
        let mut budgets = PerCpuArray::<_, Budget>::try_from(self.map("cwy_budgets")).unwrap();
        for reason in 0..Reason::ALL.len() as u32 {
            let cpus = budgets.get(&reason, 0).unwrap().len();
            let fresh = PerCpuValues::try_from(vec![Budget::default(); cpus]).unwrap();
            budgets.set(reason, fresh, 0).unwrap();
        }
    }

    /// Flows on the account of a pod; of the wire for the unspecified address.
    pub(crate) fn usage(&mut self, account: F) -> i32 {
        self.usages().get(&account.octets(), 0).unwrap().flows
    }

    /// Makes a half of a flow look idle for so long.
    pub(crate) fn idle(&mut self, key: &FlowKey<F::Octets>, seconds: u32) {
        let entry = FlowEntry {
            last_seen: self.now().wrapping_sub(seconds),
            ..self.flow(key).unwrap()
        };
        self.insert(*key, entry);
    }

    /// Makes both halves of a flow look idle for longer than any lifetime.
    pub(crate) fn age(&mut self, key: &FlowKey<F::Octets>) {
        const EVER: u32 = 1_000_000;
        let entry = self.flow(key).unwrap();
        for key in [*key, entry.peer_key(key)] {
            if self.flow(&key).is_some() {
                self.idle(&key, EVER);
            }
        }
    }

    fn usages(&mut self) -> HashMap<&mut MapData, F::Octets, Usage> {
        HashMap::try_from(self.own_map("cwy_usage")).unwrap()
    }

    fn flows(&mut self) -> HashMap<&mut MapData, FlowKey<F::Octets>, FlowEntry<F::Octets>> {
        HashMap::try_from(self.own_map("cwy_flows")).unwrap()
    }
}

impl Bench {
    /// Makes `backends` stand in the slots by turns, and balances these ports.
    pub(crate) fn balance(&mut self, backends: &[[u8; 4]], ports: &[u16]) {
        let mut slots = Array::<_, Backend<[u8; 4]>>::try_from(self.map("cwy_backends")).unwrap();
        for slot in 0..BACKEND_SLOTS {
            let addr = backends
                .get(slot % backends.len().max(1))
                .copied()
                .unwrap_or_default();
            slots.set(slot as u32, Backend { addr }, 0).unwrap();
        }
        let mut balancer = Balancer::default();
        for (place, port) in balancer.ports.iter_mut().zip(ports) {
            *place = port.to_be_bytes();
        }
        let mut map = Array::<_, Balancer>::try_from(self.map("cwy_balancer")).unwrap();
        map.set(0, balancer, 0).unwrap();
    }
}

/// The key of one direction. For ICMP the ports are the identifier and zero, as in the maps.
pub(crate) fn key<F: Family>(ends: Ends<F>, protocol: u8) -> FlowKey<F::Octets> {
    FlowKey {
        src: ends.src.octets(),
        dst: ends.dst.octets(),
        src_port: ends.src_port.to_be_bytes(),
        dst_port: ends.dst_port.to_be_bytes(),
        protocol,
        _pad: [0; 3],
    }
}
