//! What the engine refuses, each with its field; and what nobody writes.

use super::*;

#[test]
fn the_engines_rules() {
    let none = Vec::<String>::new();
    assert_eq!(faults(custom, |_| {}), none);
    assert_eq!(faults(whole, |_| {}), none);
    for (base, change, expected) in [
        (
            custom as fn() -> Value,
            (|p| p["masterProfile"]["count"] = 2.into()) as fn(&mut Value),
            "error masterProfile.count: expected 1, 3 or 5, found 2",
        ),
        (
            custom,
            |p| p["masterProfile"]["count"] = "3".into(),
            "error masterProfile.count: expected 1, 3 or 5, found the string \"3\"",
        ),
        (
            custom,
            |p| p["masterProfile"]["count"] = (-3).into(),
            "error masterProfile.count: expected 1, 3 or 5, found -3",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["count"] = 0.into(),
            "error agentPoolProfiles[0].count: expected a whole number from 1 to 100, found 0",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["count"] = 101.into(),
            "error agentPoolProfiles[0].count: expected a whole number from 1 to 100, found 101",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["count"] = json!(1.5),
            "error agentPoolProfiles[0].count: expected a whole number from 1 to 100, found 1.5",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["count"] = Value::Null,
            "error agentPoolProfiles[0]: count is missing: expected a number from 1 to 100",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["ipAddressCount"] = 257.into(),
            "error agentPoolProfiles[0].ipAddressCount: expected a whole number from 0 to 256, found 257",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["ipAddressCount"] = 16.into(),
            "warning agentPoolProfiles[0].ipAddressCount: 15 of 30 pods have an address: the others wait",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["name"] = "Big_Pool".into(),
            "error agentPoolProfiles[0].name: \"Big_Pool\" is no pool's name: up to 12 small letters and digits, a letter first",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["name"] = Value::Null,
            "error agentPoolProfiles[0]: name is missing: expected a name",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"] = json!({}),
            "error agentPoolProfiles: expected a list of pools, found an object",
        ),
        (
            custom,
            |p| config(p)["clusterSubnet"] = "10.240.0.0/33".into(),
            "error orchestratorProfile.kubernetesConfig.clusterSubnet: expected a range such as 10.240.0.0/16, found \"10.240.0.0/33\"",
        ),
        (
            whole,
            |p| config(p)["clusterSubnet"] = "10.240.0.0/24".into(),
            "error orchestratorProfile.kubernetesConfig.clusterSubnet: 10.240.0.0/24 has 8 bits for nodes and pods; Azure CNI needs 9: a /23 or larger",
        ),
        (
            whole,
            |p| config(p)["clusterSubnet"] = "10.240.7.0/16".into(),
            "warning orchestratorProfile.kubernetesConfig.clusterSubnet: 10.240.7.0/16 has bits behind its prefix: it is taken for 10.240.0.0/16",
        ),
        (
            custom,
            |p| config(p)["kubeletConfig"] = json!({ "--max-pods": 30 }),
            "error orchestratorProfile.kubernetesConfig.kubeletConfig.--max-pods: expected a number in quotes, such as \"30\"",
        ),
        (
            custom,
            |p| config(p)["kubeletConfig"] = json!({ "--max-pods": "251" }),
            "error orchestratorProfile.kubernetesConfig.kubeletConfig.--max-pods: expected a number in quotes, from 1 to 250, found \"251\"",
        ),
        (
            custom,
            |p| config(p)["maxPods"] = 4.into(),
            "error orchestratorProfile.kubernetesConfig.maxPods: expected a whole number from 5 to 250, found 4",
        ),
        (
            custom,
            |p| config(p)["networkPlugin"] = "weave".into(),
            "error orchestratorProfile.kubernetesConfig.networkPlugin: expected azure, kubenet, flannel or cilium, found \"weave\"",
        ),
        (
            custom,
            |p| config(p)["dnsServiceIP"] = "10.3.0.10".into(),
            "error orchestratorProfile.kubernetesConfig.dnsServiceIP: 10.3.0.10 is not among the services' 10.2.0.0/16",
        ),
        (
            custom,
            |p| p["orchestratorProfile"]["orchestratorType"] = "DCOS".into(),
            "error orchestratorProfile.orchestratorType: expected \"Kubernetes\", found \"DCOS\"",
        ),
        (
            custom,
            |p| p["masterProfile"]["firstConsecutiveStaticIP"] = Value::Null,
            "error masterProfile: firstConsecutiveStaticIP is missing: expected the first master's address, as the subnet is there before the cluster",
        ),
        (
            custom,
            |p| p["masterProfile"]["firstConsecutiveStaticIP"] = "10.240.200".into(),
            "error masterProfile.firstConsecutiveStaticIP: expected an address such as 10.240.255.5, found \"10.240.200\"",
        ),
        (
            custom,
            |p| p["masterProfile"]["firstConsecutiveStaticIP"] = "10.241.0.5".into(),
            "error masterProfile.firstConsecutiveStaticIP: master 0 has 10.241.0.5, which is not in the subnet, 10.240.0.0/16",
        ),
        (
            custom,
            |p| p["masterProfile"]["firstConsecutiveStaticIP"] = "10.240.200.246".into(),
            "error masterProfile.firstConsecutiveStaticIP: the internal load balancer is 10 above 10.240.200.246 in the last byte, which ends at 255: choose a last byte of 244 or less",
        ),
        (
            whole,
            |p| p["masterProfile"]["firstConsecutiveStaticIP"] = "10.240.200.5".into(),
            "warning masterProfile.firstConsecutiveStaticIP: is not used: it takes a vnetSubnetId",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["vnetSubnetId"] = Value::Null,
            "error agentPoolProfiles[0]: there is no vnetSubnetId here, and there is one elsewhere: masters and pools all have one, or none has",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["vnetSubnetId"] = SUBNET.replace("/v/", "/other/").into(),
            "error agentPoolProfiles[0].vnetSubnetId: is in another network than /subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v",
        ),
        (
            custom,
            |p| p["agentPoolProfiles"][0]["availabilityProfile"] = "Spot".into(),
            "error agentPoolProfiles[0].availabilityProfile: expected AvailabilitySet or VirtualMachineScaleSets, found \"Spot\"",
        ),
        (
            custom,
            |p| config(p)["serviceCidr"] = "10.240.0.0/20".into(),
            "warning orchestratorProfile.kubernetesConfig.serviceCidr: serviceCidr 10.240.0.0/20 overlaps with the subnet 10.240.0.0/16: a service and a node may have one address; choose another serviceCidr",
        ),
        (
            custom,
            |p| p["masterProfile"]["vnetCidr"] = "10.0.0.0/12".into(),
            "warning masterProfile.vnetCidr: vnetCidr 10.0.0.0/12 does not have the subnet 10.240.0.0/16: traffic to it is masqueraded",
        ),
    ] {
        let found = faults(base, change);
        assert!(
            found.iter().any(|fault| fault == expected),
            "expected {expected}\nfound {found:#?}"
        );
        assert!(found.len() <= 3, "{found:#?}");
    }
}

#[test]
fn a_subnets_id_has_eleven_parts() {
    for id in [
        "nodes",
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/",
        &format!("{SUBNET}/x"),
        &SUBNET.replace("Network/", "Web/"),
    ] {
        let found = faults(custom, |p| p["agentPoolProfiles"][0]["vnetSubnetId"] = id.into());
        assert!(
            found
                .iter()
                .any(|fault| fault
                    .starts_with("error agentPoolProfiles[0].vnetSubnetId: expected a subnet's ID")),
            "{found:?}"
        );
    }
}

#[test]
fn scale_sets_of_masters_choose_no_address() {
    let scale_set = |p: &mut Value| {
        p["masterProfile"]["availabilityProfile"] = "VirtualMachineScaleSets".into();
        p["masterProfile"]["agentVnetSubnetID"] = SUBNET.into();
    };
    let found = faults(custom, scale_set);
    assert_eq!(
        found,
        [
            "error masterProfile.firstConsecutiveStaticIP: masters that are a scale set have no address of their choice: leave it out"
        ]
    );
    let without = |p: &mut Value| p["masterProfile"]["firstConsecutiveStaticIP"] = Value::Null;
    let found = faults(custom, |p| {
        scale_set(p);
        without(p);
    });
    assert_eq!(found, Vec::<String>::new());
    let found = faults(custom, |p| {
        scale_set(p);
        without(p);
        p["masterProfile"]["agentVnetSubnetID"] = Value::Null;
    });
    assert!(
        found[0].starts_with("error masterProfile: agentVnetSubnetID is missing"),
        "{found:?}"
    );
}

#[test]
fn all_faults_are_said_at_once_in_the_order_of_the_lines() {
    let text = br#"{
  "apiVersion": "2017-07-01",
  "properties": {
    "orchestratorProfile": {"orchestratorType": "Kubernetes"},
    "masterProfile": {"count": 2, "count": 4},
    "agentPoolProfiles": [
      {"name": "a", "count": 1e400},
      {"name": "a", "count": 99999999999999999999999999999999999999999999999999},
      7
    ]
  }
}"#;
    let Outcome { faults, plan } = plan(text, &[]).unwrap();
    assert!(plan.is_none());
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    assert_eq!(
        lines,
        [
            "line 2, column 17: apiVersion: expected \"vlabs\": other models have other fields",
            "line 5, column 35: properties.masterProfile.count: is there twice: which one is meant?",
            "line 5, column 44: properties.masterProfile.count: expected 1, 3 or 5, found 4",
            "line 7, column 30: properties.agentPoolProfiles[0].count: expected a whole number from 1 to 100, found 1e400",
            "line 8, column 16: properties.agentPoolProfiles[1].name: there is a pool \"a\" already",
            "line 8, column 30: properties.agentPoolProfiles[1].count: expected a whole number from 1 to 100, found a number of 50 digits",
            "line 9, column 7: properties.agentPoolProfiles[2]: expected an object, found 7",
        ]
    );
}

#[test]
fn no_form_of_a_definition_makes_it_panic() {
    let odd = [
        json!(null),
        json!([]),
        json!({}),
        json!("x"),
        json!(-1),
        json!(true),
        json!("10.0.0.0/0"),
        json!("255.255.255.255"),
        json!("0.0.0.0/32"),
    ];
    let paths = [
        "/apiVersion",
        "/properties",
        "/properties/orchestratorProfile",
        "/properties/orchestratorProfile/kubernetesConfig",
        "/properties/orchestratorProfile/kubernetesConfig/clusterSubnet",
        "/properties/orchestratorProfile/kubernetesConfig/serviceCidr",
        "/properties/masterProfile",
        "/properties/masterProfile/count",
        "/properties/masterProfile/vnetSubnetId",
        "/properties/masterProfile/firstConsecutiveStaticIP",
        "/properties/masterProfile/vnetCidr",
        "/properties/agentPoolProfiles",
        "/properties/agentPoolProfiles/0",
        "/properties/agentPoolProfiles/0/count",
    ];
    for path in paths {
        for value in &odd {
            for other in paths {
                let mut definition = custom();
                if let Some(place) = definition.pointer_mut(path) {
                    *place = value.clone();
                }
                if let Some(place) = definition.pointer_mut(other) {
                    *place = json!("0.0.0.0/0");
                }
                let Outcome { faults, plan } = outcome(&definition);
                assert!(
                    plan.is_some() || faults.iter().any(|fault| fault.severity == Severity::Error),
                    "{definition}"
                );
                if let Some(plan) = plan {
                    interfaces::lists(&plan, interfaces::MAC_PREFIX).ok();
                }
            }
        }
    }
}
