//! The rig of the tests: a node, pods, and the world around them, made of network namespaces of one machine.
//!
//! [`rig::Rig`] is the way in. It holds no opinion about the datapath: it speaks to the CNI plug-in and the command line as
//! a node does, sends real traffic, and judges by what the wires and the receivers saw.

pub mod agent;
pub mod bpf;
pub mod capture;
pub mod conntrack;
pub mod craft;
pub mod dam;
pub mod delegated;
pub mod dist;
pub mod dual_stack;
pub mod echo;
pub mod fabric;
pub mod family;
pub mod frame;
pub mod generator;
pub mod kernel;
pub mod leak;
pub mod netns;
pub mod node;
pub mod offload;
pub mod packet_socket;
pub mod ping;
pub mod rate;
pub mod raw;
pub mod raw_ip;
pub mod rig;
pub mod rng;
pub mod rules;
pub mod scratch;
pub mod site;
pub mod stock;
pub mod stream;
pub mod talk;
pub mod walk;
