//! Real sockets through real programs: a walk a test.

mod rig;
