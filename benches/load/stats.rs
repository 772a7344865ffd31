//! Statistics: medians, and intervals by bootstrap.

/// The middle value, or the mean of the two in the middle; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => 0.0,
        (length, middle) if length % 2 == 1 => values[middle],
        (_, middle) => (values[middle - 1] + values[middle]) / 2.0,
    }
}

pub fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

/// A small generator of random numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// 0 to `bound - 1`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// All bits of the number in all bits of the result.
pub fn mix(number: u64) -> u64 {
    let z = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What two sides have shown in one row of a comparison, a value for each round; none is 0.
#[derive(Debug, Clone)]
pub struct Row {
    pub old: Vec<f64>,
    pub new: Vec<f64>,
}

/// A ratio of new to old, and the interval that has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
}

const RESAMPLES: usize = 10_000;
/// The confidence of all intervals together: the probability that each of them has its true ratio.
const CONFIDENCE: f64 = 0.95;

/// The ratio of the geometric means of each row, with an interval by bootstrap.
///
/// The rounds are drawn anew, the same ones for every row, and each row's deviation is taken in units of its own
/// standard error (bootstrap-t): with few rounds, plain percentiles are too narrow. The intervals hold *together*:
/// one of many rows does not look different by chance more often than in one of twenty comparisons.
///
/// `paired`: round n of both sides stood next to each other in time; what both then shared falls out.
pub fn ratios(rows: &[Row], paired: bool, seed: u64) -> Vec<Ratio> {
    let mut rng = Rng(seed);
    let samples: Vec<[Vec<f64>; 2]> = rows.iter().map(|row| logs(row, paired)).collect();
    let estimates: Vec<(f64, f64)> = samples.iter().map(|[old, new]| estimate(old, new)).collect();
    let Some(lengths) = samples.first().map(|[old, new]| [old.len(), new.len()]) else { return Vec::new() };
    let mut largest: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let [old, new] = lengths.map(|length| (0..length).map(|_| rng.below(length)).collect::<Vec<_>>());
            let deviations = samples.iter().zip(&estimates).filter(|(_, (_, error))| *error > 0.0);
            let deviations = deviations.map(|(sample, (mean, error))| {
                let drawn = |values: &[f64], which: &[usize]| which.iter().map(|&n| values[n]).collect::<Vec<_>>();
                let (again, its_error) = estimate(&drawn(&sample[0], &old), &drawn(&sample[1], &new));
                // A draw of one round over and over has no spread, and would look infinitely far off.
                (again - mean).abs() / its_error.max(error / 3.0)
            });
            deviations.fold(0.0, f64::max)
        })
        .collect();
    largest.sort_by(f64::total_cmp);
    let reach = largest[((RESAMPLES as f64 * CONFIDENCE) as usize).min(RESAMPLES - 1)];
    let interval = |&(mean, error): &(f64, f64)| Ratio {
        ratio: mean.exp(),
        low: (mean - reach * error).exp(),
        high: (mean + reach * error).exp(),
    };
    estimates.iter().map(interval).collect()
}

/// Logarithms of both sides; for a paired row those of the ratios, as the new side.
fn logs(row: &Row, paired: bool) -> [Vec<f64>; 2] {
    let log = |values: &[f64]| values.iter().map(|value| value.max(f64::MIN_POSITIVE).ln()).collect::<Vec<_>>();
    let (old, new) = (log(&row.old), log(&row.new));
    if !paired {
        return [old, new];
    }
    let ratios: Vec<f64> = old.iter().zip(&new).map(|(old, new)| new - old).collect();
    [vec![0.0; ratios.len()], ratios]
}

/// How far the new mean lies from the old one, and the standard error of that.
fn estimate(old: &[f64], new: &[f64]) -> (f64, f64) {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let square_error = |values: &[f64]| {
        let (mean, count) = (mean(values), values.len() as f64);
        values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0) / count
    };
    (mean(new) - mean(old), (square_error(old) + square_error(new)).sqrt())
}
