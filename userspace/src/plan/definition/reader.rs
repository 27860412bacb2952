//! Values of a definition, and what is wrong with them.

use std::fmt::Display;

use ipnet::Ipv4Net;

use super::{
    super::{
        Fault, Severity,
        json::{Node, Place, Value},
    },
    Said,
};

/// Reads on when something is wrong, so that everything is said at once.
pub(super) struct Reader<'a> {
    pub(super) faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    pub(super) fn network(&mut self, node: &Node, key: &str) -> Option<Said<Ipv4Net>> {
        let (text, at) = self.string(node, key).filter(|(text, _)| !text.is_empty())?;
        let Ok(value) = text.parse::<Ipv4Net>() else {
            self.error(
                &at,
                format!("expected a range such as 10.240.0.0/16, found {text:?}"),
            );
            return None;
        };
        if value != value.trunc() {
            self.warn(
                &at,
                format!(
                    "{value} has bits behind its prefix: it is taken for {}",
                    value.trunc()
                ),
            );
        }
        Some(Said {
            value: value.trunc(),
            at,
            is_written: true,
        })
    }

    pub(super) fn number(&mut self, node: &Node, least: u32, most: u32) -> Option<u32> {
        let number = match &node.value {
            Value::Number(text) => text.parse::<u32>().ok(),
            _ => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let found = shown(&node.value);
            self.error(
                &node.at,
                format!("expected a whole number from {least} to {most}, found {found}"),
            );
        }
        number
    }

    pub(super) fn string(&mut self, node: &Node, key: &str) -> Option<(String, Place)> {
        let found = node.get(key)?;
        match &found.value {
            Value::String(text) => Some((text.clone(), found.at.clone())),
            other => {
                self.error(&found.at, format!("expected a string, found {}", shown(other)));
                None
            }
        }
    }

    pub(super) fn object<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n Node> {
        let Some(found) = node.get(key) else {
            self.missing(node, key, "an object");
            return None;
        };
        self.is_object(found).then_some(found)
    }

    pub(super) fn is_object(&mut self, node: &Node) -> bool {
        let is_object = matches!(node.value, Value::Object(_));
        if !is_object {
            self.error(
                &node.at,
                format!("expected an object, found {}", shown(&node.value)),
            );
        }
        is_object
    }

    pub(super) fn missing(&mut self, node: &Node, key: &str, expected: impl Display) {
        self.error(&node.at, format!("{key} is missing: expected {expected}"));
    }

    pub(super) fn error(&mut self, at: &Place, message: impl Into<String>) {
        self.faults.push(Fault::new(Severity::Error, at, message));
    }

    pub(super) fn warn(&mut self, at: &Place, message: impl Into<String>) {
        self.faults.push(Fault::new(Severity::Warning, at, message));
    }
}

/// A value, for an error.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(text) if text.len() <= 40 => text.clone(),
        Value::Number(text) => format!("a number of {} digits", text.len()),
        Value::String(text) => format!("the string {:?}", text.chars().take(40).collect::<String>()),
        Value::List(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
