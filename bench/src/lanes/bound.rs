//! What redirects in place of a datapath, without looking.

use anyhow::Result;
use aya::{
    EbpfLoader,
    programs::{TcAttachType, XdpMode},
};

use super::way::{Way, second};
use crate::{peer::Peer, programs::Programs, stand::Stand};

/// Puts it on the hook where a way enters the node; `None` for peers that have a datapath.
pub(super) fn attach(stand: &Stand, way: Way) -> Result<Option<Programs>> {
    if !matches!(stand.peer, Peer::BlindTc | Peer::BlindXdp) {
        return Ok(None);
    }
    let node = stand.node()?;
    let pod = node.host_interface(&stand.pods[0])?;
    let (hook, target, name) = match way {
        Way::Out | Way::ToVnet | Way::Service => (pod, "eth0".to_owned(), "cwb_redirect"),
        Way::Back | Way::FromVnet => ("eth0".to_owned(), pod, "cwb_redirect_peer"),
        Way::Across => (pod, node.host_interface(second(stand)?)?, "cwb_redirect_peer"),
    };
    let ifindex = node.ns.ifindex(&target)?;
    let mut loader = EbpfLoader::new();
    let mut programs = Programs::load_with(loader.override_global("CWB_TARGET", &ifindex, true))?;
    if stand.peer == Peer::BlindXdp {
        let program = programs.xdp("cwb_redirect_xdp")?;
        node.ns.run(|| program.attach(&hook, XdpMode::Driver))??;
    } else {
        let program = programs.tc(name)?;
        node.ns.run(|| program.attach(&hook, TcAttachType::Ingress))??;
    }
    Ok(Some(programs))
}
