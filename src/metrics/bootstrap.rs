//! How sure a mean over cases is.

/// Resamples drawn for an interval.
const RESAMPLES: usize = 2000;
/// Part of the resampled means inside the interval.
const COVERED: f64 = 0.95;

/// The interval in which the mean of resampled cases lies nineteen times out of twenty (percentile bootstrap, Efron 1979), with a fixed
/// sequence of draws. `None` for fewer than two values.
pub fn interval(values: &[f64]) -> Option<(f64, f64)> {
    if values.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let mean =
        |drawn: &[usize]| Some(drawn.iter().map(|&i| values[i]).sum::<f64>() / drawn.len() as f64);
    interval_of(values.len(), mean)
}

/// The same for any statistic of `n` cases, which is given the numbers of the cases that were drawn. Draws for which it has no value are left
/// out; `None` where it has one for none of them.
pub fn interval_of(n: usize, statistic: impl Fn(&[usize]) -> Option<f64>) -> Option<(f64, f64)> {
    if n < 2 {
        return None;
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = || {
        // SplitMix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bits = z ^ (z >> 31);
        ((u128::from(bits) * n as u128) >> 64) as usize
    };
    let mut drawn = vec![0; n];
    let mut found: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            drawn.fill_with(&mut draw);
            statistic(&drawn)
        })
        .collect();
    found.sort_unstable_by(f64::total_cmp);
    let last = found.len().checked_sub(1)?;
    let at = |part: f64| found[(last as f64 * part).round() as usize];
    let tail = (1.0 - COVERED) / 2.0;
    Some((at(tail), at(1.0 - tail)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn about_two_standard_errors_wide() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i % 10)).collect();
        let (low, high) = interval(&values).unwrap();
        // deviation 2.87, so the mean of 100 is within 0.56 of 4.5
        assert!(
            (low - 3.94).abs() < 0.1 && (high - 5.06).abs() < 0.1,
            "{low} {high}"
        );
        assert_eq!(interval(&[1.0]), None);
        assert_eq!(interval(&[2.0; 5]), Some((2.0, 2.0)));
    }

    #[test]
    fn draws_without_a_value_are_left_out() {
        // the first of two cases alone has a value
        let first = |drawn: &[usize]| drawn.contains(&0).then_some(3.0);
        assert_eq!(interval_of(2, first), Some((3.0, 3.0)));
        assert_eq!(interval_of(2, |_| None), None);
        assert_eq!(interval_of(1, first), None);
    }
}
