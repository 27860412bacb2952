//! The agent's log, on standard error: systemd and container runtimes take it from there.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Text,
    /// An object a line
    Json,
}

/// Takes every event from here on. `CAUSEWAY_LOG` says which (`info`, `debug`, `causeway=trace`, …).
pub(super) fn start(format: Format) {
    let filter = EnvFilter::try_from_env("CAUSEWAY_LOG").unwrap_or_else(|_unset| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .with_writer(std::io::stderr);
    // Fails only when there is a subscriber already, which then does the work.
    match format {
        Format::Text => builder.try_init().ok(),
        Format::Json => builder.json().flatten_event(true).try_init().ok(),
    };
}
