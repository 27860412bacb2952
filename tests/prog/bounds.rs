//! Costs that do not depend on the machine.

use crate::bench::{Bench, Hook};

/// The kernel allows a million; a tenth of it keeps loading quick. Growth shows here first.
#[test]
fn the_verifier_needs_few_instructions() {
    let bench = Bench::new();
    for (hook, budget) in [
        (Hook::FromPod, 32_000),
        (Hook::ToPod, 12_000),
        (Hook::FromUplink, 25_000),
        (Hook::ToUplink, 92_000),
    ] {
        let verified = bench.verified_instructions(hook);
        println!(
            "{:16} {verified:6} instructions verified, budget {budget}",
            hook.program()
        );
        assert!(verified <= budget, "{}: {verified} > {budget}", hook.program());
    }
}
