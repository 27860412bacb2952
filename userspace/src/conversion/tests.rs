//! A network that is ready, spoiled in one way at a time: the check that is about it says so, and no other.

mod inputs;

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{
    document::Document,
    facts::{Inputs, Named},
    *,
};

/// What an operator of a ready network exports.
#[derive(Clone)]
struct Exports {
    aks: Value,
    vnet: Value,
    api: Value,
    nodes: Value,
    api_nsg: Value,
    nodes_nsg: Value,
}

impl Exports {
    fn ready() -> Self {
        let read = |name: &str| {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/planning/fixtures/ready");
            serde_json::from_slice(&fs::read(directory.join(name)).unwrap()).unwrap()
        };
        Self {
            aks: read("aks.json"),
            vnet: read("vnet.json"),
            api: read("api.json"),
            nodes: read("nodes.json"),
            api_nsg: read("api-nsg.json"),
            nodes_nsg: read("nodes-nsg.json"),
        }
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            cluster: Some(document("aks.json", &self.aks)),
            network: Some(document("vnet.json", &self.vnet)),
            subnets: vec![
                document("api.json", &self.api),
                document("nodes.json", &self.nodes),
            ],
            groups: vec![
                document("api-nsg.json", &self.api_nsg),
                document("nodes-nsg.json", &self.nodes_nsg),
            ],
            ..Inputs::default()
        }
    }
}

fn document(name: &str, value: &Value) -> Document {
    Document::parse(Path::new(name), value.to_string().as_bytes()).unwrap()
}

fn findings(inputs: Inputs) -> Vec<Finding> {
    check(&Facts::gather(inputs).unwrap())
}

fn verdict(findings: &[Finding], id: &str) -> Verdict {
    find(findings, id).verdict
}

fn find<'a>(findings: &'a [Finding], id: &str) -> &'a Finding {
    findings
        .iter()
        .find(|finding| finding.id == id)
        .unwrap_or_else(|| panic!("no check {id}"))
}

/// The checks that end in another way than for the network that is ready.
fn changed(change: impl FnOnce(&mut Exports)) -> Vec<(&'static str, Verdict)> {
    let mut exports = Exports::ready();
    let before = findings(exports.inputs());
    change(&mut exports);
    let after = findings(exports.inputs());
    let other = after
        .iter()
        .filter(|finding| verdict(&before, finding.id) != finding.verdict);
    other.map(|finding| (finding.id, finding.verdict)).collect()
}

use Verdict::{Fail, Pass, Unknown, Warn};

#[test]
fn a_ready_network_fails_nothing_and_leaves_what_nobody_can_tell() {
    let findings = findings(Exports::ready().inputs());
    let not_passed: Vec<_> = findings
        .iter()
        .filter(|finding| finding.verdict != Pass)
        .map(|finding| (finding.id, finding.verdict))
        .collect();
    let expected = [
        ("permissions", Unknown),
        ("old-address", Warn),
        ("one-way", Warn),
        ("restart", Warn),
    ];
    assert_eq!(not_passed, expected, "{findings:#?}");
    let mut ids: Vec<&str> = findings.iter().map(|finding| finding.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), findings.len(), "each check has a name of its own");
    let rooms = &find(&findings, "room").reason;
    assert!(
        rooms.contains("27 addresses") && rooms.contains("3 fit"),
        "{rooms}"
    );
    let rules = &find(&findings, "nsg-443").reason;
    for rule in ["nodes-nsg AllowVnetOutBound (65000)", "api-nsg allow-nodes (200)"] {
        assert!(rules.contains(rule), "{rules}");
    }
}

#[test]
fn every_check_of_the_subnet_fails_for_its_own_reason() {
    fn prefix(exports: &mut Exports, prefix: &str) {
        exports.api["addressPrefix"] = prefix.into();
        exports.vnet["subnets"][0] = exports.api.clone();
        for rule in exports.api_nsg.as_array_mut().unwrap().iter_mut().take(2) {
            rule["destinationAddressPrefix"] = "*".into();
        }
    }
    let nic = |name: &str| json!({ "id": format!("/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/shop/providers/Microsoft.Network/networkInterfaces/{name}/ipConfigurations/1") });
    let balancer = |group: &str| json!({ "id": format!("/subscriptions/s/resourceGroups/{group}/providers/Microsoft.Network/loadBalancers/KUBE-APISERVER/frontendIPConfigurations/KUBE-APISERVER-FRONTEND") });
    let managed = json!([{ "linkedResourceType": "Microsoft.ContainerService/managedClusters" }]);
    assert_eq!(changed(|e| prefix(e, "10.226.0.0/28")), []);
    assert_eq!(
        changed(|e| prefix(e, "10.226.0.0/29")),
        [("subnet-size", Fail), ("room", Fail)]
    );
    assert_eq!(changed(|e| prefix(e, "10.99.0.0/27")), [("subnet-in-vnet", Fail)]);
    assert_eq!(
        changed(|e| prefix(e, "10.240.1.0/27")),
        [("overlap-cluster", Fail)]
    );
    assert_eq!(
        changed(|e| e.aks["networkProfile"]["podCidrs"] = json!(["10.226.0.0/16"])),
        [("overlap-pods", Fail)]
    );
    assert_eq!(
        changed(|e| e.aks["networkProfile"]["podCidrs"] = json!(["10.226.0.8/29"])),
        [("overlap-pods", Fail)]
    );
    assert_eq!(
        changed(|e| e.aks["networkProfile"]["serviceCidrs"] = json!(["10.224.0.0/11"])),
        [("overlap-services", Fail)]
    );
    assert_eq!(changed(|e| e.aks["networkProfile"]["podCidr"] = Value::Null), []);
    assert_eq!(
        changed(|e| {
            prefix(e, "172.31.4.0/27");
            e.vnet["addressSpace"]["addressPrefixes"] = json!(["172.16.0.0/12", "10.240.0.0/16"]);
        }),
        [("reserved-ranges", Fail)]
    );
    assert_eq!(
        changed(|e| e.api["delegations"] = json!([])),
        [("delegation", Fail)]
    );
    assert_eq!(
        changed(|e| e.api["delegations"][0]["serviceName"] = "Microsoft.Web/serverFarms".into()),
        [("delegation", Fail)]
    );
    assert_eq!(
        changed(|e| e.api["ipConfigurations"] = json!([nic("jump-host")])),
        [("exclusive", Fail)]
    );
    assert_eq!(
        changed(|e| e.api["privateEndpoints"] = json!([nic("vault")])),
        [("exclusive", Fail)]
    );
    assert_eq!(
        changed(|e| e.api["serviceAssociationLinks"] =
            json!([{ "linkedResourceType": "Microsoft.Web/serverfarms" }])),
        [("exclusive", Fail)]
    );
    // Other clusters' API servers may be in it, as many as there is room for.
    let tenants = |n: usize| (0..n).map(|i| balancer(&format!("mc_{i}"))).collect::<Value>();
    assert_eq!(
        changed(|e| {
            e.api["ipConfigurations"] = tenants(2);
            e.api["serviceAssociationLinks"] = managed.clone();
        }),
        []
    );
    assert_eq!(
        changed(|e| e.api["ipConfigurations"] = tenants(3)),
        [("room", Fail)]
    );
    let nics: Value = (0..19).map(|i| nic(&format!("vm-{i}"))).collect();
    assert_eq!(
        changed(|e| e.api["ipConfigurations"] = nics),
        [("exclusive", Fail), ("room", Fail)]
    );
}

#[test]
fn a_subnet_of_another_network_is_told_from_the_nodes_own() {
    let elsewhere = |e: &mut Exports| {
        let id = e.api["id"].as_str().unwrap().replace("shop-vnet", "other-vnet");
        e.api["id"] = id.into();
        e.api["name"] = "api-elsewhere".into();
        e.vnet["subnets"].as_array_mut().unwrap().remove(0);
    };
    assert_eq!(changed(elsewhere), [("same-vnet", Fail)]);
    let managed = |e: &mut Exports| e.aks["agentPoolProfiles"][0]["vnetSubnetId"] = Value::Null;
    assert_eq!(changed(managed), [("same-vnet", Unknown)]);
}

#[test]
fn traffic_is_judged_at_both_groups_and_by_both_ports() {
    assert_eq!(
        changed(|e| e.api_nsg[0]["destinationPortRanges"] = json!(["443"])),
        [("nsg-4443", Fail)]
    );
    assert_eq!(
        changed(|e| e.api_nsg[0]["sourceAddressPrefix"] = "10.240.0.0/17".into()),
        [("nsg-443", Fail), ("nsg-4443", Fail)]
    );
    assert_eq!(
        changed(|e| e.api_nsg[1]["protocol"] = "Udp".into()),
        [("nsg-9988", Fail)]
    );
    assert_eq!(
        changed(|e| e.nodes_nsg["securityRules"][0]["destinationAddressPrefix"] = "*".into()),
        [("nsg-443", Fail), ("nsg-4443", Fail)]
    );
    assert_eq!(
        changed(|e| {
            let rule = &mut e.nodes_nsg["securityRules"][0];
            rule["direction"] = "Inbound".into();
            rule["destinationAddressPrefix"] = "*".into();
        }),
        [("nsg-kubelet", Warn)]
    );
    assert_eq!(
        changed(|e| e.api["networkSecurityGroup"] = Value::Null),
        [],
        "no group lets everything pass"
    );
    assert_eq!(
        changed(|e| e.api["networkSecurityGroup"]["id"] = "/x/networkSecurityGroups/other".into()).len(),
        4
    );
    assert_eq!(
        changed(|e| e.nodes["routeTable"] = json!({ "id": "/x/routeTables/udr" })),
        [("routes", Warn)]
    );
}

#[test]
fn a_denial_comes_with_a_rule_that_mends_it() {
    let mut exports = Exports::ready();
    exports.api_nsg[0]["sourceAddressPrefix"] = "10.240.0.0/17".into();
    let findings = findings(exports.inputs());
    let finding = find(&findings, "nsg-443");
    assert_eq!(
        finding.reason,
        "api-nsg: deny-all (4096) denies 10.240.128.0/17 to 10.226.0.0/27, inbound"
    );
    let fix = finding.fix.as_deref().unwrap();
    for part in [
        "--resource-group shop --nsg-name api-nsg",
        "--priority 4095 --direction Inbound --access Allow --protocol Tcp",
        "--source-address-prefixes 10.240.128.0/17 --destination-address-prefixes 10.226.0.0/27",
        "--destination-port-ranges 443",
    ] {
        assert!(fix.contains(part), "{fix}");
    }
    let denied: Vec<_> = finding
        .decisions
        .iter()
        .filter(|ruling| ruling.access == "deny")
        .collect();
    assert_eq!(denied.len(), 1);
    assert_eq!(
        (denied[0].rule.as_str(), denied[0].priority, denied[0].port),
        ("deny-all", 4096, 443)
    );
}

#[test]
fn what_the_conversion_changes_is_said() {
    assert_eq!(
        changed(|e| e.vnet["encryption"] = json!({ "enabled": true })),
        [("vnet-encryption", Warn)]
    );
    assert_eq!(
        changed(|e| e.aks["networkProfile"]["ipFamilies"] = json!(["IPv4", "IPv6"])),
        [("dual-stack", Warn)]
    );
    assert_eq!(
        changed(|e| {
            e.api["addressPrefix"] = Value::Null;
            e.api["addressPrefixes"] = json!(["10.226.0.0/27", "fd00:1::/64"]);
        }),
        [("subnet-in-vnet", Pass), ("dual-stack", Warn)][1..]
    );
    let access = |access: Value| changed(move |e| e.aks["apiServerAccessProfile"] = access);
    assert_eq!(
        access(json!({ "authorizedIpRanges": ["203.0.113.0/24"] })),
        [("authorized-ranges", Warn)]
    );
    assert_eq!(
        access(json!({ "enablePrivateCluster": true })),
        [("private-cluster", Warn)]
    );
    assert_eq!(
        access(json!({ "enableVnetIntegration": true, "subnetId": Exports::ready().api["id"] })),
        [("old-address", Pass), ("one-way", Pass), ("restart", Pass)]
    );
}

#[test]
fn rules_by_the_old_address_are_found() {
    let mut exports = Exports::ready();
    exports.nodes_nsg["securityRules"][0]["destinationAddressPrefix"] = "20.50.60.64/28".into();
    let inputs = Inputs {
        old_address: Some("20.50.60.70".parse().unwrap()),
        ..exports.inputs()
    };
    let reason = find(&findings(inputs), "old-address").reason.clone();
    assert_eq!(
        reason,
        "the API server leaves 20.50.60.70, which is in nodes-nsg: deny-internet (4000)"
    );
}
