//! The pods: each endpoint of the state beside its interface, its routes and what the programs know of it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::File,
    net::IpAddr,
    os::fd::AsFd as _,
    path::Path,
    time::Duration,
};

use causeway_common::maps::PodEntry;

use super::{KeepError, Keeper, Pass, is_overdue};
use crate::{
    attachments,
    datapath::{Datapath, Expedited, Pod, PodAddresses, PodMaps},
    endpoints::{self, Endpoint, Key, State},
    ipam::store,
    links::{self, HostSide, Kind, Link, Netlink, PodNetwork},
    node,
    root::Root,
};

impl Keeper {
    pub(super) fn keep_pods(&mut self, datapath: &Datapath, notes: &mut Pass) {
        let before = notes.faults.len();
        self.look_at_pods(datapath, notes);
        self.faults = notes.faults.split_off(before);
        notes.faults.extend_from_slice(&self.faults);
    }

    fn look_at_pods(&mut self, datapath: &Datapath, notes: &mut Pass) {
        let Some(mut sight) = notes.unless_failed(Sight::read(self, datapath)) else {
            return;
        };
        let state = std::mem::take(&mut sight.state);
        if state.endpoints().any(|(_, endpoint)| has_ipv6(endpoint)) {
            let changed = node::enable_forwarding_v6(&self.root);
            if notes.unless_failed(changed) == Some(true) {
                notes.note_mended("net.ipv6.conf.all.forwarding was 0".to_owned());
            }
        }
        self.host_ports = state
            .endpoints()
            .flat_map(|(_, endpoint)| endpoint.host_ports.iter().copied())
            .collect();
        let mut names: HashMap<&str, u32> = HashMap::new();
        for (_, endpoint) in state.endpoints() {
            *names.entry(&endpoint.host_if_name).or_default() += 1;
        }
        let mut missing = BTreeSet::new();
        for (key, endpoint) in state.keys() {
            let served = PodAddresses::among(&endpoint.addresses());
            let Some(served) = served.filter(|_| !sight.theirs.contains(&key.container)) else {
                continue;
            };
            let place = Place {
                key: &key,
                endpoint,
                served,
            };
            // The sandboxes of one pod may share the name of the interface, which is the newer one's: only whom the programs
            // have served there is known to be that.
            let is_shared = names.get(endpoint.host_if_name.as_str()) != Some(&1);
            let kept = if let Some(link) = sight.host.link(&endpoint.host_if_name) {
                if is_shared && !self.has_served(&sight, served.first(), link.index) {
                    continue;
                }
                self.keep_pod(&sight, &place, link, notes)
            } else if is_shared {
                continue;
            } else {
                missing.insert(format!("interface {}", endpoint.host_if_name));
                self.reconnect(&sight, &place, notes)
            };
            notes.unless_failed(kept);
        }
        let forgotten = self.forget_strangers(&sight, &state, &mut missing, notes);
        notes.unless_failed(forgotten);
        self.suspects
            .retain(|name, _| name.starts_with("lease ") || missing.contains(name));
        self.remember(datapath, &sight.maps, notes);
    }

    fn has_served(&self, sight: &Sight<'_>, addr: IpAddr, ifindex: u32) -> bool {
        let known = [sight.maps.pod(addr), self.served.get(&addr).copied()];
        known.iter().flatten().any(|entry| entry.ifindex == ifindex)
    }

    /// What the programs know of pods that are served is what they are to know tomorrow.
    fn remember(&mut self, datapath: &Datapath, looked_at: &PodMaps, notes: &mut Pass) {
        let maps = notes.unless_failed(datapath.pod_maps()).unwrap_or_default();
        let pods = maps.pods();
        self.served = pods.filter(|(_, entry)| entry.is_ready()).collect();
        // What has changed since may be anybody's doing, and nobody has looked at it.
        self.known = (maps == *looked_at).then_some(maps);
    }

    fn keep_pod(
        &self,
        sight: &Sight<'_>,
        place: &Place<'_>,
        link: &Link,
        notes: &mut Pass,
    ) -> Result<(), KeepError> {
        let address = place.served.first();
        let (Some(mac), Some(host_mac)) = (place.endpoint.mac(), link.mac) else {
            return Ok(());
        };
        let pod = self.pod(sight, place, link.index, mac, host_mac, link.mtu);
        let wrong = sight.host.wrong_with(link, &place.endpoint.addresses(), mac);
        if wrong.is_empty() && sight.maps.know(&pod) && self.hold.serves(sight.datapath, &pod)? {
            return Ok(());
        }
        // A call for it is under way: it is that call's to finish.
        let Ok(_alone) = attachments::lock(&self.root, place.key, Duration::ZERO) else {
            return Ok(());
        };
        let is_there = endpoints::readable(&self.root)?.find(place.key).is_some();
        let mut netlink = Netlink::new()?;
        let Some(link) = netlink.link_by_index(link.index)?.filter(|_| is_there) else {
            return Ok(());
        };
        for item in sight.datapath.mend_pod(&pod)? {
            notes.note_mended(format!("{item} (pod {address})"));
        }
        if !wrong.is_empty() {
            netlink.mend_host(&link, &place.endpoint.addresses(), mac)?;
            for item in wrong {
                notes.note_mended(format!("{item} (pod {address})"));
            }
        }
        Ok(())
    }

    /// A pod whose interface was deleted under it gets another one, with the address and the MAC that it had.
    fn reconnect(&mut self, sight: &Sight<'_>, place: &Place<'_>, notes: &mut Pass) -> Result<(), KeepError> {
        let Place {
            key,
            endpoint,
            served,
        } = *place;
        // The second look: a runtime that ends a pod takes its interface first.
        let name = format!("interface {}", endpoint.host_if_name);
        if self.suspects.insert(name, std::time::Instant::now()).is_none() {
            return Ok(());
        }
        let (Some(netns), Some(mac)) = (named_netns(endpoint)?, endpoint.mac()) else {
            return Ok(());
        };
        let Ok(_alone) = attachments::lock(&self.root, key, Duration::ZERO) else {
            return Ok(());
        };
        if endpoints::readable(&self.root)?.find(key).is_none() {
            return Ok(());
        }
        let network = PodNetwork {
            addresses: endpoint.addresses(),
            if_name: endpoint.if_name.clone(),
            host_if: endpoint.host_if_name.clone(),
            mtu: self
                .served
                .get(&served.first())
                .map_or(sight.uplink_mtu, |entry| entry.mtu.into()),
            mac,
            polls: sight.datapath.has_xdp()?,
        };
        let _expedited = Expedited::begin(true);
        links::connect_pod(netns.as_fd(), &network, |link| -> Result<(), KeepError> {
            let pod = self.pod(
                sight,
                place,
                link.host_ifindex,
                link.mac,
                link.host_mac,
                network.mtu,
            );
            Ok(sight.datapath.add_pod(&pod)?)
        })?;
        notes.note_mended(format!(
            "interface {} of pod {} was gone",
            network.host_if,
            served.first()
        ));
        Ok(())
    }

    fn pod(
        &self,
        sight: &Sight<'_>,
        place: &Place<'_>,
        ifindex: u32,
        mac: [u8; 6],
        host_mac: [u8; 6],
        mtu: u32,
    ) -> Pod {
        let first = place.served.first();
        let known = sight.maps.pod(first).or_else(|| self.served.get(&first).copied());
        let has = |flag: u16| known.is_some_and(|entry| entry.flags & flag != 0);
        Pod {
            addresses: place.served,
            ifindex,
            host_if: place.endpoint.host_if_name.clone(),
            mac,
            host_mac,
            mtu: known.map_or_else(|| u16::try_from(mtu).unwrap_or(u16::MAX), |entry| entry.mtu),
            stack_only: has(PodEntry::STACK_ONLY),
            takes_frames: has(PodEntry::TAKES_FRAMES),
        }
    }

    /// What belongs to nobody for a while: entries whose interface is gone, host interfaces without an endpoint.
    fn forget_strangers(
        &mut self,
        sight: &Sight<'_>,
        state: &State,
        missing: &mut BTreeSet<String>,
        notes: &mut Pass,
    ) -> Result<(), KeepError> {
        let addresses: BTreeSet<IpAddr> = state
            .endpoints()
            .flat_map(|(_, endpoint)| endpoint.addresses())
            .map(|net| net.addr())
            .collect();
        let indices: HashSet<u32> = sight.host.links.iter().map(|link| link.index).collect();
        for (addr, entry) in sight.maps.pods() {
            if indices.contains(&entry.ifindex) || addresses.contains(&addr) {
                continue;
            }
            let name = format!("entry {addr}");
            if is_overdue(&mut self.suspects, &name) {
                sight.datapath.remove_pod(addr)?;
                let map = if addr.is_ipv4() { "cwy_pods" } else { "cwy_pods6" };
                notes.note_mended(format!(
                    "entry {addr} of {map} had neither interface nor endpoint"
                ));
            }
            missing.insert(name);
        }
        if !sight.is_state_readable {
            return Ok(());
        }
        let named: HashSet<&str> = state
            .endpoints()
            .map(|(_, endpoint)| endpoint.host_if_name.as_str())
            .collect();
        let served: HashSet<u32> = sight.maps.pods().map(|(_, entry)| entry.ifindex).collect();
        for link in sight.host.links.iter().filter(|link| is_ours(link)) {
            if named.contains(link.name.as_str()) || served.contains(&link.index) {
                continue;
            }
            let name = format!("veth {}", link.name);
            if is_overdue(&mut self.suspects, &name) {
                links::disconnect_pod(&link.name)?;
                notes.note_mended(format!("interface {} belonged to no pod", link.name));
            }
            missing.insert(name);
        }
        Ok(())
    }
}

/// An endpoint of the state.
#[derive(Clone, Copy)]
struct Place<'a> {
    key: &'a Key,
    endpoint: &'a Endpoint,
    served: PodAddresses,
}

/// The node at one moment.
struct Sight<'a> {
    datapath: &'a Datapath,
    uplink_mtu: u32,
    state: State,
    /// Whether the state is more than nothing: without it nobody is a stranger.
    is_state_readable: bool,
    /// Containers of the incumbent, which are wired otherwise.
    theirs: BTreeSet<String>,
    host: HostSide,
    maps: PodMaps,
}

impl<'a> Sight<'a> {
    fn read(keeper: &Keeper, datapath: &'a Datapath) -> Result<Self, KeepError> {
        // The state first: a pod that is added while this is read is not missed, and one that is deleted is locked.
        let state = endpoints::snapshot(&keeper.root);
        let is_state_readable = matches!(state, Ok(Some(_)));
        let theirs = of_incumbent(&keeper.root)?;
        Ok(Self {
            datapath,
            uplink_mtu: datapath.config()?.uplink_mtu,
            state: state.ok().flatten().unwrap_or_default(),
            is_state_readable,
            theirs,
            host: HostSide::read(&mut Netlink::new()?)?,
            maps: datapath.pod_maps()?,
        })
    }
}

/// The containers whose addresses the incumbent has leased: it notes no network.
pub(super) fn of_incumbent(root: &Root) -> Result<BTreeSet<String>, KeepError> {
    let space = store::snapshot(root)?;
    let theirs = space.held().filter(|held| held.network.is_empty());
    Ok(theirs.map(|held| held.holder.container).collect())
}

fn has_ipv6(endpoint: &Endpoint) -> bool {
    endpoint
        .addresses()
        .iter()
        .any(|address| address.addr().is_ipv6())
}

/// `azv` and eleven hexadecimal digits ([`attachments::veth_name`]).
fn is_ours(link: &Link) -> bool {
    let digits = link.name.strip_prefix("azv");
    link.kind == Kind::Veth
        && digits
            .is_some_and(|digits| digits.len() == 11 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The pod's namespace, if it has a name of its own: a number below `/proc` may be another process's by now.
fn named_netns(endpoint: &Endpoint) -> Result<Option<File>, KeepError> {
    let path = endpoint.netns();
    if path.is_empty() || Path::new(path).starts_with("/proc") {
        return Ok(None);
    }
    match File::open(path) {
        // What is left of a namespace that was unmounted is an ordinary file.
        Ok(file) if is_namespace(&file) => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KeepError::Netns {
            path: path.to_owned(),
            container: endpoint.container_id.clone(),
            source,
        }),
    }
}

fn is_namespace(file: &File) -> bool {
    /// `NSFS_MAGIC` of `linux/magic.h`.
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}
