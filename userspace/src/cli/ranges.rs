//! `causeway ranges`.

use std::io::{self, Write};

use causeway::datapath::Datapath;
use causeway_common::maps::RangeClass;
use ipnet::IpNet;
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
    prefix: IpNet,
    class: String,
}

pub(crate) fn gather(datapath: &Datapath) -> Result<Ranges, Failure> {
    let of_v4 = datapath.ranges()?.into_iter().map(range);
    let of_v6 = datapath.ranges_v6()?.into_iter().map(range);
    Ok(Ranges {
        ranges: of_v4.chain(of_v6).collect(),
    })
}

fn range<N: Into<IpNet>>((prefix, class): (N, u8)) -> Range {
    Range {
        prefix: prefix.into(),
        class: named(class),
    }
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

/// The word for a [`RangeClass`].
pub(super) fn named(class: u8) -> String {
    match class {
        RangeClass::EXCLUDED => "excluded".to_owned(),
        RangeClass::MASQUERADED => "masqueraded".to_owned(),
        RangeClass::API_SERVER => "API server".to_owned(),
        RangeClass::BALANCED => "API server, balanced here".to_owned(),
        RangeClass::RETIRED => "API server, given up".to_owned(),
        RangeClass::CLOSED => "API server, public and closed".to_owned(),
        other => format!("class {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_names() {
        assert_eq!(named(RangeClass::EXCLUDED), "excluded");
        assert_eq!(named(RangeClass::MASQUERADED), "masqueraded");
        assert_eq!(named(9), "class 9");
    }
}
