//! The log files that support scripts know: `/var/log/azure-vnet.log` and `azure-vnet-ipam.log`, a JSON object a line.
//!
//! A log that cannot be written never makes a verb fail. Standard output is not touched.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Mutex,
    time::SystemTime,
};

use causeway::{durable, go_json::rfc3339};
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// A larger file is put aside before the next line, as `<name>.1`. Bytes.
const FILE_LIMIT: u64 = 5 << 20;
/// A longer text is cut. Characters.
const TEXT_LIMIT: usize = 4096;

/// Takes the events of this process from here on to the file at `path`; to standard error if it cannot be opened.
pub(crate) fn start(path: &Path) {
    let file = match open(path) {
        Ok(file) => Some(file),
        Err(error) => {
            eprintln!("cannot open the log {}: {error}", path.display());
            None
        }
    };
    // Fails only when there is a subscriber already, which then does the work.
    tracing::subscriber::set_global_default(JsonLines {
        file: Mutex::new(file),
    })
    .ok();
}

fn open(path: &Path) -> std::io::Result<File> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() > FILE_LIMIT) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        fs::rename(path, aside)?;
    }
    // O_NONBLOCK: a FIFO in this place must not hang the runtime.
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644);
    durable::open(path, options.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW))
}

struct JsonLines {
    file: Mutex<Option<File>>,
}

impl Subscriber for JsonLines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let line = line(event);
        if let Ok(mut file) = self.file.lock()
            && let Some(file) = file.as_mut()
        {
            // One write of one line: lines of several processes do not mix in a file opened for appending.
            file.write_all(line.as_bytes()).ok();
        } else {
            eprint!("{line}");
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn line(event: &Event<'_>) -> String {
    let mut fields = Members(Map::new());
    fields.put("ts", rfc3339(SystemTime::now()));
    fields.put("level", event.metadata().level().as_str().to_ascii_lowercase());
    fields.put("pid", u64::from(std::process::id()));
    event.record(&mut fields);
    let mut line = Value::Object(fields.0).to_string();
    line.push('\n');
    line
}

struct Members(Map<String, Value>);

impl Members {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        let name = if name == "message" { "msg" } else { name };
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Members {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field.name(), clean(&format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), clean(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }
}

/// What came from outside must not steer the terminal that shows the log.
fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(TEXT_LIMIT)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object_without_control_characters() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("var/log/azure-vnet.log");
        let lines = JsonLines {
            file: Mutex::new(Some(open(&path).unwrap())),
        };
        tracing::subscriber::with_default(lines, || {
            tracing::info!(pod = "a\n\u{1b}[2Jb", n = 7u64, long = "x".repeat(9999), "done");
            tracing::debug!("not kept");
        });
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["pod"], &value["n"], &value["msg"]),
            (&"a[2Jb".into(), &7.into(), &"done".into())
        );
        assert_eq!(value["level"], "info");
        assert!(text.len() < 5000);
    }

    #[test]
    fn a_large_file_is_put_aside_and_a_link_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("azure-vnet.log");
        File::create(&path).unwrap().set_len(FILE_LIMIT + 1).unwrap();
        drop(open(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert!(directory.path().join("azure-vnet.log.1").exists());
        let link = directory.path().join("link.log");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        open(&link).unwrap_err();
    }
}
