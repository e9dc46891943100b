//! Whether two methods differ on the same cases.

use serde::{Deserialize, Serialize};

use super::bootstrap::interval;

/// Paired differences of two methods, case by case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// Cases that both have a number for.
    pub cases: usize,
    /// Mean of the differences, first less second.
    pub mean: f64,
    /// Where it lies nineteen times out of twenty when cases are drawn anew.
    pub interval_95: Option<(f64, f64)>,
    /// Two-sided probability of ranks as uneven as these if nothing differed (Wilcoxon's signed-rank test, 1945); none where no case differs.
    pub wilcoxon_p: Option<f64>,
    /// Cases on which the first is larger, and on which the second is.
    pub larger: (usize, usize),
}

/// Up to so many differing cases the distribution of the rank sum is counted out.
const COUNTED: usize = 50;

/// Compares pairs of numbers; `None` without any.
pub fn paired(pairs: &[(f64, f64)]) -> Option<Paired> {
    // the PSNR of equal pictures has no end: two such differ by nothing that could be averaged
    let finite = |d: &f64| d.is_finite();
    let differences: Vec<f64> = pairs.iter().map(|(a, b)| a - b).filter(finite).collect();
    if differences.is_empty() {
        return None;
    }
    let count = |sign: f64| differences.iter().filter(|d| **d * sign > 0.0).count();
    Some(Paired {
        cases: differences.len(),
        mean: differences.iter().sum::<f64>() / differences.len() as f64,
        interval_95: interval(&differences),
        wilcoxon_p: wilcoxon(&differences),
        larger: (count(1.0), count(-1.0)),
    })
}

/// Two-sided p of the signed-rank test. Zeros are left out and ties share their ranks; up to fifty cases all signs are counted out, beyond that
/// the normal approximation is used.
pub fn wilcoxon(differences: &[f64]) -> Option<f64> {
    let mut sizes: Vec<(f64, bool)> = differences
        .iter()
        .filter(|d| **d != 0.0 && d.is_finite())
        .map(|d| (d.abs(), *d > 0.0))
        .collect();
    let n = sizes.len();
    if n == 0 {
        return None;
    }
    sizes.sort_by(|a, b| a.0.total_cmp(&b.0));
    // twice the ranks, which are whole
    let mut ranks = Vec::with_capacity(n);
    let mut ties = 0.0;
    while ranks.len() < n {
        let start = ranks.len();
        let same = sizes[start..].iter().take_while(|s| s.0 == sizes[start].0);
        let tied = same.count();
        ranks.extend(std::iter::repeat_n(2 * start + tied + 1, tied));
        ties += (tied as f64).powi(3) - tied as f64;
    }
    let above: usize = ranks
        .iter()
        .zip(&sizes)
        .filter(|(_, s)| s.1)
        .map(|(r, _)| r)
        .sum();
    let total = n * (n + 1);
    let least = above.min(total - above);
    if n <= COUNTED {
        return Some((2.0 * at_most(&ranks, least)).min(1.0));
    }
    let variance = (n * (n + 1) * (2 * n + 1)) as f64 / 24.0 - ties / 48.0;
    let z = (least as f64 - total as f64 / 2.0) / (2.0 * variance.sqrt());
    Some(erfc(-z / std::f64::consts::SQRT_2).min(1.0))
}

/// Probability that these ranks, each with a fair coin's sign, have a positive sum of at most `sum`.
fn at_most(ranks: &[usize], sum: usize) -> f64 {
    let mut ways = vec![0.0f64; sum + 1];
    ways[0] = 1.0;
    for &rank in ranks {
        for s in (rank..=sum).rev() {
            ways[s] += ways[s - rank];
        }
    }
    ways.iter().sum::<f64>() / 2f64.powi(ranks.len() as i32)
}

/// Complementary error function, to 1.2e-7 relative (Press et al., *Numerical Recipes*, section 6.2: a Chebyshev fit).
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.5 * x.abs());
    const FIT: [f64; 10] = [
        -1.265_512_23,
        1.000_023_68,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_203_98,
        1.488_515_87,
        -0.822_152_23,
        0.170_872_77,
    ];
    let exponent = FIT.iter().rev().fold(0.0, |sum, c| sum * t + c);
    let tail = t * (exponent - x * x).exp();
    match x >= 0.0 {
        true => tail,
        false => 2.0 - tail,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Expected: scipy 1.17, `scipy.stats.wilcoxon`.
    #[test]
    fn equals_scipy() {
        let exact = [0.3, -0.1, 0.5, 0.7, 0.9, -0.2, 1.1, 0.4, 0.8];
        assert_eq!(wilcoxon(&exact), Some(0.019_531_25));
        let ties = [1.0, 1.0, 2.0, -2.0, 3.0, 5.0, 5.0];
        assert_eq!(wilcoxon(&ties), Some(0.093_75));
        let many: Vec<f64> = (1..=60)
            .map(|i| f64::from(i) * if i % 3 == 0 { -1.0 } else { 1.0 })
            .collect();
        assert!((wilcoxon(&many).unwrap() - 0.035_900_123).abs() < 1e-7);
        assert_eq!(wilcoxon(&[1.0, -1.0, 2.0, -2.0]), Some(1.0));
        assert_eq!(wilcoxon(&[1.0]), Some(1.0));
        assert_eq!(wilcoxon(&[0.0, 0.0]), None);
    }

    #[test]
    fn differences_are_the_first_less_the_second() {
        let found = paired(&[(0.9, 0.8), (0.7, 0.8), (0.6, 0.3)]).unwrap();
        assert!((found.mean - 0.1).abs() < 1e-12);
        assert_eq!(found.larger, (2, 1));
        assert_eq!(paired(&[]), None);
    }
}
