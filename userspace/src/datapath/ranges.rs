//! The ranges of the masquerade decision: a list that is exchanged as a whole.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::Key as PrefixKey;
use causeway_common::maps::{Config, RANGES, RangeClass, RangeEntry, RangeKey};
use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    Datapath, DatapathError,
    family::Family,
    lock,
    tables::{FamilyTables, failed},
};

/// A range, and what it is to the masquerade decision: one of
/// [`RangeClass`](causeway_common::maps::RangeClass).
pub type Range = (Ipv4Net, u8);
/// As [`Range`], of IPv6.
pub type RangeV6 = (Ipv6Net, u8);
/// As [`Range`], of a family.
type RangeOf<A> = (<A as Family>::Net, u8);

impl Datapath {
    /// The ranges in force, in their order.
    pub fn ranges(&self) -> Result<Vec<Range>, DatapathError> {
        self.tables.of::<[u8; 4]>().ranges()
    }

    /// As [`Self::ranges`], of IPv6; all of it is excluded while its programs are not loaded, or are of a build that translates
    /// nothing.
    pub fn ranges_v6(&self) -> Result<Vec<RangeV6>, DatapathError> {
        if self.translates_ipv6() {
            self.tables.of::<[u8; 16]>().ranges()
        } else {
            Ok(vec![(Ipv6Net::default(), RangeClass::EXCLUDED)])
        }
    }

    /// Whether these are the ranges in force.
    pub fn has_ranges(&self, ranges: &[Range]) -> Result<bool, DatapathError> {
        Ok(self.ranges()? == normal::<[u8; 4]>(ranges))
    }

    /// Replaces the ranges. A packet is judged by the list of before or by this one, never by a part of it; flows that
    /// are translated stay so. Returns whether anything had to be changed.
    pub fn set_ranges(&self, ranges: &[Range]) -> Result<bool, DatapathError> {
        let _lock = lock(&self.root)?;
        self.tables.of::<[u8; 4]>().exchange_ranges(ranges)
    }
}

impl<A: Family> FamilyTables<'_, A> {
    fn ranges(&self) -> Result<Vec<RangeOf<A>>, DatapathError> {
        let list = self.config()?.range_list;
        Ok(self.range_lists()?.remove(&list).unwrap_or_default())
    }

    /// Every list by its number, in the order of the ranges.
    fn range_lists(&self) -> Result<BTreeMap<u32, Vec<RangeOf<A>>>, DatapathError> {
        let mut lists: BTreeMap<u32, Vec<RangeOf<A>>> = BTreeMap::new();
        for element in &self.range_map()? {
            let (key, entry) = element.map_err(failed(A::MAPS.ranges))?;
            if let Some((list, range)) = range::<A>(key) {
                lists.entry(list).or_default().push((range, entry.class));
            }
        }
        for list in lists.values_mut() {
            list.sort_unstable();
        }
        Ok(lists)
    }

    /// The caller holds the lock of the datapath, or the datapath is not in use yet.
    pub(crate) fn exchange_ranges(&self, ranges: &[RangeOf<A>]) -> Result<bool, DatapathError> {
        let wanted = normal::<A>(ranges);
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
        for (range, class) in &wanted {
            let entry = RangeEntry {
                class: *class,
                _pad: [0; 3],
            };
            map.insert(&key::<A>(next, range), entry, 0)
                .map_err(failed(A::MAPS.ranges))?;
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

    fn remove_ranges(&self, list: u32, ranges: &[RangeOf<A>]) -> Result<(), DatapathError> {
        let mut map = self.range_map()?;
        for (range, _) in ranges {
            map.remove(&key::<A>(list, range))
                .map_err(failed(A::MAPS.ranges))?;
        }
        Ok(())
    }
}

/// Without host bits, each range once, in order. Of two classes for one range the API server's wins, then masquerading.
fn normal<A: Family>(ranges: &[RangeOf<A>]) -> Vec<RangeOf<A>> {
    let mut normal: BTreeMap<A::Net, u8> = BTreeMap::new();
    for (range, class) in ranges {
        let known = normal.entry(A::trunc(range)).or_insert(*class);
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

fn key<A: Family>(list: u32, range: &A::Net) -> PrefixKey<RangeKey<A>> {
    let (addr, len) = A::first(range);
    let data = RangeKey {
        list: list as u8,
        addr,
    };
    PrefixKey::new(RangeKey::<A>::LIST_BITS + len, data)
}

fn range<A: Family>(key: PrefixKey<RangeKey<A>>) -> Option<(u32, A::Net)> {
    let RangeKey { list, addr } = key.data();
    let len = key.prefix_len().checked_sub(RangeKey::<A>::LIST_BITS)?;
    Some((list.into(), addr.net(len)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_survives_the_way_into_the_map_and_back() {
        for text in ["10.0.0.0/8", "168.63.129.16/32", "0.0.0.0/0"] {
            let net: Ipv4Net = text.parse().unwrap();
            for list in [0, 1] {
                assert_eq!(range::<[u8; 4]>(key::<[u8; 4]>(list, &net)), Some((list, net)));
            }
        }
    }

    #[test]
    fn so_does_one_of_ipv6() {
        for text in ["::/0", "fc00::/7", "2001:db8::5/128"] {
            let net: Ipv6Net = text.parse().unwrap();
            assert_eq!(range::<[u8; 16]>(key::<[u8; 16]>(1, &net)), Some((1, net)));
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
            normal::<[u8; 4]>(&ranges),
            [
                (net("10.0.0.0/8"), RangeClass::EXCLUDED),
                (net("10.240.0.0/16"), RangeClass::MASQUERADED)
            ]
        );
    }
}
