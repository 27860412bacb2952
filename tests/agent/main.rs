//! The agent on a real node: what it mends, what it follows, what it says, and that nobody feels it come and go.

mod bounds;
mod config;
mod deploy;
mod exact_rule;
mod healing;
mod helm;
mod hooks;
mod ipv6;
mod metrics;
mod places;
mod restart;
mod ways_past;
