//! `causeway upgrade`.

use std::io::{self, Write as _};

use causeway::{
    datapath::{Datapath, Upgraded},
    root::Root,
};

use super::Failure;

pub(crate) fn run(root: &Root, again: bool) -> Result<(), Failure> {
    let text = match Datapath::upgrade(root, again)? {
        Upgraded::NotLoaded => "nothing is loaded".to_owned(),
        Upgraded::UpToDate => "the programs are this version's".to_owned(),
        Upgraded::Exchanged { hooks } => format!("the programs are exchanged on {hooks} hooks"),
    };
    writeln!(io::stdout(), "{text}").map_err(Failure::Output)
}
