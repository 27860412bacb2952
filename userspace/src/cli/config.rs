//! `causeway config`: what is in force, where it comes from, and whether what is written is right.

use std::io::{self, Write};

use causeway::{
    config::{self, Setting},
    root::Root,
};
use clap::Subcommand;
use serde::Serialize;

use super::{
    Failure,
    output::{self, Format, Report},
};

/// What to do with the configuration.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Every value that the files and the defaults give
    Show {
        /// Also which file each comes from
        #[arg(long)]
        sources: bool,
        /// The values that are in force, which is what is shown
        #[arg(long)]
        effective: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Whether the files are right, and if not what is wrong where
    Check,
    /// A file with every key, its default and what it means
    Reference,
}

/// Every value and its source.
#[derive(Serialize)]
pub(crate) struct Settings {
    settings: Vec<Setting>,
    #[serde(skip)]
    with_sources: bool,
}

pub(crate) fn run(action: &Action, root: &Root) -> Result<(), Failure> {
    match *action {
        Action::Show { sources, json, .. } => {
            let settings = Settings {
                with_sources: sources,
                ..gather(root)?
            };
            output::print(settings, Format::new(json))
        }
        Action::Check => {
            config::load(root).map_err(Failure::Config)?;
            writeln!(io::stdout(), "the configuration is right").map_err(Failure::Output)
        }
        Action::Reference => write!(io::stdout(), "{}", config::REFERENCE).map_err(Failure::Output),
    }
}

pub(crate) fn gather(root: &Root) -> Result<Settings, Failure> {
    let configuration = config::load(root).map_err(Failure::Config)?;
    Ok(Settings {
        settings: configuration.values,
        with_sources: false,
    })
}

impl Report for Settings {
    const KIND: &'static str = "Settings";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let settings = self.settings.iter();
        if self.with_sources {
            let rows = settings
                .map(|Setting { key, value, source }| [(*key).to_owned(), value.clone(), source.clone()]);
            output::write_table(out, ["KEY", "VALUE", "SOURCE"], rows)
        } else {
            let rows = settings.map(|Setting { key, value, .. }| [(*key).to_owned(), value.clone()]);
            output::write_table(out, ["KEY", "VALUE"], rows)
        }
    }
}
