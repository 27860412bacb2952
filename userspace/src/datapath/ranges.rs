//! The ranges of the masquerade decision: a list that is exchanged as a whole.

use std::{collections::BTreeMap, net::Ipv4Addr};

use aya::maps::lpm_trie::Key as PrefixKey;
use causeway_common::maps::{Config, RANGES, RangeEntry, RangeKey};
use ipnet::Ipv4Net;

use super::{
    Datapath, DatapathError, lock,
    tables::{Tables, failed},
};

const MAP: &str = "cwy_ranges";

/// A range, and what it is to the masquerade decision: one of
/// [`RangeClass`](causeway_common::maps::RangeClass).
pub type Range = (Ipv4Net, u8);

impl Datapath {
    /// The ranges in force, in their order.
    pub fn ranges(&self) -> Result<Vec<Range>, DatapathError> {
        let list = self.tables.config()?.range_list;
        Ok(self.tables.range_lists()?.remove(&list).unwrap_or_default())
    }

    /// Whether these are the ranges in force.
    pub fn has_ranges(&self, ranges: &[Range]) -> Result<bool, DatapathError> {
        Ok(self.ranges()? == normal(ranges))
    }

    /// Replaces the ranges. A packet is judged by the list of before or by this one, never by a part of it; flows that
    /// are translated stay so. Returns whether anything had to be changed.
    pub fn set_ranges(&self, ranges: &[Range]) -> Result<bool, DatapathError> {
        let _lock = lock(&self.root)?;
        self.tables.exchange_ranges(ranges)
    }
}

impl Tables {
    /// Every list by its number, in the order of the ranges.
    fn range_lists(&self) -> Result<BTreeMap<u32, Vec<Range>>, DatapathError> {
        let mut lists: BTreeMap<u32, Vec<Range>> = BTreeMap::new();
        for element in &self.range_map()? {
            let (key, entry) = element.map_err(failed(MAP))?;
            if let Some((list, range)) = range(key) {
                lists.entry(list).or_default().push((range, entry.class));
            }
        }
        for list in lists.values_mut() {
            list.sort_unstable();
        }
        Ok(lists)
    }

    /// The caller holds the lock of the datapath, or the datapath is not in use yet.
    pub(crate) fn exchange_ranges(&self, ranges: &[Range]) -> Result<bool, DatapathError> {
        let wanted = normal(ranges);
        if wanted.len() > RANGES {
            return Err(DatapathError::TooManyRanges(wanted.len()));
        }
        let config = self.config()?;
        let mut lists = self.range_lists()?;
        let in_force = lists.remove(&config.range_list).unwrap_or_default();
        if in_force == wanted {
            return Ok(false);
        }
        let next = u32::from(config.range_list == 0);
        self.remove_ranges(next, &lists.remove(&next).unwrap_or_default())?;
        let mut map = self.range_map()?;
        for &(range, class) in &wanted {
            let entry = RangeEntry { class, _pad: [0; 3] };
            map.insert(&key(next, range), entry, 0).map_err(failed(MAP))?;
        }
        self.set_config(&Config {
            range_list: next,
            ..config
        })?;
        // A program that has read the old number may still be looking for its destination.
        wait_for_programs();
        self.remove_ranges(config.range_list, &in_force)?;
        Ok(true)
    }

    fn remove_ranges(&self, list: u32, ranges: &[Range]) -> Result<(), DatapathError> {
        let mut map = self.range_map()?;
        for &(range, _) in ranges {
            map.remove(&key(list, range)).map_err(failed(MAP))?;
        }
        Ok(())
    }
}

/// Without host bits, each range once, in order. Of two classes for one range the API server's wins, then masquerading.
fn normal(ranges: &[Range]) -> Vec<Range> {
    let mut normal: BTreeMap<Ipv4Net, u8> = BTreeMap::new();
    for (range, class) in ranges {
        let known = normal.entry(range.trunc()).or_insert(*class);
        *known = (*known).max(*class);
    }
    normal.into_iter().collect()
}

/// Returns when no program that is running now runs any more: programs run in read sections of RCU, and
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()` (membarrier(2), Linux 4.3). Where the kernel is built without it, or has
/// CPUs without ticks, time has to do: programs run for microseconds.
fn wait_for_programs() {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier(2) takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn key(list: u32, range: Ipv4Net) -> PrefixKey<RangeKey<[u8; 4]>> {
    let bits = RangeKey::<[u8; 4]>::LIST_BITS + u32::from(range.prefix_len());
    let data = RangeKey {
        list: list as u8,
        addr: range.network().octets(),
    };
    PrefixKey::new(bits, data)
}

fn range(key: PrefixKey<RangeKey<[u8; 4]>>) -> Option<(u32, Ipv4Net)> {
    let RangeKey { list, addr } = key.data();
    let length = key.prefix_len().checked_sub(RangeKey::<[u8; 4]>::LIST_BITS)?;
    let range = Ipv4Net::new(Ipv4Addr::from(addr), u8::try_from(length).ok()?).ok()?;
    Some((list.into(), range))
}

#[cfg(test)]
mod tests {
    use causeway_common::maps::RangeClass;

    use super::*;

    #[test]
    fn a_range_survives_the_way_into_the_map_and_back() {
        for text in ["10.0.0.0/8", "168.63.129.16/32", "0.0.0.0/0"] {
            let net: Ipv4Net = text.parse().unwrap();
            for list in [0, 1] {
                assert_eq!(range(key(list, net)), Some((list, net)));
            }
        }
    }

    #[test]
    fn a_list_has_each_range_once_and_masquerading_wins() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let ranges = [
            (net("10.240.0.5/16"), RangeClass::EXCLUDED),
            (net("10.0.0.0/8"), RangeClass::EXCLUDED),
            (net("10.240.0.0/16"), RangeClass::MASQUERADED),
            (net("10.240.0.0/16"), RangeClass::EXCLUDED),
        ];
        assert_eq!(
            normal(&ranges),
            [
                (net("10.0.0.0/8"), RangeClass::EXCLUDED),
                (net("10.240.0.0/16"), RangeClass::MASQUERADED)
            ]
        );
    }
}
