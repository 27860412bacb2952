//! Other kernel programs on a node that is up: for trying a change without building plug-ins and command line again.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use aya::{
    EbpfLoader,
    programs::{
        SchedClassifier,
        links::{FdLink, PinnedLink},
        tc::SchedClassifierLink,
    },
};
use causeway_tests::netns::Netns;

/// Puts the programs of `object` in place of those that are pinned in `tree`, on all their hooks, with the maps that are
/// there. The maps' layouts must be the same, and the hooks tcx.
pub(crate) fn programs(node: &Netns, tree: &Path, object: &Path) -> Result<()> {
    let mut loader = EbpfLoader::new();
    let maps = names(&tree.join("maps"))?;
    for name in &maps {
        loader.map_pin_path(name, tree.join("maps").join(name));
    }
    let mut object = loader
        .load_file(object)
        .with_context(|| format!("cannot load {}", object.display()))?;
    let links = names(&tree.join("links"))?;
    for name in names(&tree.join("progs"))? {
        let program: &mut SchedClassifier = object
            .program_mut(&name)
            .with_context(|| format!("the object has no {name}"))?
            .try_into()?;
        program.load().with_context(|| format!("cannot load {name}"))?;
        let pin = tree.join("progs").join(&name);
        fs::remove_file(&pin)?;
        program.pin(&pin)?;
        for link in links
            .iter()
            .filter(|link| program_of(link) == Some(name.as_str()))
        {
            let pinned: FdLink = PinnedLink::from_pin(tree.join("links").join(link))?.into();
            let link: SchedClassifierLink = pinned.try_into()?;
            let id = node.run(|| program.attach_to_link(link))??;
            // The pin keeps the link; ours must not end it.
            drop(program.take_link(id)?);
        }
    }
    Ok(())
}

/// The program that belongs on the hook that a link is named after.
fn program_of(link: &str) -> Option<&'static str> {
    match (link.starts_with("uplink_"), link.rsplit('_').next()?) {
        (true, "ingress") => Some("cwy_from_uplink"),
        (true, "egress") => Some("cwy_to_uplink"),
        (false, "ingress") => Some("cwy_from_pod"),
        (false, "egress") => Some("cwy_to_pod"),
        _ => None,
    }
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_named_after_its_hook() {
        assert_eq!(program_of("uplink_egress"), Some("cwy_to_uplink"));
        assert_eq!(program_of("azv12ab_ingress"), Some("cwy_from_pod"));
        assert_eq!(program_of("other"), None);
    }
}
