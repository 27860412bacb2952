//! `causeway nat list`: the translated flows as pairs of who speaks and whom the remote sees.

use std::io::{self, Write};

use causeway::datapath::Datapath;
use causeway_common::flow::Nat;
use serde::Serialize;

use super::{
    Failure,
    flows::{self, Filter, Flow, Flows},
    output::{self, Report},
};

#[derive(Serialize)]
pub(crate) struct Translations {
    translations: Vec<Flow>,
    /// How many more match than are shown.
    omitted: usize,
}

/// The halves that a packet from inside meets: each has one of the answers beside it.
pub(crate) fn gather(datapath: &Datapath, filter: &Filter) -> Result<Translations, Failure> {
    let Flows { flows, omitted } = flows::gather_only(datapath, filter, |nat| nat == Nat::SOURCE)?;
    Ok(Translations {
        translations: flows,
        omitted,
    })
}

impl Report for Translations {
    const KIND: &'static str = "Translations";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let row = |flow: &Flow| {
            let ([source, destination], [state, idle]) = (flow.ends(), flow.standing());
            [
                flow.protocol.clone(),
                source,
                flow.translated(),
                destination,
                state,
                idle,
            ]
        };
        let heading = ["PROTO", "SOURCE", "SEEN AS", "DESTINATION", "STATE", "IDLE"];
        output::write_table(out, heading, self.translations.iter().map(row))?;
        if self.omitted > 0 {
            writeln!(out, "({} more)", self.omitted)?;
        }
        Ok(())
    }
}
