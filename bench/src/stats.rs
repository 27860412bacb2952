//! Medians, and how far they can be trusted.

use serde::Serialize;

/// An estimate with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Estimate {
    /// The median.
    pub(crate) median: f64,
    /// Lower end of the interval.
    pub(crate) low: f64,
    /// Upper end of the interval.
    pub(crate) high: f64,
}

/// Resamples of the bootstrap.
const RESAMPLES: usize = 2000;

impl Estimate {
    /// The median of `samples` and its percentile bootstrap interval (Efron 1979). `None` without samples.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let median = median(samples)?;
        let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .filter_map(|_| {
                let drawn: Vec<f64> = samples
                    .iter()
                    .map(|_| samples[random.below(samples.len())])
                    .collect();
                self::median(&drawn)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        Some(Self {
            median,
            low: medians[RESAMPLES / 40],
            high: medians[RESAMPLES - 1 - RESAMPLES / 40],
        })
    }

    /// A figure without doubt.
    pub(crate) fn exactly(value: f64) -> Self {
        Self {
            median: value,
            low: value,
            high: value,
        }
    }

    /// The ratios of neighbouring samples, `over` to `under`.
    pub(crate) fn of_ratios(over: &[f64], under: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = over.iter().zip(under).map(|(over, under)| over / under).collect();
        Self::of(&ratios)
    }
}

/// The median; `None` of nothing.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Marsaglia 2003: the same draws in every run.
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn one_wild_sample_moves_neither_median_nor_interval() {
        let mut samples = vec![2.0; 20];
        samples.push(1000.0);
        let estimate = Estimate::of(&samples).unwrap();
        assert_eq!((estimate.median, estimate.low, estimate.high), (2.0, 2.0, 2.0));
    }

    #[test]
    fn the_interval_narrows_with_more_samples_and_holds_the_median() {
        let spread = |count: u32| {
            let samples: Vec<f64> = (0..count).map(|i| f64::from(i * 7919 % 101)).collect();
            let estimate = Estimate::of(&samples).unwrap();
            assert!(estimate.low <= estimate.median && estimate.median <= estimate.high);
            estimate.high - estimate.low
        };
        assert!(spread(400) < spread(12));
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        // A machine that gets slower by the round: each pair still says two.
        let estimate = Estimate::of_ratios(&[20.0, 10.0, 4.0], &[10.0, 5.0, 2.0]).unwrap();
        assert_eq!((estimate.median, estimate.low, estimate.high), (2.0, 2.0, 2.0));
    }
}
