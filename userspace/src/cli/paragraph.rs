//! Text in lines of 80 columns.

use std::io::{self, Write};

use super::output::printable;

const COLUMNS: usize = 80;

/// Writes `text` behind `label`, its further lines as far in. A word is never broken: an address or a path can be copied.
pub(super) fn write(out: &mut dyn Write, label: &str, text: &str) -> io::Result<()> {
    wrap(out, label, text, "")
}

/// As [`write`], for a command: a line that goes on says so, as a shell reads it.
pub(super) fn write_command(out: &mut dyn Write, label: &str, text: &str) -> io::Result<()> {
    wrap(out, label, text, " \\")
}

fn wrap(out: &mut dyn Write, label: &str, text: &str, end: &str) -> io::Result<()> {
    let indent = label.chars().count();
    let mut line = label.to_owned();
    let (mut width, mut is_first) = (indent, true);
    for word in text.split_whitespace() {
        let word = printable(word);
        let more = word.chars().count() + usize::from(!is_first);
        if !is_first && width + more + end.len() > COLUMNS {
            writeln!(out, "{}{end}", line.trim_end())?;
            line = " ".repeat(indent);
            (width, is_first) = (indent, true);
        }
        if !is_first {
            line.push(' ');
        }
        line.push_str(&word);
        width += word.chars().count() + usize::from(!is_first);
        is_first = false;
    }
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(label: &str, text: &str) -> String {
        let mut out = Vec::new();
        write(&mut out, label, text).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_end_at_80_columns_and_words_stay_whole() {
        let text = written("label  ", &"twelve chars ".repeat(20));
        assert!(
            text.lines().count() > 1 && text.lines().all(|line| line.len() <= 80),
            "{text}"
        );
        assert!(
            text.lines()
                .skip(1)
                .all(|line| line.starts_with("       ") && line.as_bytes()[7] != b' '),
            "{text}"
        );
        assert_eq!(text.split_whitespace().count(), 41);
        let long = "x".repeat(100);
        assert_eq!(
            written("a  ", &format!("b {long} c")),
            format!("a  b\n   {long}\n   c\n")
        );
        assert_eq!(written("a  ", ""), "a\n");
        assert_eq!(written("", "a\x1bb"), "a\u{fffd}b\n");
    }

    #[test]
    fn a_command_goes_on_behind_a_backslash() {
        let mut out = Vec::new();
        let words = "az network nsg rule create ".repeat(4);
        write_command(&mut out, "> ", &words).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines.len() == 2 && lines[0].ends_with(" \\") && lines[0].len() <= 80,
            "{text}"
        );
        assert_eq!(text.replace("\\\n", " ").split_whitespace().count(), 21);
        assert!(!lines[1].ends_with('\\'), "{text}");
    }
}
