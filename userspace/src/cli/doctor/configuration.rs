//! The configuration, and whether it is in force.

use super::{
    Code, Finding,
    snapshot::{Pinned, Snapshot},
};

pub(super) fn check(node: &Snapshot) -> Vec<Finding> {
    let configuration = match &node.configuration {
        Ok(configuration) => configuration,
        Err(error) => {
            let finding = Finding::new(Code::ConfigWrong, error.to_string());
            return vec![finding.with("VALUE", "what `causeway config check` names")];
        }
    };
    let Pinned::Open(loaded) = &node.datapath else {
        return Vec::new();
    };
    let mut wanted = configuration.settings.ranges();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted == loaded.ranges {
        return Vec::new();
    }
    let about = format!(
        "{} ranges are in force, the configuration has {}",
        loaded.ranges.len(),
        wanted.len()
    );
    vec![Finding::new(Code::ConfigNotInForce, about)]
}
