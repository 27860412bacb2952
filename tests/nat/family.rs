//! The families of addresses that a test speaks of.

/// IPv4, or IPv6 as a node masquerades it that has been asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Tests of either family: each of these functions with it.
macro_rules! of_both_families {
    ($($name:ident),+ $(,)?) => {
        mod ipv4 {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name(crate::family::Family::V4)
            })+
        }

        mod ipv6 {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name(crate::family::Family::V6)
            })+
        }
    };
}

pub(crate) use of_both_families;
