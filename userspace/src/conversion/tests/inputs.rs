//! Parts of the documents, flags, and documents that are wrong.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[test]
fn what_nobody_said_is_unknown_and_no_failure() {
    let nothing = findings(Inputs::default());
    assert!(
        nothing
            .iter()
            .all(|finding| finding.verdict == Unknown || finding.verdict == Warn),
        "{nothing:#?}"
    );
    let flags = Inputs {
        api_subnet: Some("10.226.0.0/28".to_owned()),
        cluster_subnets: vec!["10.240.0.0/16".to_owned()],
        network_ranges: vec!["10.224.0.0/11".parse().unwrap()],
        pods: vec!["192.168.0.0/16".parse().unwrap()],
        services: vec!["10.2.0.0/16".parse().unwrap()],
        api_group: Some(Named::Nothing),
        cluster_group: Some(Named::Nothing),
        ..Inputs::default()
    };
    let flags = findings(flags);
    for id in [
        "subnet-size",
        "subnet-in-vnet",
        "overlap-cluster",
        "overlap-pods",
        "overlap-services",
        "nsg-443",
        "nsg-9988",
    ] {
        assert_eq!(verdict(&flags, id), Pass, "{id}");
    }
    for id in [
        "delegation",
        "exclusive",
        "room",
        "same-vnet",
        "permissions",
        "vnet-encryption",
    ] {
        let finding = find(&flags, id);
        assert_eq!(finding.verdict, Unknown, "{id}");
        assert!(finding.fix.is_some(), "{id}");
    }
    // A document left out costs what only it tells.
    let mut inputs = Exports::ready().inputs();
    inputs.groups.remove(0);
    assert_eq!(
        find(&findings(inputs), "nsg-443").fix.as_deref().unwrap(),
        "az network nsg rule list --resource-group shop --nsg-name api-nsg > nsg.json, and --nsg nsg.json"
    );
}

#[test]
fn the_subnet_is_found_by_what_there_is() {
    let api = |change: &dyn Fn(&mut Inputs)| {
        let mut inputs = Exports::ready().inputs();
        change(&mut inputs);
        Facts::gather(inputs).map(|facts| facts.api.map(|subnet| subnet.name))
    };
    assert_eq!(api(&|_| {}).unwrap().unwrap(), "api", "the one that is delegated");
    assert_eq!(
        api(&|i| i.api_subnet = Some("nodes".to_owned()))
            .unwrap()
            .unwrap(),
        "nodes",
        "by name"
    );
    assert_eq!(
        api(&|i| i.api_subnet = Some("10.240.0.0/16".to_owned()))
            .unwrap()
            .unwrap(),
        "nodes",
        "by prefix"
    );
    assert_eq!(
        api(&|i| i.subnets.clear()).unwrap().unwrap(),
        "api",
        "in the network's document"
    );
    let error = api(&|i| i.api_subnet = Some("nowhere".to_owned())).unwrap_err();
    assert!(
        error[0]
            .to_string()
            .starts_with("--api-subnet: \"nowhere\" is no prefix"),
        "{error:?}"
    );
    let error = api(&|i| i.api_subnet = Some("10.226.0.1/27".to_owned())).unwrap_err();
    assert!(error[0].to_string().contains("write 10.226.0.0/27"), "{error:?}");
    let mut two = Exports::ready();
    let mut other = two.api.clone();
    other["name"] = "other".into();
    other["id"] = other["id"].as_str().unwrap().replace("/api", "/other").into();
    other["addressPrefix"] = "10.227.0.0/27".into();
    two.vnet["subnets"].as_array_mut().unwrap().push(other);
    let name = |inputs: Inputs| Facts::gather(inputs).unwrap().api.map(|subnet| subnet.name);
    assert_eq!(
        name(two.inputs()).unwrap(),
        "api",
        "the delegated one that has a document of its own"
    );
    let both = Inputs {
        subnets: Vec::new(),
        ..two.inputs()
    };
    let why = name(both).unwrap_err();
    assert_eq!(
        why,
        "several subnets are delegated: api (10.226.0.0/27), other (10.227.0.0/27)"
    );
    let none = api(&|i| {
        i.subnets.remove(0);
        i.network = None;
    });
    assert!(none.unwrap().is_err());
    let undelegated = |e: &mut Exports| e.api["delegations"] = json!([]);
    let mut exports = Exports::ready();
    undelegated(&mut exports);
    let facts = Facts::gather(Inputs {
        network: None,
        ..exports.inputs()
    });
    assert_eq!(
        facts.unwrap().api.unwrap().name,
        "api",
        "the one that is not the nodes'"
    );
}

#[test]
fn rules_that_do_not_say_whose_they_are_are_asked_for_by_subnet() {
    let exports = Exports::ready();
    let empty = || document("empty.json", &json!([]));
    let mut inputs = exports.inputs();
    inputs.groups[0] = empty();
    let errors = Facts::gather(inputs).unwrap_err();
    assert!(
        errors[0]
            .to_string()
            .starts_with("empty.json: does not say whose rules these are: give the file as --api-nsg"),
        "{errors:?}"
    );
    let mut inputs = exports.inputs();
    inputs.groups.remove(0);
    inputs.api_group = Some(Named::Rules(empty()));
    let findings = findings(inputs);
    assert_eq!(verdict(&findings, "nsg-443"), Pass);
    let reason = &find(&findings, "nsg-443").reason;
    assert!(reason.contains("empty AllowVnetInBound (65000)"), "{reason}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn prefixes_are_compared_as_their_addresses_are(
        api in (0..256_u32, 25..=32_u8), other in (0..256_u32, 25..=32_u8), network in (0..256_u32, 24..=32_u8)
    ) {
        let addresses = |(base, length): (u32, u8)| -> BTreeSet<u32> {
            let mask = (1 << (32 - length)) - 1;
            ((base & !mask)..=(base | mask)).collect()
        };
        let text = |(base, length): (u32, u8)| {
            let mask = (1 << (32 - length)) - 1;
            format!("10.226.0.{}/{length}", base & !mask)
        };
        let inputs = Inputs {
            api_subnet: Some(text(api)),
            cluster_subnets: vec![text(other)],
            network_ranges: vec![text(network).parse().unwrap()],
            ..Inputs::default()
        };
        let findings = findings(inputs);
        let apart = addresses(api).is_disjoint(&addresses(other));
        prop_assert_eq!(verdict(&findings, "overlap-cluster"), if apart { Pass } else { Fail });
        let inside = addresses(api).is_subset(&addresses(network));
        prop_assert_eq!(verdict(&findings, "subnet-in-vnet"), if inside { Pass } else { Fail });
        let usable = addresses(api).len().saturating_sub(5);
        let reason = &find(&findings, "room").reason;
        prop_assert!(reason.contains(&format!(": {usable} addresses ")), "{}", reason);
    }
}

#[test]
fn every_wrong_document_is_named_at_once() {
    let exports = Exports::ready();
    let inputs = Inputs {
        cluster: Some(document("a.json", &exports.vnet)),
        network: Some(document("b.json", &exports.api)),
        subnets: vec![document("c.json", &json!([5]))],
        groups: vec![document("d.json", &exports.aks)],
        ..Inputs::default()
    };
    let errors: Vec<String> = Facts::gather(inputs)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert_eq!(
        errors[0],
        "a.json: is about a virtual network; write a cluster with `az aks show`"
    );
    let mut broken = Exports::ready();
    broken.vnet["addressSpace"]["addressPrefixes"] = json!(["10.0.0.0/40"]);
    let errors = Facts::gather(broken.inputs()).unwrap_err();
    assert!(
        errors[0]
            .to_string()
            .starts_with("vnet.json: addressSpace.addressPrefixes: expected a range"),
        "{errors:?}"
    );
}

#[test]
fn room_is_what_azure_leaves_divided_by_nine() {
    for (prefix, usable, clusters) in [
        (24, 251, "27 fit"),
        (25, 123, "13 fit"),
        (26, 59, "6 fit"),
        (27, 27, "3 fit"),
        (28, 11, "one fits"),
        (29, 3, "none fits"),
        (32, 0, "none fits"),
    ] {
        let inputs = Inputs {
            api_subnet: Some(format!("10.226.0.0/{prefix}")),
            ..Inputs::default()
        };
        let findings = findings(inputs);
        let reason = &find(&findings, "room").reason;
        assert!(
            reason.contains(&format!(" {usable} addresses")) && reason.contains(clusters),
            "{reason}"
        );
        let expected = if prefix > 28 { Fail } else { Pass };
        assert_eq!(verdict(&findings, "subnet-size"), expected);
    }
}
