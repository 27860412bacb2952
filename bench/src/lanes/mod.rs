//! What can be measured of one peer, one block at a time.

mod bound;
pub(crate) mod disturbed;
pub(crate) mod floor;
pub(crate) mod frames;
pub(crate) mod full;
pub(crate) mod opening;
pub(crate) mod plugins;
pub(crate) mod program;
pub(crate) mod sockets;
pub(crate) mod way;
