//! Definitions, right and wrong: what is said of them, and the numbers.

mod rules;

use std::net::Ipv4Addr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{reckon::Plan, *};

const SUBNET: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/nodes";

/// A cluster in a subnet that is there before it.
fn custom() -> Value {
    json!({
        "apiVersion": "vlabs",
        "properties": {
            "orchestratorProfile": {
                "orchestratorType": "Kubernetes",
                "kubernetesConfig": { "clusterSubnet": "10.240.0.0/16", "serviceCidr": "10.2.0.0/16", "dnsServiceIP": "10.2.0.10" },
            },
            "masterProfile": {
                "count": 3,
                "vnetSubnetId": SUBNET,
                "firstConsecutiveStaticIP": "10.240.200.5",
                "vnetCidr": "10.240.0.0/12",
            },
            "agentPoolProfiles": [{ "name": "a", "count": 10, "vnetSubnetId": SUBNET }],
        },
    })
}

/// A cluster that brings its network.
fn whole() -> Value {
    let mut definition = custom();
    let properties = &mut definition["properties"];
    for key in ["vnetSubnetId", "firstConsecutiveStaticIP", "vnetCidr"] {
        properties["masterProfile"].as_object_mut().unwrap().remove(key);
    }
    properties["agentPoolProfiles"][0]
        .as_object_mut()
        .unwrap()
        .remove("vnetSubnetId");
    definition
}

fn outcome(definition: &Value) -> Outcome {
    plan(serde_json::to_string_pretty(definition).unwrap().as_bytes(), &[]).unwrap()
}

/// The plan, and every fault as `error FIELD: MESSAGE`.
fn planned(definition: &Value) -> (Option<Plan>, Vec<String>) {
    let Outcome { faults, plan } = outcome(definition);
    let text = |fault: &Fault| {
        let severity = if fault.severity == Severity::Error {
            "error"
        } else {
            "warning"
        };
        let field = fault.field.strip_prefix("properties.").unwrap_or(&fault.field);
        format!("{severity} {field}: {}", fault.message)
    };
    (plan, faults.iter().map(text).collect())
}

fn faults(base: fn() -> Value, change: impl FnOnce(&mut Value)) -> Vec<String> {
    let mut definition = base();
    change(&mut definition["properties"]);
    planned(&definition).1
}

fn config(properties: &mut Value) -> &mut Value {
    &mut properties["orchestratorProfile"]["kubernetesConfig"]
}

#[test]
fn the_published_example_with_its_remarks() {
    let text = include_bytes!("../../../tests/planning/fixtures/definitions/published.json");
    let Outcome { faults, plan } = plan(text, &[]).unwrap();
    let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
    assert_eq!(
        faults,
        [
            "line 6, column 27: properties.orchestratorProfile.kubernetesConfig: serviceCidr 10.0.0.0/16 (the default) overlaps \
          with the subnet 10.0.0.0/20: a service and a node may have one address; choose another serviceCidr"
        ]
    );
    let plan = plan.unwrap();
    assert_eq!((plan.needed, plan.custom_network), (93, true));
    let pools: Vec<_> = plan
        .pools
        .iter()
        .map(|p| {
            (
                p.name.as_str(),
                p.count,
                p.max_pods,
                p.addresses_per_node,
                p.needed,
                p.most,
            )
        })
        .collect();
    assert_eq!(
        pools,
        [
            ("master", 1, 30, 31, 31, None),
            ("k8sagentpoo1", 2, 30, 31, 62, Some(100))
        ]
    );
    let subnet = &plan.subnets[0];
    assert_eq!(
        (subnet.name.as_str(), subnet.usable, subnet.needed, subnet.free),
        ("KubeClusterSubnet", Some(4091), 93, Some(3998))
    );
    let chosen = plan.chosen.unwrap();
    assert_eq!(
        (chosen.masters, chosen.load_balancer),
        (vec!["10.0.1.50".parse().unwrap()], None)
    );
}

#[test]
fn a_subnet_that_only_its_owner_knows_is_asked_for() {
    let text = include_bytes!("../../../tests/planning/fixtures/definitions/azure-cni.json");
    let of = |prefixes: &[Prefix]| plan(text, prefixes).unwrap();
    let Outcome { faults, plan } = of(&[]);
    assert!(
        faults[0].message.contains("--subnet SUBNET_NAME=PREFIX") && faults.len() == 1,
        "{faults:?}"
    );
    assert_eq!(
        (plan.as_ref().unwrap().needed, plan.unwrap().subnets[0].free),
        (155, None)
    );
    for name in ["SUBNET_NAME", "subnet_name", ""] {
        let prefix = Prefix {
            subnet: name.to_owned(),
            prefix: "10.239.0.0/16".parse().unwrap(),
        };
        let Outcome { faults, plan } = of(&[prefix]);
        assert_eq!(
            (faults, plan.unwrap().subnets[0].free),
            (vec![], Some(65_531 - 155))
        );
    }
    let elsewhere = Prefix {
        subnet: String::new(),
        prefix: "10.238.0.0/24".parse().unwrap(),
    };
    let messages: Vec<String> = of(&[elsewhere])
        .faults
        .into_iter()
        .map(|fault| fault.message)
        .collect();
    assert_eq!(
        messages,
        [
            "master 0 has 10.239.255.239, which is not in the subnet, 10.238.0.0/24",
            "vnetCidr 10.239.0.0/16 does not have the subnet 10.238.0.0/24: traffic to it is masqueraded",
        ]
    );
}

#[test]
fn masters_and_the_load_balancer_are_where_the_engine_puts_them() {
    let chosen = |base: fn() -> Value, change: &dyn Fn(&mut Value)| {
        let mut definition = base();
        change(&mut definition["properties"]);
        let (plan, faults) = planned(&definition);
        assert_eq!(faults, Vec::<String>::new());
        let chosen = plan.unwrap().chosen;
        chosen.map(|chosen| {
            chosen
                .all()
                .map(|address| address.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    assert_eq!(
        chosen(custom, &|_| {}).unwrap(),
        "10.240.200.5 10.240.200.6 10.240.200.7 10.240.200.15"
    );
    assert_eq!(
        chosen(whole, &|_| {}).unwrap(),
        "10.240.255.5 10.240.255.6 10.240.255.7 10.240.255.15"
    );
    assert_eq!(
        chosen(whole, &|p| config(p)["clusterSubnet"] = Value::Null).unwrap(),
        "10.255.255.5 10.255.255.6 10.255.255.7 10.255.255.15"
    );
    let scale_set =
        &|p: &mut Value| p["masterProfile"]["availabilityProfile"] = "VirtualMachineScaleSets".into();
    assert_eq!(
        chosen(whole, scale_set).unwrap(),
        "10.240.255.4 10.240.255.35 10.240.255.66 10.240.255.10"
    );
    let far = faults(whole, |p| {
        scale_set(p);
        p["masterProfile"]["ipAddressCount"] = 128.into();
    });
    assert!(
        far[0].starts_with("warning masterProfile: masters are 128 addresses apart"),
        "{far:?}"
    );
    assert_eq!(
        chosen(whole, &|p| p["masterProfile"]["count"] = 1.into()).unwrap(),
        "10.240.255.5"
    );
}

#[test]
fn what_does_not_fit_is_told_with_the_numbers() {
    let mut definition = custom();
    config(&mut definition["properties"])["clusterSubnet"] = "10.240.200.0/23".into();
    let (plan, found) = planned(&definition);
    // 13 nodes of 31 and the load balancer: 404 of 507. One node more is 31 more: three more fit.
    assert_eq!(
        found,
        [
            "warning masterProfile.firstConsecutiveStaticIP: 400 addresses are given from 10.240.200.4 on, 10.240.200.5 among them: it may be taken before the master asks for it; choose a higher one"
        ]
    );
    let plan = plan.unwrap();
    assert_eq!(
        (plan.needed, plan.subnets[0].free, plan.pools[1].most),
        (404, Some(103), Some(13))
    );
    definition["properties"]["agentPoolProfiles"][0]["count"] = 14.into();
    let (plan, found) = planned(&definition);
    assert!(
        found.iter().any(|fault| fault.ends_with(
            "10.240.200.0/23 has 507 addresses without Azure's 5, and 528 are needed: 21 too few"
        )),
        "{found:?}"
    );
    let plan = plan.unwrap();
    assert_eq!(
        (plan.subnets[0].free, plan.pools[1].most),
        (Some(-21), Some(13)),
        "one node less would fit"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_grows_until_one_node_more_does_not_fit(length in 18..=22_u8, count in 1..30_u32, pods in 5..120_u32) {
        let of = |count: u32| {
            let mut definition = whole();
            let config = config(&mut definition["properties"]);
            config["clusterSubnet"] = format!("10.240.0.0/{length}").into();
            config["kubeletConfig"] = json!({ "--max-pods": pods.to_string() });
            definition["properties"]["agentPoolProfiles"][0]["count"] = count.into();
            planned(&definition).0.unwrap()
        };
        let fits = |count| of(count).subnets[0].free.unwrap() >= 0;
        let most = of(count).pools[1].most.unwrap();
        prop_assert!(most == 0 || fits(most), "{} do not fit", most);
        prop_assert!(most == 100 || !fits(most + 1), "{} fit", most + 1);
    }

    #[test]
    fn what_is_usable_is_what_is_not_azures(base: u32, length in 20..=32_u8) {
        let prefix = Ipv4Net::new(base.into(), length).unwrap().trunc();
        let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
        let free = (first..=last).filter(|address| !reckon::is_azures(prefix, Ipv4Addr::from_bits(*address)));
        prop_assert_eq!(reckon::usable(prefix), free.count() as u64);
    }
}

#[test]
fn pods_of_a_pool_are_its_own_choice() {
    let mut definition = custom();
    definition["properties"]["agentPoolProfiles"][0]["kubernetesConfig"] =
        json!({ "kubeletConfig": { "--max-pods": "110" } });
    config(&mut definition["properties"])["kubeletConfig"] = json!({ "--max-pods": "50" });
    let pools = planned(&definition).0.unwrap().pools;
    assert_eq!(
        (pools[0].addresses_per_node, pools[1].addresses_per_node),
        (51, 111)
    );
}

#[test]
fn kubenet_takes_an_address_a_node_and_a_block_of_pods() {
    let mut definition = custom();
    let config_of = config(&mut definition["properties"]);
    config_of["networkPlugin"] = "kubenet".into();
    config_of["clusterSubnet"] = "10.128.0.0/20".into();
    let prefixes = [Prefix {
        subnet: "nodes".to_owned(),
        prefix: "10.240.0.0/16".parse().unwrap(),
    }];
    let of = |definition: &Value| plan(definition.to_string().as_bytes(), &prefixes).unwrap();
    let Outcome { faults, plan } = of(&definition);
    assert_eq!((faults, plan.unwrap().needed), (vec![], 14));
    definition["properties"]["agentPoolProfiles"][0]["count"] = 14.into();
    assert_eq!(
        of(&definition).faults[0].message,
        "10.128.0.0/20 has 16 blocks of 256 addresses, and 17 nodes take one each"
    );
    config(&mut definition["properties"])["clusterSubnet"] = "10.240.0.0/16".into();
    assert!(
        of(&definition).faults[0]
            .message
            .contains("overlaps with the nodes' subnet")
    );
}

#[test]
fn two_subnets_are_reckoned_apart() {
    let mut definition = custom();
    definition["properties"]["agentPoolProfiles"][0]["vnetSubnetId"] =
        SUBNET.replace("/nodes", "/agents").into();
    let prefix = |subnet: &str, prefix: &str| Prefix {
        subnet: subnet.to_owned(),
        prefix: prefix.parse().unwrap(),
    };
    let of = |prefixes: &[Prefix]| plan(definition.to_string().as_bytes(), prefixes).unwrap();
    let Outcome { faults, plan } = of(&[
        prefix("nodes", "10.240.200.0/23"),
        prefix("agents", "10.241.0.0/22"),
    ]);
    let subnets: Vec<_> = plan
        .unwrap()
        .subnets
        .into_iter()
        .map(|subnet| (subnet.name, subnet.needed, subnet.free))
        .collect();
    assert_eq!(
        subnets,
        [
            ("agents".to_owned(), 310, Some(709)),
            ("nodes".to_owned(), 94, Some(413))
        ]
    );
    assert!(
        faults.iter().all(|fault| fault.severity == Severity::Warning),
        "{faults:?}"
    );
    let Outcome { faults, .. } = of(&[
        prefix("nodes", "10.240.200.0/23"),
        prefix("agents", "10.240.0.0/16"),
    ]);
    assert!(
        faults.iter().any(|fault| fault.message.contains("overlap")),
        "{faults:?}"
    );
}
