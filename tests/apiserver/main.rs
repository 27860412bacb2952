//! The API server in the cluster's network: real TLS servers in a subnet of their own, pods and the node as their clients,
//! and what becomes of connections when the API server's address changes or one of its backends goes.

mod balance;
mod change;
mod clients;
mod control_plane;
mod direct;
mod flips;
mod health;
mod scene;
mod watch;
