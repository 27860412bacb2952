//! The last scene: packets per second and core, beside what Causeway replaces.

use std::time::Duration;

use anyhow::Result;
use causeway_tests::{
    node::Datapath,
    rate::{Lane, compare},
    rig::Rig,
    stock,
};

use crate::story::Story;

/// How long the two take turns.
const LENGTH: Duration = Duration::from_secs(10);

pub(crate) fn side_by_side(story: &mut Story) -> Result<()> {
    story.scene("Ten seconds side by side with a bridge and the MASQUERADE rule");
    let (ours, twin) = (
        Rig::unwatched(Datapath::Causeway, 1)?,
        Rig::unwatched(Datapath::BridgeMasquerade, 1)?,
    );
    let (pod, peer) = (ours.pod("load")?, twin.pod("load")?);
    story.tell(&format!(
        "twin: bridge azure0 with eth0 enslaved, bridge-nf-call-iptables=1, no ebtables, and\n\
         iptables {}\n\
         60-byte UDP from a pod to the internet, 1024 flows, made by an XDP live-frame program and moved by the same CPU;\n\
         counted at the far end of the uplink, only if translated; in turns of 0.15 s, A B B A",
        stock::MASQUERADE
    ));
    let result = compare(&Lane::new(&ours, &pod)?, &Lane::new(&twin, &peer)?, LENGTH)?;
    let [low, high] =
        [result.ratios.first(), result.ratios.last()].map(|ratio| ratio.copied().unwrap_or_default());
    story.tell(&format!(
        "Causeway  {:>5.2} million packets per second and core",
        result.first / 1e6
    ));
    story.tell(&format!(
        "twin      {:>5.2} million packets per second and core",
        result.second / 1e6
    ));
    story.check(
        result.ratio() > 1.0,
        &format!(
            "{:.2} times as many: median of {} neighbouring pairs, from {low:.2} to {high:.2}",
            result.ratio(),
            result.ratios.len()
        ),
    );
    Ok(())
}
