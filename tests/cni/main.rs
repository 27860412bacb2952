//! The CNI contract: configuration on standard input, environment, exact results and errors.
//!
//! Black box: the tests run the installed plug-ins as a container runtime does, in a node of their own, and judge by what was
//! printed, what the kernel has and what the state files say.

mod call;
mod chain;
mod chains;
mod check;
mod clients;
mod cost;
mod crash;
mod delegates;
mod dual_stack;
mod endings;
mod expedite;
mod faults;
mod histories;
mod ipam;
mod losses;
mod pod_cidrs;
mod pods;
mod protocol;
mod scripts;
mod sources;
mod status;
mod takeover;
mod xdp;
