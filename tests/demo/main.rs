//! The main job, shown on this machine with nothing but namespaces: `cargo xtask demo`.
//!
//! Owns the order of the scenes. What is real: the CNI plug-in, the kernel programs, the traffic, the rules. What is not: the
//! cloud's fabric, which is a namespace that routes.

mod api_server;
mod private;
mod scenes;
mod story;
mod twin;

use std::process::ExitCode;

use anyhow::Result;

use crate::story::Story;

fn main() -> ExitCode {
    let mut story = Story::begin();
    match tell(&mut story) {
        Ok(()) => story.end(),
        Err(error) => story.broke(&error),
    }
}

fn tell(story: &mut Story) -> Result<()> {
    private::retreat()?;
    let rig = scenes::a_node(story)?;
    let pods = scenes::three_pods(story, &rig)?;
    scenes::pod_to_pod(story, &rig, &pods);
    scenes::pod_to_vnet(story, &rig, &pods);
    scenes::pod_to_internet(story, &rig, &pods);
    scenes::outside_to_pod(story, &rig, &pods);
    scenes::cluster_ip(story, &rig, &pods)?;
    scenes::host_port(story, &rig, &pods)?;
    scenes::policy(story, &rig, &pods)?;
    api_server::moves(story, &rig, &pods)?;
    scenes::what_the_tools_show(story, &rig, &pods)?;
    scenes::nothing_leaked(story, rig);
    twin::side_by_side(story)
}
