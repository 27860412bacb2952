//! A node of the incumbent's, with a bridge and pods, goes over to Causeway and back while its pods talk.

mod apply;
mod dry_run;
mod gate;
mod incumbent;
mod interrupted;
mod ports;
mod snapshot;
mod traffic;
