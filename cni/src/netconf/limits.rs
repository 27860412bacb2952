//! What names and numbers of the configuration may be.

use causeway::go_json::Fields;

use crate::{
    error::{CniError, code},
    invocation::is_identifier,
};

/// The name of a network.
pub(super) fn check_name(name: &str) -> Result<(), CniError> {
    if name.is_empty() {
        return Err(CniError::new(
            code::CONFIGURATION,
            "missing network name: set \"name\" in the configuration",
        ));
    }
    if !is_identifier(name) {
        let msg = format!(
            "invalid characters found in network name {name:?}: it must match ^[A-Za-z0-9][A-Za-z0-9_.-]*$"
        );
        return Err(CniError::new(code::CONFIGURATION, msg));
    }
    Ok(())
}

/// The incumbent's character set. No bridge is made, but a bad name is a mistake all the same.
pub(super) fn check_bridge(name: &str) -> Result<(), CniError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '(' | ')' | ' ');
    if name.chars().all(allowed) {
        return Ok(());
    }
    let msg =
        format!("invalid args value: bridge {name:?} has a character other than letters, digits and ._-()");
    Err(CniError::new(code::CONFIGURATION, msg))
}

/// The MTU that is asked for, in bytes; 0 asks for none.
pub(super) fn mtu(fields: &Fields<'_>) -> Result<Option<u32>, CniError> {
    /// Least MTU of IPv4 (RFC 791, section 3.2) and most of a veth.
    const LIMITS: std::ops::RangeInclusive<u64> = 68..=65_535;
    match fields.get("mtu") {
        None => Ok(None),
        Some(value) if value.as_u64() == Some(0) => Ok(None),
        Some(value) => match value.as_u64().filter(|mtu| LIMITS.contains(mtu)) {
            Some(mtu) => Ok(u32::try_from(mtu).ok()),
            None => Err(CniError::new(
                code::CONFIGURATION,
                format!(
                    "mtu {value} is not between {} and {}",
                    LIMITS.start(),
                    LIMITS.end()
                ),
            )),
        },
    }
}
