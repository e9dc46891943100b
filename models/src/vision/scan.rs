//! The four orders in which SS2D walks a feature map, and the way back.
//!
//! Channels stay last, so that every reordering moves whole tokens.

use tch::Tensor;

/// Rows left to right, columns top to bottom, and both backwards: (B, H, W, C) -> 4 x (B, L, C)
pub fn cross_scan(x: &Tensor) -> [Tensor; 4] {
    let rows = x.flatten(1, 2);
    let columns = x.transpose(1, 2).flatten(1, 2);
    let (rows_back, columns_back) = (rows.flip([1]), columns.flip([1]));
    [rows, columns, rows_back, columns_back]
}

/// Brings four sequences back to the grid and adds them: 4 x (B, L, C) -> (B, H, W, C)
pub fn cross_merge(
    [rows, columns, rows_back, columns_back]: [Tensor; 4],
    (h, w): (i64, i64),
) -> Tensor {
    let rows = rows + rows_back.flip([1]);
    let columns = columns + columns_back.flip([1]);
    let (b, c) = (rows.size()[0], rows.size()[2]);
    rows.reshape([b, h, w, c]) + columns.reshape([b, w, h, c]).transpose(1, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn orders_and_back() {
        let x = Tensor::arange(6, (Kind::Float, tch::Device::Cpu)).view([1, 2, 3, 1]);
        let orders = cross_scan(&x);
        let order = |i: usize| Vec::<f32>::try_from(orders[i].flatten(0, -1)).unwrap();
        assert_eq!(order(0), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(order(1), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(order(2), [5., 4., 3., 2., 1., 0.]);
        assert_eq!(order(3), [5., 2., 4., 1., 3., 0.]);
        assert!(cross_merge(orders, (2, 3)).equal(&(x * 4.0)));
    }
}
