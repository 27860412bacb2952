//! The command line, where it says more than what a map holds: what is wrong with a node, and what becomes of a packet.
//!
//! Black box: the installed command on a real node, with real faults and real programs.

mod bundle;
mod doctor;
mod explain;
mod pod_cidrs;
mod scene;
mod shell;
mod views;
