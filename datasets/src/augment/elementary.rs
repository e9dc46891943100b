//! Elementary functions in float32 without branches, so that loops over them are vectorised, and with the same bits on every platform, which
//! the C library's do not have. Polynomials after Cephes (S. Moshier, 1992: `logf`, `expf`, `sinf`); errors in the tests.
#![allow(clippy::excessive_precision)] // the coefficients as they were published

/// Added to a number, it leaves float32 no room for fractions: the number is rounded, and its last bits are the whole number.
const ROUND: f32 = 12_582_912.0;

/// The whole number in a sum with [`ROUND`], negative ones wrapped.
#[inline(always)]
fn rounded(shifted: f32) -> u32 {
    shifted.to_bits().wrapping_sub(ROUND.to_bits())
}

/// The larger of two numbers, the second unless the first is. One instruction, which `f32::max` with its rule for NaN is not.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a > b {
        a
    } else {
        b
    }
}

/// The smaller of two numbers, the second unless the first is.
#[inline(always)]
pub(crate) fn smaller(a: f32, b: f32) -> f32 {
    if a < b {
        a
    } else {
        b
    }
}

/// The number, or the bound that it is beyond.
#[inline(always)]
pub(crate) fn between(x: f32, low: f32, high: f32) -> f32 {
    smaller(larger(x, low), high)
}

/// The whole part of a number from 0 to 4 million, and the rest.
#[inline(always)]
pub(crate) fn whole_and_rest(x: f32) -> (u32, f32) {
    let whole = x.floor();
    (rounded(whole + ROUND), x - whole)
}

/// Natural logarithm of a normal positive number.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    const SQRT_HALF: u32 = 0x3f35_04f3;
    // x = m 2^e with m from sqrt(1/2) to sqrt(2)
    let shifted = x.to_bits().wrapping_sub(SQRT_HALF);
    let exponent = (shifted as i32) >> 23;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(SQRT_HALF)) - 1.0;
    let e = exponent as f32;
    let square = m * m;
    let mut p = 7.037_683_6e-2;
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = p * m + c;
    }
    // ln 2 in two parts, the first with few digits
    p * m * square + e * -2.121_944_4e-4 - 0.5 * square + m + e * 0.693_359_4
}

/// Exponential of a number between -87 and 88; those beyond count as the limit.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = between(x, -87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p * r + c;
    }
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(rounded(shifted).wrapping_add(127) << 23)
}

/// `x` to the power of `exponent` for `x` from 0 to 1 and a positive exponent.
#[inline(always)]
pub(crate) fn power(x: f32, exponent: f32) -> f32 {
    let raised = exp(ln(larger(x, f32::MIN_POSITIVE)) * exponent);
    if x < f32::MIN_POSITIVE {
        0.0
    } else {
        raised
    }
}

/// Sine and cosine of `turn` times 2 pi, for `turn` from 0 to 1.
#[inline(always)]
pub(crate) fn sin_cos_of_turn(turn: f32) -> (f32, f32) {
    // eighths: the angle from the nearest quarter is at most pi / 4
    let shifted = turn * 4.0 + ROUND;
    let quarter = rounded(shifted);
    let a = (turn * 4.0 - (shifted - ROUND)) * std::f32::consts::FRAC_PI_2;
    let z = a * a;
    let sin = ((-1.951_529_6e-4 * z + 8.332_161e-3) * z - 1.666_665_5e-1) * z * a + a;
    let cos = ((2.443_315_7e-5 * z - 1.388_731_6e-3) * z + 4.166_664_6e-2) * z * z - 0.5 * z + 1.0;
    let (s, c) = if quarter & 1 == 1 {
        (cos, sin)
    } else {
        (sin, cos)
    };
    let sign = |bit: u32| f32::from_bits(0x3f80_0000 | ((bit & 1) << 31));
    (s * sign(quarter >> 1), c * sign((quarter + 1) >> 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest errors found: ln 7.8e-8 (relative above 1, else absolute), exp 7.9e-8 (relative), power 7e-8, sine and cosine 8.8e-8; the bounds are
    /// about twice that.
    #[test]
    fn as_good_as_float32() {
        let relative = |got: f32, want: f64| ((f64::from(got) - want) / want).abs();
        for i in 1..200_000u32 {
            let x = i as f32 / 200_000.0;
            let wide = f64::from(x);
            assert!(
                (f64::from(ln(x)) - wide.ln()).abs() <= 2e-7 * wide.ln().abs().max(1.0),
                "ln {x}"
            );
            let y = x * 60.0 - 30.0;
            assert!(relative(exp(y), f64::from(y).exp()) < 2e-7, "exp {y}");
            for g in [0.7f32, 1.0, 1.5] {
                let want = wide.powf(f64::from(g));
                assert!((f64::from(power(x, g)) - want).abs() < 1.5e-7, "{x}^{g}");
            }
            let (s, c) = sin_cos_of_turn(x);
            let (ws, wc) = (std::f64::consts::TAU * wide).sin_cos();
            assert!(
                (f64::from(s) - ws).abs() < 2e-7 && (f64::from(c) - wc).abs() < 2e-7,
                "turn {x}: {s} {c} {ws} {wc}"
            );
        }
        assert_eq!((power(0.0, 0.7), power(1.0, 1.3)), (0.0, 1.0));
    }
}
