//! The families of addresses that a test speaks of.

pub use crate::of_both_families;

/// IPv4, or IPv6 as a node masquerades it that has been asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Tests of either family: each of these functions with it.
#[macro_export]
macro_rules! of_both_families {
    ($($name:ident),+ $(,)?) => {
        mod ipv4 {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name($crate::family::Family::V4)
            })+
        }

        mod ipv6 {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name($crate::family::Family::V6)
            })+
        }
    };
}
