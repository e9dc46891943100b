//! Stochastic depth.

use tch::Tensor;

/// Drops the whole branch of a sample with probability `rate` and scales the kept ones, so that the mean stays; only in
/// training.
pub fn drop_path(x: &Tensor, rate: f64, train: bool) -> Tensor {
    if !train || rate <= 0.0 {
        return x.shallow_clone();
    }
    let keep = 1.0 - rate;
    let mut shape = vec![1; x.dim()];
    shape[0] = x.size()[0];
    let mask = Tensor::zeros(&shape, (x.kind(), x.device())).bernoulli_float_(keep);
    x * (mask / keep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn samples_are_kept_whole_or_dropped_whole() {
        tch::manual_seed(1);
        let x = Tensor::ones([4000, 2, 3], (Kind::Float, Device::Cpu));
        assert!(drop_path(&x, 0.25, false).equal(&x));
        assert!(drop_path(&x, 0.0, true).equal(&x));
        let y = drop_path(&x, 0.25, true);
        let per_sample = y.view([4000, 6]);
        assert!(per_sample
            .amax([1], false)
            .equal(&per_sample.amin([1], false)));
        assert!((y.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.04);
        let dropped =
            f64::try_from(per_sample.select(1, 0).eq(0.0).sum(Kind::Double)).unwrap() / 4000.0;
        assert!((dropped - 0.25).abs() < 0.03, "dropped {dropped}");
    }
}
