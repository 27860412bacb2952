//! `causeway ranges`.

use std::io::{self, Write};

use causeway::datapath::Datapath;
use causeway_common::maps::RangeClass;
use ipnet::Ipv4Net;
use serde::Serialize;

use super::{
    Failure,
    output::{self, Report},
};

#[derive(Serialize)]
pub(crate) struct Ranges {
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    prefix: Ipv4Net,
    class: String,
}

pub(crate) fn gather(datapath: &Datapath) -> Result<Ranges, Failure> {
    let mut ranges: Vec<_> = datapath.ranges()?;
    ranges.sort_unstable_by_key(|(prefix, _)| *prefix);
    let range = |(prefix, entry): (Ipv4Net, causeway_common::maps::RangeEntry)| Range {
        prefix,
        class: class(entry.class),
    };
    Ok(Ranges {
        ranges: ranges.into_iter().map(range).collect(),
    })
}

impl Report for Ranges {
    const KIND: &'static str = "Ranges";

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let rows = self
            .ranges
            .iter()
            .map(|range| [range.prefix.to_string(), range.class.clone()]);
        output::write_table(out, ["PREFIX", "CLASS"], rows)
    }
}

fn class(class: u8) -> String {
    match class {
        RangeClass::EXCLUDED => "excluded".to_owned(),
        RangeClass::MASQUERADED => "masqueraded".to_owned(),
        other => format!("class {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_names() {
        assert_eq!(class(RangeClass::EXCLUDED), "excluded");
        assert_eq!(class(RangeClass::MASQUERADED), "masqueraded");
        assert_eq!(class(9), "class 9");
    }
}
