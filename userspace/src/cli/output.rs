//! How reports reach the reader: a table for people, JSON for programs, once or again and again.

use std::{
    io::{self, BufWriter, IsTerminal as _, Write},
    thread,
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::Failure;

/// Version of the JSON documents; see docs/cli.md.
pub(crate) const API_VERSION: &str = "causeway/v1";

/// Something to be shown.
pub(crate) trait Report: Serialize {
    /// The JSON document's `kind`.
    const KIND: &'static str;

    /// Writes it for people.
    fn write_text(&self, out: &mut dyn Write) -> io::Result<()>;

    /// What to say once the report has been shown, if the report itself is a failure.
    fn failure(self) -> Option<Failure>
    where
        Self: Sized,
    {
        None
    }
}

/// For whom a report is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    pub(crate) fn new(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// Shows a report once.
pub(crate) fn print<R: Report>(report: R, format: Format) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = match format {
        Format::Text => report.write_text(&mut out),
        Format::Json => write_json(&mut out, &report, true),
    };
    written.and_then(|()| out.flush()).map_err(Failure::Output)?;
    report.failure().map_or(Ok(()), Err)
}

/// Shows one of many: JSON on one line, text with an empty line behind it.
pub(crate) fn print_line<R: Report>(report: &R, format: Format) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = match format {
        Format::Text => report.write_text(&mut out).and_then(|()| writeln!(out)),
        Format::Json => write_json(&mut out, report, false),
    };
    written.and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Shows what `gather` finds every `seconds`, until the reader goes away or it fails. JSON is one document a line.
pub(crate) fn watch<R: Report>(
    seconds: u32,
    format: Format,
    mut gather: impl FnMut() -> Result<R, Failure>,
) -> Result<(), Failure> {
    let clear = io::stdout().is_terminal();
    loop {
        let report = gather()?;
        let mut out = BufWriter::new(io::stdout().lock());
        let written = match format {
            Format::Text if clear => write!(out, "\x1b[H\x1b[2J").and_then(|()| report.write_text(&mut out)),
            Format::Text => report.write_text(&mut out).and_then(|()| writeln!(out)),
            Format::Json => write_json(&mut out, &report, false),
        };
        written.and_then(|()| out.flush()).map_err(Failure::Output)?;
        drop(out);
        if let Some(failure) = report.failure() {
            return Err(failure);
        }
        thread::sleep(Duration::from_secs(seconds.into()));
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, R> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    report: &'a R,
}

/// The document.
pub(crate) fn json<R: Report>(report: &R) -> Result<Vec<u8>, Failure> {
    let mut document = Vec::new();
    write_json(&mut document, report, true).map_err(Failure::Output)?;
    Ok(document)
}

fn write_json<R: Report>(out: &mut dyn Write, report: &R, pretty: bool) -> io::Result<()> {
    let document = Document {
        api_version: API_VERSION,
        kind: R::KIND,
        report,
    };
    if pretty {
        serde_json::to_writer_pretty(&mut *out, &document)?;
    } else {
        serde_json::to_writer(&mut *out, &document)?;
    }
    writeln!(out)
}

/// Writes rows under a heading, columns aligned, as wide as they need to be: a row is one line, for `grep`.
pub(crate) fn write_table<const N: usize>(
    out: &mut dyn Write,
    heading: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> io::Result<()> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading);
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| printable(&cell))));
    for line in table.lines() {
        writeln!(out, "{}", line.trim())?;
    }
    Ok(())
}

/// Control characters, which a name given by others may hold, never reach the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// `3s`, `4m10s`, `2h05m`, `3d04h`.
pub(crate) fn duration(seconds: u32) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Seconds since `then`, both of the clock of the maps. A clock that another CPU read later gives 0.
pub(crate) fn seconds_since(then: u32, now: u32) -> u32 {
    let elapsed = now.wrapping_sub(then);
    if elapsed > u32::MAX / 2 { 0 } else { elapsed }
}

/// `0a:1b:2c:3d:4e:5f`.
pub(crate) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_at_most_two_units() {
        let texts = [0, 59, 60, 250, 3599, 3600, 7500, 86_399, 86_400, 273_600].map(duration);
        assert_eq!(
            texts,
            [
                "0s", "59s", "1m00s", "4m10s", "59m59s", "1h00m", "2h05m", "23h59m", "1d00h", "3d04h"
            ]
        );
    }

    #[test]
    fn a_time_in_the_future_is_now() {
        assert_eq!(seconds_since(100, 103), 3);
        assert_eq!(seconds_since(101, 100), 0);
        assert_eq!(seconds_since(u32::MAX, 2), 3);
    }

    #[test]
    fn control_characters_are_not_printed() {
        let mut out = Vec::new();
        write_table(&mut out, ["NAME"], [["a\x1b[31mb\u{9b}".to_owned()]]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME\na\u{fffd}[31mb\u{fffd}\n");
    }

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        let rows = [["long name", "1"], ["x", "22"]].map(|row| row.map(ToOwned::to_owned));
        write_table(&mut out, ["A", "B"], rows).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "A          B\nlong name  1\nx          22\n"
        );
    }
}
