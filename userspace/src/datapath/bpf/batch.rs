//! Hash maps in batches: a system call for thousands of elements.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::Pod;

use super::bpf;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Calls `each` with every element of a hash map, read in batches. Elements that come or go meanwhile may be seen or
/// not; the others are seen once.
///
/// `K` and `V` must have the map's key and value size.
///
/// # Errors
///
/// `Unsupported` or `InvalidInput` where the kernel has no batches for this map (before 5.6).
pub(crate) fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, each: impl FnMut(K, V)) -> io::Result<()> {
    in_batches_of(4096, map, each)
}

fn in_batches_of<K: Pod, V: Pod>(
    room: usize,
    map: BorrowedFd<'_>,
    mut each: impl FnMut(K, V),
) -> io::Result<()> {
    let mut batch = Batch::<K, V>::with_room_for(room);
    let mut token: Option<u32> = None;
    loop {
        let (count, next) = match batch.read(map, token) {
            // A bucket has more elements than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                batch = Batch::with_room_for(batch.keys.len() * 4);
                continue;
            }
            other => other?,
        };
        for (key, value) in batch.keys.iter().zip(&batch.values).take(count) {
            // SAFETY: the kernel has written the first `count` keys and values, and any bytes are a value of `Pod`.
            unsafe { each(key.assume_init(), value.assume_init()) };
        }
        match next {
            Some(next) => token = Some(next),
            None => return Ok(()),
        }
    }
}

/// How many elements the last `buckets` of a hash map's `all_buckets` hold, at most `room`. Costs one system call and
/// tells how full the map is: the kernel spreads elements evenly, and the token of a batch is a bucket's index
/// (`kernel/bpf/hashtab.c`, Linux 5.6 to 6.18).
pub(crate) fn sample<K: Pod, V: Pod>(
    room: usize,
    map: BorrowedFd<'_>,
    all_buckets: u32,
    buckets: u32,
) -> io::Result<usize> {
    let start = all_buckets.saturating_sub(buckets);
    Ok(Batch::<K, V>::with_room_for(room).read(map, Some(start))?.0)
}

struct Batch<K, V> {
    keys: Vec<MaybeUninit<K>>,
    values: Vec<MaybeUninit<V>>,
}

impl<K: Pod, V: Pod> Batch<K, V> {
    fn with_room_for(count: usize) -> Self {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        keys.resize_with(count, MaybeUninit::uninit);
        values.resize_with(count, MaybeUninit::uninit);
        Self { keys, values }
    }

    /// Reads the batch after `token`. Returns how many elements there are and the next token, `None` at the end.
    fn read(&mut self, map: BorrowedFd<'_>, token: Option<u32>) -> io::Result<(usize, Option<u32>)> {
        let mut next = 0u32;
        let mut attributes = BatchAttributes {
            in_batch: token.as_ref().map_or(0, |token| (&raw const *token) as u64),
            out_batch: (&raw mut next) as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: self.keys.len() as u32,
            map_fd: map.as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: for a hash map the kernel writes at most `count` keys and values, for which there is room since
        // `K` and `V` have the map's sizes, and a token of four bytes. All outlive the call.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
        match result {
            Ok(_) => Ok((attributes.count as usize, Some(next))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attributes.count as usize, None)),
            Err(error) => Err(error),
        }
    }
}

/// `batch` of `union bpf_attr`.
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use aya::maps::{HashMap, IterableMap as _, MapData};

    use super::*;

    /// Needs CAP_BPF, as the whole test run does.
    fn filled(capacity: u32, elements: u32) -> HashMap<MapData, u32, u64> {
        let mut map = HashMap::create(capacity, 0).expect("CAP_BPF is needed: run as root");
        for key in 0..elements {
            map.insert(key, u64::from(key) * 3, 0).unwrap();
        }
        map
    }

    #[test]
    fn every_element_of_a_hash_is_seen_once_whatever_the_room() {
        const ELEMENTS: u32 = 10_000;
        let map = filled(ELEMENTS, ELEMENTS);
        // With room for one element, a bucket of two does not fit: the room has to grow.
        for room in [1, 1000, 4096, 20_000] {
            let mut seen = Vec::new();
            in_batches_of(room, map.map().fd().as_fd(), |key: u32, value: u64| {
                assert_eq!(value, u64::from(key) * 3);
                seen.push(key);
            })
            .unwrap();
            seen.sort_unstable();
            assert!(
                seen.iter().copied().eq(0..ELEMENTS),
                "{} elements with room for {room}",
                seen.len()
            );
        }
    }

    #[test]
    fn a_sample_tells_how_full_a_map_is() {
        const CAPACITY: u32 = 1 << 16;
        for (elements, expected) in [
            (0, 0..=0),
            (CAPACITY / 4, 150..=370),
            (CAPACITY / 2, 360..=680),
            (CAPACITY, 800..=1300),
        ] {
            let map = filled(CAPACITY, elements);
            let found = sample::<u32, u64>(4096, map.map().fd().as_fd(), CAPACITY, 1024).unwrap();
            assert!(expected.contains(&found), "{found} of {elements} in 1024 buckets");
        }
    }

    #[test]
    fn the_structure_has_the_kernels_size() {
        assert_eq!(size_of::<BatchAttributes>(), 56);
    }
}
