//! Random numbers that a seed reproduces (splitmix64, Steele et al. 2014).

use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};

/// The seed of a run: what `CAUSEWAY_SEED` says; for a long run (`CAUSEWAY_LONG`) one that no run had before; else `ordinary`, so
/// that it is the same run each time.
///
/// # Panics
///
/// If `CAUSEWAY_SEED` is not a number.
pub fn seed(ordinary: u64) -> u64 {
    match env::var("CAUSEWAY_SEED") {
        Ok(seed) => match seed.parse() {
            Ok(seed) => seed,
            Err(error) => panic!("CAUSEWAY_SEED={seed}: {error}"),
        },
        Err(_) if env::var_os("CAUSEWAY_LONG").is_some() => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(ordinary, |since| since.as_nanos() as u64),
        Err(_) => ordinary,
    }
}

/// A generator; the same seed gives the same numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "an endless sequence needs no Option"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From `first` to `last`, both included.
    pub fn port(&mut self, first: u16, last: u16) -> u16 {
        first + self.below(usize::from(last - first) + 1) as u16
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of `from`, which is not empty.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
