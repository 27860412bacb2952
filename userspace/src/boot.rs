//! Which boot of the machine this is. What was noted about pods in an earlier one is void: no pod outlives it.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::go_json::parse_rfc3339;

/// The kernel's random name for this boot, empty where it does not say.
pub(crate) fn id() -> &'static str {
    static ID: LazyLock<String> = LazyLock::new(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    });
    &ID
}

/// Whether a state file is of an earlier boot, by the boot's name in it. One without a name is the incumbent's, which
/// goes by the time of the last write.
pub(crate) fn is_over(noted: &str, last_write: &str) -> bool {
    let current = id();
    if noted.is_empty() || current.is_empty() {
        return match (parse_rfc3339(last_write), started()) {
            (Some(written), Some(started)) => written < started,
            _ => false,
        };
    }
    noted != current
}

/// When the machine was started, by its present clock (`btime` of proc_stat(5)).
fn started() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_json::rfc3339;

    #[test]
    fn a_name_decides_and_without_one_the_time() {
        assert!(!is_over(id(), "1970-01-02T00:00:00Z"));
        assert!(is_over("another", &rfc3339(SystemTime::now())));
        assert!(!is_over("", &rfc3339(SystemTime::now())));
        assert!(is_over("", "1970-01-02T00:00:00Z"));
        assert!(!is_over("", "") && !is_over("", "yesterday"));
    }
}
