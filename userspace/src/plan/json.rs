//! JSON (RFC 8259) with the place of every value, as people write it in documentation.
//!
//! `-->` begins a remark, to the end of the line, and `…` stands for what was left out; inside of strings both are text. The
//! engine reads keys without regard to case, so two keys that differ in case alone are one key twice.

use super::{Fault, Severity};

/// No definition is larger, in bytes.
pub const LARGEST: usize = 1 << 20;
/// No definition is deeper.
const DEEPEST: usize = 64;

/// Where a value is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// The way to it, as `properties.agentPoolProfiles[0].count`.
    pub field: String,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub at: Place,
    /// What it is.
    pub value: Value,
}

/// What can be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// As it is written: no number is too large to be shown.
    Number(String),
    /// With its escapes resolved.
    String(String),
    /// In brackets.
    List(Vec<Node>),
    /// In braces, keys as they are written, in their order.
    Object(Vec<(String, Node)>),
}

impl Node {
    /// The member of that name, in any case of letters; `null` is none. Of two the last one counts.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Value::Object(members) = &self.value else {
            return None;
        };
        let member = members
            .iter()
            .rev()
            .find(|(name, _)| name.eq_ignore_ascii_case(key));
        member
            .map(|(_, node)| node)
            .filter(|node| node.value != Value::Null)
    }
}

/// A parsed text.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The document.
    pub root: Node,
    /// Keys that are there already in their object.
    pub duplicates: Vec<Place>,
}

/// Reads a text.
pub fn parse(text: &[u8]) -> Result<Parsed, Fault> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let whole = Place {
        line: 1,
        column: 1,
        field: String::new(),
    };
    let fault = |message: String| Fault::new(Severity::Error, &whole, message);
    if text.len() > LARGEST {
        return Err(fault(format!(
            "is larger than {} MiB: is this a cluster definition?",
            LARGEST >> 20
        )));
    }
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let valid = &text[..error.valid_up_to()];
            let mut parser = Parser::new(std::str::from_utf8(valid).unwrap_or_default());
            while parser.next().is_some() {}
            return Err(parser.fault("is not UTF-8 from here on"));
        }
    };
    let mut parser = Parser::new(text);
    parser.skip_space();
    if parser.rest.is_empty() {
        return Err(parser.fault("is empty: a cluster definition is JSON, with apiVersion and properties"));
    }
    let root = parser.value(String::new(), 0)?;
    parser.skip_space();
    if !parser.rest.is_empty() {
        return Err(parser.fault("the document has ended, and there is more"));
    }
    Ok(Parsed {
        root,
        duplicates: parser.duplicates,
    })
}

struct Parser<'a> {
    rest: &'a str,
    line: u32,
    column: u32,
    duplicates: Vec<Place>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text,
            line: 1,
            column: 1,
            duplicates: Vec::new(),
        }
    }

    fn value(&mut self, field: String, depth: usize) -> Result<Node, Fault> {
        let at = self.place(field);
        if depth > DEEPEST {
            return Err(self.fault(&format!("is nested deeper than {DEEPEST} levels")));
        }
        let value = match self.peek() {
            Some('{') => self.object(&at.field, depth)?,
            Some('[') => self.list(&at.field, depth)?,
            Some('"') => Value::String(self.string()?),
            Some(c) if c == '-' || c.is_ascii_digit() => Value::Number(self.number()?),
            Some(c) if c.is_ascii_alphabetic() => {
                let word = self.take(|c| c.is_ascii_alphanumeric());
                match word {
                    "null" => Value::Null,
                    "true" => Value::Bool(true),
                    "false" => Value::Bool(false),
                    _ => {
                        return Err(Fault::new(
                            Severity::Error,
                            &at,
                            format!("{word} is no value: is it a string without quotes?"),
                        ));
                    }
                }
            }
            Some(c) => return Err(self.fault(&format!("expected a value, found {c:?}"))),
            None => return Err(self.fault("expected a value, and the text ends")),
        };
        Ok(Node { at, value })
    }

    fn object(&mut self, field: &str, depth: usize) -> Result<Value, Fault> {
        let mut members: Vec<(String, Node)> = Vec::new();
        self.next();
        self.skip_space();
        if self.eat('}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.skip_space();
            let mut at = self.place(String::new());
            if self.peek() != Some('"') {
                return Err(self.fault("expected a key in quotes; is there a comma too many before it?"));
            }
            let key = self.string()?;
            at.field = if field.is_empty() {
                key.clone()
            } else {
                format!("{field}.{key}")
            };
            if members.iter().any(|(name, _)| name.eq_ignore_ascii_case(&key)) {
                self.duplicates.push(at.clone());
            }
            self.skip_space();
            if !self.eat(':') {
                return Err(self.fault(&format!("expected a colon behind the key {key:?}")));
            }
            self.skip_space();
            let value = self.value(at.field, depth + 1)?;
            members.push((key, value));
            self.skip_space();
            if self.eat('}') {
                return Ok(Value::Object(members));
            }
            if !self.eat(',') {
                return Err(self.fault("expected a comma or a closing brace"));
            }
        }
    }

    fn list(&mut self, field: &str, depth: usize) -> Result<Value, Fault> {
        let mut values = Vec::new();
        self.next();
        self.skip_space();
        if self.eat(']') {
            return Ok(Value::List(values));
        }
        loop {
            self.skip_space();
            values.push(self.value(format!("{field}[{}]", values.len()), depth + 1)?);
            self.skip_space();
            if self.eat(']') {
                return Ok(Value::List(values));
            }
            if !self.eat(',') {
                return Err(self.fault("expected a comma or a closing bracket"));
            }
        }
    }

    fn string(&mut self) -> Result<String, Fault> {
        let at = self.place(String::new());
        let open = || Fault::new(Severity::Error, &at, "this string is not closed on its line");
        let mut text = String::new();
        self.next();
        loop {
            match self.next().ok_or_else(open)? {
                '"' => return Ok(text),
                '\\' => text.push(self.escape()?),
                '\n' | '\r' => return Err(open()),
                c if c < ' ' => {
                    return Err(self.fault("control characters are written as \\u00XX in a string"));
                }
                c => text.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        Ok(match self.next() {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let high = self.hex()?;
                if !(0xd800..0xdc00).contains(&high) {
                    // Half of a pair stands for nothing, as Go reads it.
                    return Ok(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                if !self.rest.starts_with("\\u") {
                    return Ok(char::REPLACEMENT_CHARACTER);
                }
                self.next();
                self.next();
                let low = self.hex()?;
                let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400);
                let both = low.and_then(|low| char::from_u32(0x10000 + ((high - 0xd800) << 10) + low));
                both.unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => return Err(self.fault("this escape has no meaning in a JSON string")),
        })
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let mut number = 0;
        for _ in 0..4 {
            match self.peek().and_then(|c| c.to_digit(16)) {
                Some(digit) => number = number * 16 + digit,
                None => return Err(self.fault("expected four hexadecimal digits")),
            }
            self.next();
        }
        Ok(number)
    }

    fn number(&mut self) -> Result<String, Fault> {
        let at = self.place(String::new());
        let text = self
            .take(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'))
            .to_owned();
        match serde_json::from_str::<&serde_json::value::RawValue>(&text) {
            Ok(_) => Ok(text),
            Err(_) => Err(Fault::new(Severity::Error, &at, format!("{text} is no number"))),
        }
    }

    /// Passes white space, remarks, and what stands for something left out.
    fn skip_space(&mut self) {
        loop {
            self.take(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '…'));
            if !self.rest.starts_with("-->") {
                return;
            }
            self.take(|c| c != '\n');
        }
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let before = self.rest;
        while self.peek().is_some_and(&wanted) {
            self.next();
        }
        &before[..before.len() - self.rest.len()]
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.next();
        }
        found
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn place(&self, field: String) -> Place {
        Place {
            line: self.line,
            column: self.column,
            field,
        }
    }

    fn fault(&self, message: &str) -> Fault {
        Fault::new(Severity::Error, &self.place(String::new()), message)
    }
}

#[cfg(test)]
mod tests;
