//! The orders in which a grid of tokens is walked, and the way back.
//!
//! Reference: MzeroMiko/VMamba at 2ed52ead062a, `classification/models/csm_triton.py` (`cross_scan_fn`, `cross_merge_fn`).

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Number of scan directions of every pattern.
pub const DIRECTIONS: i64 = 4;

/// Four orders of the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanPattern {
    /// Rows left to right, columns top to bottom, and both backwards.
    Cross2d,
    /// Rows left to right, four times.
    Unidi,
    /// Rows twice, rows backwards twice.
    Bidi,
    /// Rows of the grid turned by 0, 90, 180 and 270 degrees counterclockwise.
    Rot90,
}

impl ScanPattern {
    /// (4, H W) of int32: the token, numbered row by row, that each step of each direction comes to.
    pub fn orders(self, h: i64, w: i64, device: Device) -> Tensor {
        let rows = Tensor::arange(h * w, (Kind::Int, device));
        let back = |x: &Tensor| x.flip([0]);
        let grid = rows.view([h, w]);
        let each = match self {
            ScanPattern::Cross2d => {
                let columns = grid.transpose(0, 1).flatten(0, 1);
                let (rows_back, columns_back) = (back(&rows), back(&columns));
                [rows, columns, rows_back, columns_back]
            }
            ScanPattern::Unidi => std::array::from_fn(|_| rows.shallow_clone()),
            ScanPattern::Bidi => {
                let (again, back) = (rows.shallow_clone(), back(&rows));
                let back_again = back.shallow_clone();
                [rows, again, back, back_again]
            }
            ScanPattern::Rot90 => [0, 1, 2, 3].map(|k| grid.rot90(k, [0, 1]).flatten(0, 1)),
        };
        Tensor::stack(&each, 0)
    }

    /// The tokens in each order: (B, H, W, C) -> (B, H W, 4, C)
    pub fn scan(self, x: &Tensor) -> Tensor {
        let size = x.size();
        let tokens = x.flatten(1, 2);
        let orders = self
            .orders(size[1], size[2], x.device())
            .to_kind(Kind::Int64);
        let each: Vec<Tensor> = (0..DIRECTIONS)
            .map(|k| tokens.index_select(1, &orders.select(0, k)))
            .collect();
        Tensor::stack(&each, 2)
    }

    /// Brings sequences back to the grid and adds them: (B, H W, 4, C) -> (B, H, W, C)
    pub fn merge(self, y: &Tensor, (h, w): (i64, i64)) -> Tensor {
        let orders = self.orders(h, w, y.device()).to_kind(Kind::Int64);
        let size = y.size();
        let sum = (0..DIRECTIONS).fold(
            Tensor::zeros([size[0], h * w, size[3]], (y.kind(), y.device())),
            |sum, k| {
                let back = orders.select(0, k).argsort(0, false);
                sum + y.select(2, k).index_select(1, &back)
            },
        );
        sum.view([size[0], h, w, size[3]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_and_back() {
        let x = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([1, 2, 3, 1]);
        let order = |pattern: ScanPattern, k: i64| {
            Vec::<f32>::try_from(pattern.scan(&x).select(2, k).flatten(0, -1)).unwrap()
        };
        for (pattern, k, expected) in [
            (ScanPattern::Cross2d, 0, [0., 1., 2., 3., 4., 5.]),
            (ScanPattern::Cross2d, 1, [0., 3., 1., 4., 2., 5.]),
            (ScanPattern::Cross2d, 2, [5., 4., 3., 2., 1., 0.]),
            (ScanPattern::Cross2d, 3, [5., 2., 4., 1., 3., 0.]),
            (ScanPattern::Unidi, 3, [0., 1., 2., 3., 4., 5.]),
            (ScanPattern::Bidi, 1, [0., 1., 2., 3., 4., 5.]),
            (ScanPattern::Bidi, 2, [5., 4., 3., 2., 1., 0.]),
            (ScanPattern::Rot90, 1, [2., 5., 1., 4., 0., 3.]),
        ] {
            assert_eq!(order(pattern, k), expected, "{pattern:?} {k}");
        }
        for pattern in [
            ScanPattern::Cross2d,
            ScanPattern::Unidi,
            ScanPattern::Bidi,
            ScanPattern::Rot90,
        ] {
            let back = pattern.merge(&pattern.scan(&x), (2, 3));
            assert!(back.equal(&(&x * 4.0)), "{pattern:?}");
        }
    }
}
