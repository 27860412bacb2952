//! A measure as a picture: a bar for each lane, with its interval. SVG that reads well on light and dark pages.

use crate::{
    machine::Machine,
    rounds::{Outcome, Unit},
    table,
};

const WIDTH: f64 = 760.0;
/// Left of it stand the names, right of it the bars.
const AXIS: f64 = 210.0;
/// Room for the figure behind the longest bar.
const FIGURE: f64 = 90.0;
const ROW: f64 = 24.0;
const TOP: f64 = 54.0;

/// The picture of an outcome.
pub(crate) fn bars(outcome: &Outcome, machine: &Machine) -> String {
    let rows: Vec<_> = outcome
        .series
        .iter()
        .filter_map(|series| Some((series.label.as_str(), outcome.estimate(&series.label)?)))
        .collect();
    let most = rows
        .iter()
        .map(|(_, estimate)| estimate.high)
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = |value: f64| value / most * (WIDTH - AXIS - FIGURE);
    let height = TOP + ROW * f64::from(u32::try_from(rows.len()).unwrap_or(u32::MAX)) + 12.0;
    let better = if outcome.unit.less_is_better() {
        "less"
    } else {
        "more"
    };
    let unit = outcome.unit.name();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\" fill=\"#888\">\n\
         <text x=\"4\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{}</text>\n\
         <text x=\"4\" y=\"38\" font-size=\"11\">{unit}, {better} is better; {}</text>\n",
        escaped(outcome.title),
        escaped(&machine.to_string()),
    );
    svg.extend(rows.iter().zip(0u32..).map(|((label, estimate), row)| {
        let top = TOP + ROW * f64::from(row);
        let middle = top + ROW / 2.0;
        let colour = if label.starts_with("causeway") {
            "#2a7de1"
        } else {
            "#b0b4ba"
        };
        let [end, low, high] =
            [estimate.median, estimate.low, estimate.high].map(|value| AXIS + scale(value));
        format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{AXIS}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <path d=\"M{low:.1} {middle}H{high:.1}\" stroke=\"#444\"/>\
             <text x=\"{:.1}\" y=\"{}\">{}</text>\n",
            AXIS - 8.0,
            middle + 4.0,
            escaped(label),
            top + 4.0,
            end - AXIS,
            ROW - 8.0,
            high.max(end) + 6.0,
            middle + 4.0,
            table::figure(outcome.unit, estimate.median),
        )
    }));
    svg + "</svg>\n"
}

/// Text in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

impl Unit {
    /// The name in tables and pictures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packets => "Mpps",
            Self::Flows => "thousand flows/s",
            Self::Requests => "thousand/s",
            Self::Bits => "Gbit/s",
            Self::Nanoseconds => "ns",
            Self::Milliseconds => "ms",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Series;

    #[test]
    fn the_longest_bar_leaves_room_for_its_figure_and_names_are_escaped() {
        let series = [("causeway", 2e6), ("a < b", 1e6)].map(|(label, value)| Series {
            label: label.to_owned(),
            samples: vec![value; 3],
        });
        let outcome = Outcome {
            name: "snat",
            title: "SNAT",
            unit: Unit::Packets,
            series: series.into(),
            rounds: 3,
            kept: 3,
            notes: Vec::new(),
            facts: Vec::new(),
        };
        let svg = bars(&outcome, &Machine::here());
        assert!(
            svg.contains("width=\"460.0\"") && svg.contains("width=\"230.0\""),
            "{svg}"
        );
        assert!(svg.contains("a &lt; b") && svg.contains("2.000"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2);
    }
}
