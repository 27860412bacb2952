//! What a migration would do, in sentences.

use serde::Serialize;

use super::{
    MigrateError,
    journal::{Bridge, Journal, Phase, Pod, Uplink},
    kernel, survey,
    survey::Survey,
};
use crate::root::Root;

/// What `--apply` would do.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// `bridge`, `applying`, `causeway`, `rollingBack`: where the node is.
    pub node: &'static str,
    /// Whether `--apply` would try.
    pub possible: bool,
    /// Why it would not, each with what can be done about it.
    pub obstacles: Vec<String>,
    /// In their order.
    pub steps: Vec<Step>,
    /// What others have on the node, and what becomes of it.
    pub notes: Vec<String>,
}

/// A change of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Of what.
    pub what: String,
    /// What it is.
    pub now: String,
    /// What it will be.
    pub then: String,
}

/// Looks at the node and says what a migration would do. Changes nothing.
pub fn plan(root: &Root) -> Result<Plan, MigrateError> {
    let journal = Journal::load(root)?;
    let survey = survey::look(root, journal.as_ref())?;
    Ok(Plan {
        node: match journal.as_ref().map(|journal| journal.phase) {
            None => "bridge",
            Some(Phase::Applying) => "applying",
            Some(Phase::Applied) => "causeway",
            Some(Phase::RollingBack | Phase::Unloading) => "rollingBack",
        },
        possible: survey.obstacles.is_empty(),
        steps: match &survey.network {
            Some((bridge, uplink)) if survey.obstacles.is_empty() => {
                steps(&survey, bridge, uplink, journal.is_none())
            }
            _ => Vec::new(),
        },
        notes: notes(&survey, journal.is_none()),
        obstacles: survey.obstacles,
    })
}

fn notes(survey: &Survey, on_bridge: bool) -> Vec<String> {
    let mut notes = survey.notes.clone();
    if on_bridge
        && survey.network.is_some()
        && survey.translations.rules.is_empty()
        && survey.obstacles.is_empty()
    {
        notes.push("no rule masquerades the pods: Causeway will, but for destinations in 10.0.0.0/8 and 168.63.129.16".to_owned());
    }
    let pods =
        |names: &[String], what: &str| (!names.is_empty()).then(|| format!("{}: {what}", names.join(", ")));
    notes.extend(pods(
        &survey.gone,
        "the interface is gone; a DEL will free the address",
    ));
    notes.extend(pods(&survey.routed, "routed already, left as it is"));
    notes
}

fn steps(survey: &Survey, bridge: &Bridge, uplink: &Uplink, moves_uplink: bool) -> Vec<Step> {
    let step = |what: &str, now: String, then: String| Step {
        what: what.to_owned(),
        now,
        then,
    };
    let mut steps = Vec::new();
    if moves_uplink {
        steps.push(step(
            &uplink.name,
            format!("a port of {}, without programs", bridge.name),
            "with the programs cwy_from_uplink and cwy_to_uplink".to_owned(),
        ));
    }
    steps.extend(survey.pods.iter().map(|pod| wiring(pod, bridge)));
    for rule in &survey.translations.rules {
        let left_alone: Vec<String> = survey
            .translations
            .excluded
            .iter()
            .map(ToString::to_string)
            .collect();
        steps.push(step(
            "nat POSTROUTING",
            format!("rule {}: {}", rule.position, rule.text),
            format!(
                "without it; Causeway masquerades all but {}",
                left_alone.join(", ")
            ),
        ));
    }
    if !steps.is_empty() {
        steps.push(step(
            "flows",
            "translated by conntrack".to_owned(),
            "translated by Causeway with the same ports".to_owned(),
        ));
    }
    if moves_uplink {
        let addresses = bridge.addresses.iter().filter_map(kernel::local);
        let addresses: Vec<String> = addresses
            .map(|(address, length)| format!("{address}/{length}"))
            .collect();
        steps.push(step(
            &uplink.name,
            format!(
                "a port of {}, which has {} and the routes",
                bridge.name,
                addresses.join(", ")
            ),
            format!("has them itself; {} stays, empty", bridge.name),
        ));
    }
    steps
}

fn wiring(pod: &Pod, bridge: &Bridge) -> Step {
    let via = pod.routes.iter().find_map(kernel::gateway);
    Step {
        what: format!("pod {} {}", pod.name, pod.addr()),
        now: format!(
            "{} is a port of {}, default route via {}",
            pod.host_if,
            bridge.name,
            via.map_or_else(|| "none".to_owned(), |via| via.to_string())
        ),
        then: format!(
            "{} is routed to, with the programs; default route via 169.254.1.1",
            pod.host_if
        ),
    }
}
