//! `causeway sweep`.

use std::{
    io::{self, Write},
    time::Instant,
};

use causeway::datapath::{self, Datapath, Swept};
use serde::Serialize;

use super::{Failure, output::Report};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sweep {
    scanned: usize,
    deleted: usize,
    kept_by_peer: usize,
    seconds: f64,
}

pub(crate) fn gather(datapath: &Datapath) -> Result<Sweep, Failure> {
    let start = Instant::now();
    let Swept {
        scanned,
        deleted,
        pairs_kept_by_peer,
    } = datapath.sweep(datapath::now())?;
    Ok(Sweep {
        scanned,
        deleted,
        kept_by_peer: pairs_kept_by_peer,
        seconds: start.elapsed().as_secs_f64(),
    })
}

impl Report for Sweep {
    const KIND: &'static str = "Sweep";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self {
            scanned,
            deleted,
            kept_by_peer,
            seconds,
        } = self;
        writeln!(
            out,
            "scanned {scanned} entries and deleted {deleted} in {seconds:.3} s"
        )?;
        if *kept_by_peer > 0 {
            writeln!(
                out,
                "{kept_by_peer} are idle and stay: the other direction is not"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stayed_is_told_only_when_something_did() {
        let text = |sweep: &Sweep| {
            let mut out = Vec::new();
            sweep.write_text(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let mut sweep = Sweep {
            scanned: 1000,
            deleted: 20,
            kept_by_peer: 0,
            seconds: 0.0123,
        };
        assert_eq!(text(&sweep), "scanned 1000 entries and deleted 20 in 0.012 s\n");
        sweep.kept_by_peer = 3;
        assert!(text(&sweep).ends_with("3 are idle and stay: the other direction is not\n"));
    }
}
