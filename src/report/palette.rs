//! The colours of label maps.

/// Colours of the labels, in the order of their names. The first seven are Okabe and Ito's; the others were chosen greedily so that the
/// smallest CIE L*a*b* distance between any two is as large as possible for normal sight, deuteranopia and protanopia, none of them grey.
pub(super) const PALETTE: [[u8; 3]; 16] = [
    [0xE6, 0x9F, 0x00],
    [0x56, 0xB4, 0xE9],
    [0x00, 0x9E, 0x73],
    [0xF0, 0xE4, 0x42],
    [0x00, 0x72, 0xB2],
    [0xD5, 0x5E, 0x00],
    [0xCC, 0x79, 0xA7],
    [0x00, 0x00, 0xFF],
    [0x96, 0xFF, 0xA5],
    [0x87, 0x0F, 0x0F],
    [0x69, 0x69, 0xFF],
    [0x69, 0x2D, 0x5A],
    [0x87, 0xFF, 0xE1],
    [0x3C, 0x2D, 0xA5],
    [0xFF, 0x00, 0x5A],
    [0x5A, 0xF0, 0xFF],
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in CIE L*a*b* of two colours as seen by an eye that sees linear RGB through `sight`.
    fn distance(a: [u8; 3], b: [u8; 3], sight: &[[f64; 3]; 3]) -> f64 {
        let lab = |colour: [u8; 3]| {
            let linear = colour.map(|v| {
                let c = f64::from(v) / 255.0;
                if c <= 0.04045 {
                    c / 12.92
                } else {
                    ((c + 0.055) / 1.055).powf(2.4)
                }
            });
            let times = |m: &[[f64; 3]; 3], v: [f64; 3]| {
                [0, 1, 2].map(|i| m[i][0] * v[0] + m[i][1] * v[1] + m[i][2] * v[2])
            };
            let seen = times(sight, linear).map(|v| v.clamp(0.0, 1.0));
            let xyz = times(
                &[
                    [0.4124564, 0.3575761, 0.1804375],
                    [0.2126729, 0.7151522, 0.072175],
                    [0.0193339, 0.119192, 0.9503041],
                ],
                seen,
            );
            let f = |v: f64| {
                if v > 0.008856 {
                    v.cbrt()
                } else {
                    7.787 * v + 16.0 / 116.0
                }
            };
            let [x, y, z] = [f(xyz[0] / 0.95047), f(xyz[1]), f(xyz[2] / 1.08883)];
            [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
        };
        let (a, b) = (lab(a), lab(b));
        (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn colours_differ_for_every_kind_of_sight() {
        // Machado, Oliveira and Fernandes (2009), full severity.
        let normal = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let deuteranopia = [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ];
        let protanopia = [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ];
        // 2.3 is the smallest difference an eye notices; measured minima are 24.1, 17.0 and 20.7.
        for (sight, least) in [(normal, 23.0), (deuteranopia, 16.0), (protanopia, 19.5)] {
            for (i, &a) in PALETTE.iter().enumerate() {
                for &b in &PALETTE[..i] {
                    assert!(
                        distance(a, b, &sight) > least,
                        "{a:?} and {b:?}: {}",
                        distance(a, b, &sight)
                    );
                }
            }
        }
    }
}
