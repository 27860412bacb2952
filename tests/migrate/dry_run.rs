//! The plan: what it says, what it refuses, and that it changes nothing.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::{incumbent::Site, snapshot::Snapshot};

fn strings(list: &Value) -> String {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.collect::<Vec<_>>().join("\n")
}

/// What a command said that had to fail.
fn failure(done: Result<String>) -> Result<String> {
    match done {
        Ok(text) => bail!("it did not fail: {text}"),
        Err(error) => Ok(error.to_string()),
    }
}

/// What stands in the way of `--apply`, which has to refuse it as well, and change nothing.
fn refusal(site: &Site) -> Result<String> {
    let before = Snapshot::of(site)?;
    // A plan that is not possible exits with 1 and is printed all the same: the error holds it.
    let plan = failure(site.node.causeway(&["migrate", "--dry-run"]))?;
    let applied = failure(site.node.causeway(&["migrate", "--apply"]))?;
    assert!(applied.contains("cannot be migrated"), "{applied}");
    Snapshot::of(site)?.assert_is(&before);
    assert!(plan.contains("cannot:"), "{plan}");
    Ok(plan)
}

#[test]
fn the_plan_names_every_step_and_changes_nothing() -> Result<()> {
    let site = Site::new(3)?;
    let before = Snapshot::of(&site)?;
    let plan = site.migrate("--dry-run")?;
    assert_eq!(
        (&plan["node"], &plan["possible"]),
        (&"bridge".into(), &true.into()),
        "{plan:#}"
    );
    let steps = plan["steps"].to_string();
    for word in [
        "pod5 10.240.0.5",
        "pod7 10.240.0.7",
        "azv01234567890",
        "-j MASQUERADE",
        "10.0.0.0/8",
        "168.63.129.16/32",
        "10.240.0.4/16",
        "169.254.1.1",
    ] {
        assert!(steps.contains(word), "{word} is not in {plan:#}");
    }
    Snapshot::of(&site)?.assert_is(&before);
    site.assert_no_leak();
    Ok(())
}

#[test]
fn what_stands_in_the_way_is_named() -> Result<()> {
    let site = Site::new(2)?;
    site.node
        .ns
        .ip("link add odd type veth peer name even\nlink set odd master azure0")?;
    assert!(refusal(&site)?.contains("odd is a port of the bridge"));
    site.node.ns.ip("link del odd")?;
    let iptables = |verb: &str| {
        site.node.ns.output(
            "iptables",
            &["-t", "nat", verb, "POSTROUTING", "-p", "tcp", "-j", "MASQUERADE"],
        )
    };
    iptables("-A")?;
    assert!(refusal(&site)?.contains("-p tcp -j MASQUERADE"));
    iptables("-D")?;
    site.node.ns.output("iptables", &["-N", "CILIUM_FORWARD"])?;
    assert!(refusal(&site)?.contains("Cilium"));
    site.node.ns.output("iptables", &["-X", "CILIUM_FORWARD"])?;
    assert_eq!(site.migrate("--dry-run")?["possible"], true);
    Ok(())
}

#[test]
fn a_pod_that_cannot_be_entered_is_named() -> Result<()> {
    let site = Site::new(2)?;
    let path = site.node.root.join("/var/run/azure-vnet.json");
    let state = std::fs::read_to_string(&path)?;
    std::fs::write(
        &path,
        state.replace(&site.pods[1].ns.path(), "/var/run/netns/no-such-pod"),
    )?;
    let refusal = refusal(&site)?;
    assert!(
        refusal.contains("default/pod6") && refusal.contains("no-such-pod"),
        "{refusal}"
    );
    Ok(())
}

#[test]
fn a_node_in_mode_transparent_has_nothing_to_be_taken_over() -> Result<()> {
    let site = Site::new(1)?;
    let path = site.node.root.join("/var/run/azure-vnet.json");
    let state = std::fs::read_to_string(&path)?;
    std::fs::write(&path, state.replace("\"azure0\"", "\"\""))?;
    assert!(refusal(&site)?.contains("transparent"));
    let error = site.migrate("--rollback").unwrap_err().to_string();
    assert!(error.contains("was not migrated"), "{error}");
    Ok(())
}

#[test]
fn chains_that_stay_are_noted_and_the_agents_chain_is_taken_over() -> Result<()> {
    let site = Site::new(1)?;
    site.use_agents_chain()?;
    site.node.ns.output("iptables", &["-N", "AZURE-NPM"])?;
    let plan = site.migrate("--dry-run")?;
    assert_eq!(plan["possible"], true, "{plan:#}");
    assert!(
        plan["steps"].to_string().contains("10.0.0.0/8, 192.0.2.0/24"),
        "{plan:#}"
    );
    let notes = strings(&plan["notes"]);
    assert!(
        notes.contains("ip-masq-agent puts its chain back") && notes.contains("AZURE-NPM"),
        "{notes}"
    );
    Ok(())
}
