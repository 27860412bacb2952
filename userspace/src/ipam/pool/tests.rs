//! A model beside the pool, and the incumbent's rules one by one.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

const SUBNET: &str = "10.240.0.0/16";

fn source(hosts: impl IntoIterator<Item = u8>) -> SourcePool {
    SourcePool {
        subnet: SUBNET.parse().unwrap(),
        interface: "eth0".to_owned(),
        priority: 0,
        addresses: hosts.into_iter().map(ip).collect(),
        on_interface: false,
    }
}

fn ask_for(host: u8) -> Request {
    Request {
        addresses: vec![ip(host)],
        ..Request::default()
    }
}

fn nobody(_: IpAddr) -> bool {
    false
}

fn used(space: &Space) -> (usize, usize) {
    let usage = space.usage(SUBNET, 0, 0);
    (usage.total, usage.used)
}

fn ip(host: u8) -> IpAddr {
    IpAddr::from([10, 240, 0, host])
}

fn holder(container: &str) -> Holder {
    Holder {
        container: container.to_owned(),
        interface: "eth0".to_owned(),
    }
}

fn space(hosts: impl IntoIterator<Item = u8>) -> Space {
    let mut space = Space::default();
    space.merge(&[source(hosts)]);
    space
}

fn of_ipv6() -> SourcePool {
    SourcePool {
        subnet: "fd00:10::/64".parse().unwrap(),
        addresses: ["fd00:10::5".parse().unwrap()].into(),
        ..source([])
    }
}

#[test]
fn a_pod_has_ipv6_alone_where_there_is_no_subnet_of_ipv4() {
    let listed = |pools: &[SourcePool]| {
        let mut space = Space::default();
        space.merge(pools);
        space.is_ipv6_alone(&holder("a"))
    };
    assert!(listed(&[of_ipv6()]));
    assert!(!listed(&[source([]), of_ipv6()]), "one of IPv4 may be on its way");
    assert!(!listed(&[source([5]), of_ipv6()]));
    assert!(!listed(&[source([5])]) && !listed(&[source([])]) && !listed(&[]));
    let empty = SourcePool {
        addresses: BTreeSet::new(),
        ..of_ipv6()
    };
    assert!(!listed(&[empty]));
}

#[test]
fn who_has_ipv4_keeps_it_when_the_list_has_ipv6_alone() {
    let mut space = space([5, 6]);
    take(&mut space, "a").unwrap();
    space.merge(&[of_ipv6()]);
    assert!(!space.is_ipv6_alone(&holder("a")) && space.is_ipv6_alone(&holder("b")));
    // One that is used up is there all the same.
    space.merge(&[source([5]), of_ipv6()]);
    assert!(!space.is_ipv6_alone(&holder("b")));
}

fn take(space: &mut Space, container: &str) -> Result<IpAddr, PoolError> {
    space
        .allocate(SUBNET, &holder(container), &Request::default(), &nobody)
        .map(|lease| lease.address)
}

#[test]
fn fresh_addresses_go_in_order_then_the_one_released_longest_ago() {
    let mut space = space([9, 10, 5]);
    assert_eq!(take(&mut space, "a"), Ok(ip(5)));
    assert_eq!(take(&mut space, "b"), Ok(ip(9)));
    space.release(&holder("b"), &[], 1000);
    space.release(&holder("a"), &[], 1000);
    assert_eq!(take(&mut space, "c"), Ok(ip(10)), "one that nobody had yet");
    assert_eq!(
        take(&mut space, "d"),
        Ok(ip(9)),
        "released before the other, at the same time of the clock"
    );
    assert_eq!(take(&mut space, "e"), Ok(ip(5)));
    let error = take(&mut space, "f").unwrap_err();
    assert_eq!(error.to_string(), "No available addresses");
}

#[test]
fn a_container_has_one_address_for_each_interface() {
    let mut space = space([5, 6, 7]);
    assert_eq!(take(&mut space, "a"), Ok(ip(5)));
    assert_eq!(take(&mut space, "a"), Ok(ip(5)), "the same again");
    let second = Holder {
        container: "a".to_owned(),
        interface: "eth1".to_owned(),
    };
    assert_eq!(
        space
            .allocate(SUBNET, &second, &Request::default(), &nobody)
            .unwrap()
            .address,
        ip(6)
    );
    assert_eq!(space.release(&holder("a"), &[], 0), [ip(5)]);
    assert_eq!(space.leases(&second).len(), 1, "eth1 is left");
    assert!(space.release(&holder("a"), &[], 0).is_empty());
}

#[test]
fn a_lease_of_the_incumbent_is_its_containers_eth0() {
    let mut space = space([5, 6]);
    take(&mut space, "a").unwrap();
    let record = space
        .pools
        .get_mut(SUBNET)
        .unwrap()
        .addresses
        .get_mut("10.240.0.5")
        .unwrap();
    record.holder_if_name.clear();
    assert_eq!(take(&mut space, "a"), Ok(ip(5)));
    let second = Holder {
        container: "a".to_owned(),
        interface: "eth1".to_owned(),
    };
    assert_eq!(
        space
            .allocate(SUBNET, &second, &Request::default(), &nobody)
            .unwrap()
            .address,
        ip(6)
    );
    assert_eq!(space.release(&holder("a"), &[], 0), [ip(5)]);
}

#[test]
fn requests() {
    let mut space = space([5, 6, 7]);
    let mut ask = |who: &str, what| {
        space
            .allocate(SUBNET, &holder(who), &ask_for(what), &nobody)
            .map(|l| l.address)
    };
    assert_eq!(ask("a", 6), Ok(ip(6)));
    assert_eq!(ask("a", 6), Ok(ip(6)));
    assert_eq!(ask("b", 6), Err(PoolError::AddressInUse(ip(6))));
    assert_eq!(ask("b", 4), Err(PoolError::AddressNotFound(ip(4))));
    assert_eq!(ask("a", 5), Err(PoolError::HolderHasAnother(ip(6))));
    let error = space
        .allocate("10.9.0.0/16", &holder("a"), &Request::default(), &nobody)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Pool id 10.9.0.0/16 not found :Invalid address pool"
    );
    assert_eq!(
        space
            .allocate("10.240.0.9/16", &holder("b"), &Request::default(), &nobody)
            .unwrap()
            .address,
        ip(5),
        "host bits are no matter"
    );
}

#[test]
fn busy_addresses_are_not_given() {
    let mut space = space([5, 6]);
    let busy = BTreeSet::from([ip(5)]);
    let error = space
        .allocate(
            SUBNET,
            &holder("a"),
            &Request {
                addresses: vec![ip(5)],
                ..Request::default()
            },
            &|address| busy.contains(&address),
        )
        .unwrap_err();
    assert_eq!(error, PoolError::AddressInUse(ip(5)));
    assert_eq!(
        space
            .allocate(SUBNET, &holder("a"), &Request::default(), &|address| busy
                .contains(&address))
            .unwrap()
            .address,
        ip(6)
    );
    let error = space
        .allocate(SUBNET, &holder("b"), &Request::default(), &|address| {
            busy.contains(&address)
        })
        .unwrap_err();
    assert_eq!(error, PoolError::NoAvailableAddresses);
    assert_eq!(used(&space), (2, 1));
}

#[test]
fn another_containers_address_is_not_released() {
    let mut space = space([5]);
    take(&mut space, "a").unwrap();
    assert!(space.release(&holder("b"), &[ip(5)], 0).is_empty());
    let other = Holder {
        container: "a".to_owned(),
        interface: "net1".to_owned(),
    };
    assert!(space.release(&other, &[], 0).is_empty());
    assert_eq!(
        space.release(&other, &[ip(5)], 0),
        [ip(5)],
        "named, and the container's own"
    );
}

#[test]
fn a_vanished_address_goes_when_it_is_released() {
    let mut space = space([5, 6]);
    take(&mut space, "a").unwrap();
    space.merge(&[source([7])]);
    let hosts: Vec<&String> = space.pools[SUBNET].addresses.keys().collect();
    assert_eq!(hosts, ["10.240.0.5", "10.240.0.7"]);
    space.release(&holder("a"), &[], 0);
    assert_eq!(space.pools[SUBNET].addresses.len(), 1);

    take(&mut space, "b").unwrap();
    space.merge(&[]);
    assert_eq!(take(&mut space, "c"), Err(PoolError::NoAvailableAddresses));
    space.release(&holder("b"), &[], 0);
    space.merge(&[]);
    assert!(space.pools.is_empty());
}

#[test]
fn a_vanished_address_that_comes_back_is_as_before() {
    let mut space = space([5]);
    take(&mut space, "a").unwrap();
    space.merge(&[]);
    space.merge(&[source([5])]);
    space.release(&holder("a"), &[], 0);
    assert_eq!(take(&mut space, "b"), Ok(ip(5)));
}

#[test]
fn the_choice_of_a_pool() {
    let pool = |subnet: &str, interface: &str, priority, hosts: u8| {
        let subnet: IpNet = subnet.parse().unwrap();
        let first = match subnet.network() {
            IpAddr::V4(network) => network.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        let addresses = (5..5 + hosts)
            .map(|host| [first[0], first[1], first[2], host].into())
            .collect();
        SourcePool {
            subnet,
            interface: interface.to_owned(),
            priority,
            addresses,
            on_interface: false,
        }
    };
    let mut space = Space::default();
    let who = holder("a");
    assert_eq!(
        space.choose(&who, None).unwrap_err().to_string(),
        "no available address pools"
    );
    space.merge(&[
        pool("10.1.0.0/24", "eth0", 0, 9),
        pool("10.2.0.0/24", "eth1", 1, 1),
        pool("10.3.0.0/24", "eth2", 1, 2),
        pool("fd00::/64", "eth3", 9, 0),
    ]);
    let choose = |space: &Space, uplink| space.choose(&who, uplink).unwrap().to_string();
    assert_eq!(choose(&space, None), "10.3.0.0/24");
    assert_eq!(choose(&space, Some("eth1")), "10.2.0.0/24");
    space
        .allocate("10.3.0.0/24", &holder("x"), &Request::default(), &nobody)
        .unwrap();
    space
        .allocate("10.3.0.0/24", &holder("y"), &Request::default(), &nobody)
        .unwrap();
    assert_eq!(choose(&space, None), "10.2.0.0/24", "the other is exhausted");
    space
        .allocate("10.1.0.0/24", &who, &Request::default(), &nobody)
        .unwrap();
    assert_eq!(choose(&space, None), "10.1.0.0/24", "where the holder is already");
}

#[test]
fn a_released_address_is_in_quarantine() {
    let mut space = space([5, 6]);
    let at = |now, quarantine| Request {
        quarantine,
        now,
        ..Request::default()
    };
    let mut take_at = |who: &str, now| {
        let lease = space.allocate(SUBNET, &holder(who), &at(now, 30_000), &nobody);
        lease.map(|lease| lease.address)
    };
    assert_eq!(take_at("a", 1000), Ok(ip(5)));
    assert_eq!(take_at("b", 1000), Ok(ip(6)));
    space.release(&holder("a"), &[], 50_000);
    let mut take_at = |who: &str, now| {
        let lease = space.allocate(SUBNET, &holder(who), &at(now, 30_000), &nobody);
        lease.map(|lease| lease.address)
    };
    assert_eq!(take_at("c", 79_999), Err(PoolError::NoAvailableAddresses));
    assert_eq!(take_at("c", 80_000), Ok(ip(5)));
    space.release(&holder("c"), &[], 90_000);
    assert_eq!(
        space.usage(SUBNET, 91_000, 30_000),
        Usage {
            total: 2,
            used: 1,
            quarantined: 1
        }
    );
    // By name it can be had: whoever asks so knows what was there.
    let asked = Request {
        addresses: vec![ip(5)],
        ..at(91_000, 30_000)
    };
    assert!(space.allocate(SUBNET, &holder("d"), &asked, &nobody).is_ok());
    space.release(&holder("d"), &[], 95_000);
    assert_eq!(
        space
            .allocate(SUBNET, &holder("e"), &at(10, 30_000), &nobody)
            .unwrap()
            .address,
        ip(5),
        "the clock went back"
    );
}

#[test]
fn addresses_that_were_taken_off_the_interface_are_not_vanished() {
    let mut space = Space::default();
    let carried = |hosts: &[u8]| SourcePool {
        on_interface: true,
        ..source(hosts.iter().copied())
    };
    space.merge(&[carried(&[5, 6])]);
    take(&mut space, "a").unwrap();
    space.merge(&[carried(&[6])]);
    space.release(&holder("a"), &[], 7);
    assert_eq!(take(&mut space, "b"), Ok(ip(6)), "its release is remembered");
    space.merge(&[carried(&[5])]);
    space.release(&holder("b"), &[], 8);
    space.merge(&[carried(&[5])]);
    assert_eq!(
        used(&space),
        (1, 0),
        "a free one that the interface does not carry is gone"
    );
}

#[test]
fn who_holds_what_and_since_when() {
    let mut space = space([5, 6]);
    let request = Request {
        network: "azure".to_owned(),
        host_if: "azv1".to_owned(),
        now: 77,
        ..Request::default()
    };
    space.allocate(SUBNET, &holder("a"), &request, &nobody).unwrap();
    space
        .allocate(SUBNET, &holder("a"), &Request { now: 99, ..request }, &nobody)
        .unwrap();
    let held: Vec<Held> = space.held().collect();
    assert_eq!(
        held,
        [Held {
            address: "10.240.0.5/16".parse().unwrap(),
            holder: holder("a"),
            network: "azure".to_owned(),
            host_if: "azv1".to_owned(),
            since: 77,
        }]
    );
    assert_eq!(space.release_all(), 1);
    assert_eq!(used(&space), (2, 0));
}

#[test]
fn adopted_leases_are_not_given_away() {
    let mut space = Space::default();
    space.adopt(
        &holder("a"),
        "10.240.0.5/16".parse().unwrap(),
        &Request::default(),
    );
    space.adopt(
        &holder("b"),
        "10.240.0.9/16".parse().unwrap(),
        &Request::default(),
    );
    space.adopt(
        &holder("c"),
        "10.240.0.9/16".parse().unwrap(),
        &Request::default(),
    );
    space.merge(&[source([5, 6])]);
    assert_eq!(take(&mut space, "d"), Ok(ip(6)));
    assert_eq!(take(&mut space, "a"), Ok(ip(5)));
    assert_eq!(used(&space), (3, 3));
    assert_eq!(space.release(&holder("b"), &[], 0), [ip(9)]);
    assert_eq!(used(&space), (2, 2));
}

#[test]
fn keys_of_others_are_kept() {
    let text = r#"{"Id":"local","Scope":0,"Later":1,"Pools":{"10.240.0.0/16":{"Id":"10.240.0.0/16","IfName":"eth0",
        "Subnet":{"IP":"10.240.0.0","Mask":"//8AAA=="},"Gateway":"10.240.0.1","Other":{"x":[1]},"IsIPv6":false,"Priority":0,"RefCount":2,
        "Addresses":{"10.240.0.5":{"ID":"","Addr":"10.240.0.5","InUse":false,"More":true}}}}}"#;
    let space: Space = serde_json::from_str(text).unwrap();
    let again = serde_json::to_value(&space).unwrap();
    assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u8),
    Request(u8, u8),
    Release(u8),
    Source(BTreeSet<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12u8).prop_map(Step::Allocate),
        1 => (0..12u8, 2..14u8).prop_map(|(who, what)| Step::Request(who, what)),
        4 => (0..12u8).prop_map(Step::Release),
        1 => proptest::collection::btree_set(4..12u8, 0..8).prop_map(Step::Source),
    ]
}

proptest! {
    /// No address twice, none lost, none that the source does not have, and the one released longest ago first.
    #[test]
    fn the_pool_does_what_a_plain_model_does(steps in proptest::collection::vec(step(), 1..120)) {
        let mut listed: BTreeSet<u8> = (4..10).collect();
        let mut space = space(listed.clone());
        let mut held: HashMap<u8, IpAddr> = HashMap::new();
        let mut released: Vec<IpAddr> = Vec::new();
        for step in steps {
            let free: Vec<IpAddr> =
                listed.iter().map(|host| ip(*host)).filter(|a| !held.values().any(|h| h == a)).collect();
            match step {
                Step::Allocate(who) => match take(&mut space, &who.to_string()) {
                    Ok(got) if held.contains_key(&who) => prop_assert_eq!(got, held[&who]),
                    Ok(got) => {
                        let rank = |a: &IpAddr| (released.iter().rposition(|r| r == a).map_or(0, |n| n + 1), *a);
                        prop_assert_eq!(Some(&got), free.iter().min_by_key(|a| rank(a)));
                        held.insert(who, got);
                    }
                    Err(_) => prop_assert!(free.is_empty() && !held.contains_key(&who)),
                },
                Step::Request(who, what) => {
                    let got = space.allocate(SUBNET, &holder(&who.to_string()), &ask_for(what), &nobody);
                    let may = held.get(&who).map_or(free.contains(&ip(what)), |h| *h == ip(what));
                    prop_assert_eq!(got.is_ok(), may);
                    if may {
                        held.insert(who, ip(what));
                    }
                }
                Step::Release(who) => {
                    let freed = space.release(&holder(&who.to_string()), &[], 7);
                    prop_assert_eq!(freed.first().copied(), held.remove(&who));
                    // An address that the source lost is forgotten with its history.
                    released.extend(freed.iter().filter(|a| listed.iter().any(|host| ip(*host) == **a)));
                    released.retain(|a| listed.iter().any(|host| ip(*host) == *a) || held.values().any(|h| h == a));
                }
                Step::Source(now) => {
                    listed = now;
                    space.merge(&[source(listed.clone())]);
                    released.retain(|a| listed.iter().any(|host| ip(*host) == *a) || held.values().any(|h| h == a));
                }
            }
            let in_use: BTreeSet<IpAddr> = held.values().copied().collect();
            prop_assert_eq!(in_use.len(), held.len(), "an address was given twice");
            let total: BTreeSet<IpAddr> = in_use.into_iter().chain(listed.iter().map(|host| ip(*host))).collect();
            prop_assert_eq!(used(&space), (total.len(), held.len()));
        }
    }
}
