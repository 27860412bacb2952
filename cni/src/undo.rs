//! What a failed ADD has to take back.

use std::fmt::Display;

use crate::error::CniError;

type Step<'a> = Box<dyn FnOnce() -> Result<(), String> + 'a>;

/// Steps that take back what was done, newest first. Dropped without [`Undo::keep`], it runs them: also on a panic.
#[derive(Default)]
pub(crate) struct Undo<'a> {
    steps: Vec<(&'static str, Safety, Step<'a>)>,
}

/// When a step may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// Whatever became of the others.
    Always,
    /// Only if every step before it succeeded: an address must not be given again while anything still answers to it.
    AfterSuccess,
}

impl<'a> Undo<'a> {
    /// Notes how to take back what was done just now.
    pub(crate) fn push<E: Display>(
        &mut self,
        what: &'static str,
        safety: Safety,
        step: impl FnOnce() -> Result<(), E> + 'a,
    ) {
        self.steps.push((
            what,
            safety,
            Box::new(|| step().map_err(|error| error.to_string())),
        ));
    }

    /// The same steps, to be joined by some that borrow from what came after these.
    pub(crate) fn within<'b>(mut self) -> Undo<'b>
    where
        'a: 'b,
    {
        Undo {
            steps: std::mem::take(&mut self.steps)
                .into_iter()
                .map(|(what, safety, step)| (what, safety, step as Step<'b>))
                .collect(),
        }
    }

    /// Everything went well: nothing is taken back.
    pub(crate) fn keep(mut self) {
        self.steps.clear();
    }

    /// Takes everything back because of `cause`, and adds to it what could not be taken back.
    pub(crate) fn because_of(mut self, cause: CniError) -> CniError {
        self.run().iter().fold(cause, |cause, failure| cause.and(failure))
    }

    fn run(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        while let Some((what, safety, step)) = self.steps.pop() {
            if safety == Safety::AfterSuccess && !failures.is_empty() {
                failures.push(format!("{what} was not tried: delete the pod to try again"));
            } else if let Err(error) = step() {
                failures.push(format!("{what} failed: {error}"));
            }
        }
        failures
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for failure in self.run() {
            tracing::error!(failure, "cannot take back what was done");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn steps_run_newest_first_and_the_unsafe_ones_not_after_a_failure() {
        for (works, expected) in [(true, vec!["links", "address"]), (false, vec!["links"])] {
            let done = RefCell::new(Vec::new());
            let mut undo = Undo::default();
            undo.push("releasing the address", Safety::AfterSuccess, || {
                done.borrow_mut().push("address");
                Ok::<_, String>(())
            });
            undo.push("removing the links", Safety::Always, || {
                done.borrow_mut().push("links");
                if works { Ok(()) } else { Err("busy") }
            });
            let error = undo.because_of(CniError::new(100, "cause"));
            assert_eq!(*done.borrow(), expected);
            assert_eq!(error.details.is_empty(), works, "{}", error.details);
        }
    }

    #[test]
    fn what_is_kept_is_not_taken_back_and_what_is_dropped_is() {
        let done = RefCell::new(0);
        let count = || -> Result<(), String> {
            *done.borrow_mut() += 1;
            Ok(())
        };
        let mut kept = Undo::default();
        kept.push("x", Safety::Always, count);
        kept.keep();
        assert_eq!(*done.borrow(), 0);
        let mut dropped = Undo::default();
        dropped.push("x", Safety::Always, count);
        drop(dropped);
        assert_eq!(*done.borrow(), 1);
    }
}
