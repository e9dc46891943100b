//! Bicubic resizing whose gradients are the same bits in every run on every device. (Libtorch's own adds them up in the order of chance on a GPU.)

use tch::{no_grad, Tensor};
use vision_mamba_ops::autocast::in_float32;

/// What makes `to` values of `from` along one axis, (to, from): libtorch's bicubic interpolation of every unit vector.
fn weights(from: i64, to: i64, like: &Tensor) -> Tensor {
    no_grad(|| {
        let units = Tensor::eye(from, (like.kind(), like.device())).view([1, from, from, 1]);
        let rows = units.upsample_bicubic2d([to, 1], false, None, None);
        rows.view([from, to]).tr()
    })
}

/// (.., h, w) -> (.., to_h, to_w), corners not aligned: the axes one after the other, as products with fixed matrices. For small maps, such as
/// learned positions.
pub(crate) fn bicubic(map: &Tensor, (to_h, to_w): (i64, i64)) -> Tensor {
    let size = map.size();
    let (h, w) = (size[size.len() - 2], size[size.len() - 1]);
    // positions keep their precision where products are rounded
    in_float32(map, |map| {
        (weights(h, to_h, map).matmul(map)).matmul(&weights(w, to_w, map).tr())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn equals_libtorchs() {
        tch::manual_seed(1);
        let map = Tensor::randn([1, 3, 7, 9], (Kind::Double, Device::Cpu));
        for to in [(14, 14), (7, 4), (5, 9), (1, 30)] {
            let expected = map.upsample_bicubic2d([to.0, to.1], false, None, None);
            let gap = (bicubic(&map, to) - expected).abs().max();
            assert!(gap.double_value(&[]) < 1e-12, "{to:?}: {gap}");
        }
    }
}
