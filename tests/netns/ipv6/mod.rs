//! Pods with IPv6: carried as those of IPv4 are, with their own addresses everywhere.

mod link;
mod odd;
mod walks;
