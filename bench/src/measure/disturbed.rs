//! Established flows while programs are exchanged, ranges reloaded, and while the table is swept.

use anyhow::Result;

use super::{Hall, Measure};
use crate::{
    family::Family,
    generator::{Frames, SMALLEST_OF_BOTH},
    lanes::{
        disturbed::{Disturbance, DisturbedLane, PODS},
        way::{Load, Way},
    },
    peer::Peer,
    rounds::{Lane, Outcome, Plan, Unit, run},
    stand::Stand,
};

/// Translated flows of IPv4, and flows of IPv6, of one node.
pub(super) fn upgrade(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    let stand = Stand::dual_stack(Peer::Causeway, 1)?;
    let of_ipv6 = Load {
        family: Family::V6,
        frames: Frames::Of(SMALLEST_OF_BOTH),
        ..Load::PLAIN
    };
    let (snat, vnet) = ((Way::Out, Load::PLAIN), (Way::ToVnet, of_ipv6));
    let label = |family: Family, what: &str| format!("{}, {what}", family.name());
    let first = DisturbedLane::new(
        label(Family::V4, "undisturbed"),
        &stand,
        snat,
        Disturbance::None,
        &hall.plan,
    )?;
    let others = [
        (Family::V4, "programs exchanged", snat, Disturbance::Upgrade),
        (Family::V4, "ranges reloaded", snat, Disturbance::Reload),
        (Family::V6, "undisturbed", vnet, Disturbance::None),
        (Family::V6, "programs exchanged", vnet, Disturbance::Upgrade),
    ];
    let others = others
        .into_iter()
        .map(|(family, what, frames, disturbance)| first.beside(label(family, what), frames, disturbance));
    let others = others.collect::<Result<Vec<_>>>()?;
    let mut outcome = all(measure, &hall.plan, std::iter::once(first).chain(others))?;
    for (family, disturbed) in [
        (Family::V4, "programs exchanged"),
        (Family::V4, "ranges reloaded"),
        (Family::V6, "programs exchanged"),
    ] {
        let [during, before] = [disturbed, "undisturbed"].map(|what| label(family, what));
        if let Some(ratio) = outcome.ratio(&during, &before) {
            outcome.notes.push(format!(
                "{during}: {:.2} × undisturbed, {:.2} … {:.2}",
                ratio.median, ratio.low, ratio.high
            ));
        }
    }
    Ok(outcome)
}

/// Beside a table that is full to seven eighths.
pub(super) fn sweep(measure: &Measure, hall: &Hall) -> Result<Outcome> {
    /// A round opens the flows anew and lets them rest.
    const ROUNDS: usize = 7;
    let stand = Stand::build(Peer::Causeway, PODS, &hall.build)?;
    let snat = (Way::Out, Load::PLAIN);
    let first = DisturbedLane::new(
        "undisturbed".to_owned(),
        &stand,
        snat,
        Disturbance::None,
        &hall.plan,
    )?
    .crowded()?;
    let others = [
        ("swept, nothing is over", Disturbance::Sweep),
        (
            "swept, all but the measured flows are over",
            Disturbance::SweepOfIdle,
        ),
    ];
    let others = others
        .into_iter()
        .map(|(label, disturbance)| first.beside(label.to_owned(), snat, disturbance)?.crowded());
    let others = others.collect::<Result<Vec<_>>>()?;
    let plan = Plan {
        rounds: hall.plan.rounds.min(ROUNDS),
        ..hall.plan
    };
    all(measure, &plan, std::iter::once(first).chain(others))
}

fn all<'a>(
    measure: &Measure,
    plan: &Plan,
    lanes: impl Iterator<Item = DisturbedLane<'a>>,
) -> Result<Outcome> {
    let lanes = lanes.map(|lane| Box::new(lane) as Box<dyn Lane>).collect();
    run((measure.name, measure.title, Unit::Packets), lanes, plan)
}
