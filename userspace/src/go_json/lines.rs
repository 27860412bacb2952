//! How the text of the incumbent's files is laid out.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;

/// A value as the incumbent writes its files: indented by tabs, but for what stands deeper than an entry of them. An entry
/// is one line: a node has hundreds, every call reads them all, and most of the text would be tabs.
pub fn to_vec(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut bytes,
        EntryLines::default(),
    ))?;
    Ok(bytes)
}

/// How deep an endpoint and an address stand in the incumbent's files, with all that is around them.
const ENTRY_DEPTH: usize = 7;

/// Members on lines of their own, down to [`ENTRY_DEPTH`].
#[derive(Default)]
struct EntryLines {
    /// Lists and objects that are open.
    depth: usize,
    /// The one that is open has a member.
    has_member: bool,
}

impl EntryLines {
    fn open(&mut self, bracket: &[u8], to: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        self.depth += 1;
        self.has_member = false;
        to.write_all(bracket)
    }

    fn close(&mut self, bracket: &[u8], to: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        let in_lines = self.in_lines();
        self.depth -= 1;
        if self.has_member && in_lines {
            self.new_line(to)?;
        }
        to.write_all(bracket)
    }

    fn next_member(&self, is_first: bool, to: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        if !is_first {
            to.write_all(b",")?;
        }
        if self.in_lines() {
            self.new_line(to)
        } else {
            Ok(())
        }
    }

    fn in_lines(&self) -> bool {
        self.depth <= ENTRY_DEPTH
    }

    fn new_line(&self, to: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        const LINE: [u8; 1 + ENTRY_DEPTH] = *b"\n\t\t\t\t\t\t\t";
        to.write_all(&LINE[..=self.depth])
    }
}

impl Formatter for EntryLines {
    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(b"[", writer)
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(b"]", writer)
    }

    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next_member(first, writer)
    }

    fn end_array_value<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_member = true;
        Ok(())
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(b"{", writer)
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(b"}", writer)
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next_member(first, writer)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_member = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn files_are_indented_down_to_an_entry() {
        let mut value = json!({ "ID": "", "List": [1, {}], "None": [] });
        for depth in (1..=ENTRY_DEPTH).rev() {
            value = json!({ format!("at{depth}"): value });
        }
        let text = String::from_utf8(to_vec(&value).unwrap()).unwrap();
        let entry = r#""at7": {"ID": "","List": [1,{}],"None": []}"#;
        let (before, after) = ("\n\t\t\t\t\t\t\t", "\n\t\t\t\t\t\t}\n\t\t\t\t\t}");
        assert!(text.contains(&format!("{before}{entry}{after}")), "{text}");
        assert!(text.starts_with("{\n\t\"at1\": {\n\t\t\"at2\": {") && text.ends_with("\n\t}\n}"));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        for plain in [json!([]), json!({}), json!(null), json!([[], {}])] {
            let text = to_vec(&plain).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), plain);
        }
    }
}
