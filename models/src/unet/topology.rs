//! Depth, strides and kernels of a U-Net from the training patch: nnU-Net's pooling rule.
//!
//! Paper: Isensee et al., *nnU-Net*, Nature Methods 2021. Reference: MIC-DKFZ/nnUNet,
//! `nnunetv2/experiment_planning/experiment_planners/network_topology.py`.

use crate::ModelError;

/// No feature map gets a side below this one by pooling.
const SMALLEST_SIDE: i64 = 4;
/// An axis alone is pooled only from this many times the smallest side on.
const ALONE: i64 = 3;

/// Strides and kernels, one row a stage, finest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Stride of the first convolution of each stage.
    pub strides: Vec<Vec<i64>>,
    /// Kernel of the convolutions of each stage.
    pub kernel_sizes: Vec<Vec<i64>>,
}

impl Topology {
    /// Halves the axes of the training patch that are still at least eight long, those with the finest spacing first,
    /// until none is left. Kernels are 1 along an axis as long as its spacing is twice the finest or more.
    pub fn for_patch(
        patch: &[i64],
        spacing: Option<&[f64]>,
        max_stages: Option<usize>,
    ) -> Result<Self, ModelError> {
        let dims = patch.len();
        if !(2..=3).contains(&dims) || patch.iter().any(|side| *side < 1) {
            let message = format!("{patch:?} is no patch, expected 2 or 3 sides of at least 1");
            return Err(ModelError::config("training_patch", message));
        }
        let mut spacing = spacing.map_or_else(|| vec![1.0; dims], <[f64]>::to_vec);
        if spacing.len() != dims || spacing.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            let message = format!("{spacing:?} does not go with a patch of {dims} axes, expected {dims} positive numbers");
            return Err(ModelError::config("spacing", message));
        }
        let max_stages = max_stages.unwrap_or(usize::MAX).max(1);
        let mut size = patch.to_vec();
        let mut kernel = vec![1; dims];
        let mut strides = vec![vec![1; dims]];
        let mut kernel_sizes = vec![];
        while strides.len() < max_stages {
            let pooled = axes_to_pool(&size, &spacing);
            let lonely = pooled.len() == 1 && size[pooled[0]] < ALONE * SMALLEST_SIDE;
            if pooled.is_empty() || lonely {
                break;
            }
            let finest = spacing.iter().copied().fold(f64::INFINITY, f64::min);
            for axis in 0..dims {
                if spacing[axis] / finest < 2.0 {
                    kernel[axis] = 3;
                }
            }
            let mut stride = vec![1; dims];
            for axis in pooled {
                stride[axis] = 2;
                spacing[axis] *= 2.0;
                size[axis] = (size[axis] + 1) / 2;
            }
            strides.push(stride);
            kernel_sizes.push(kernel.clone());
        }
        kernel_sizes.push(vec![3; dims]);
        Ok(Self {
            strides,
            kernel_sizes,
        })
    }
}

/// The axes still long enough whose spacing is below twice the finest among them.
fn axes_to_pool(size: &[i64], spacing: &[f64]) -> Vec<usize> {
    let long: Vec<usize> = (0..size.len())
        .filter(|a| size[*a] >= 2 * SMALLEST_SIDE)
        .collect();
    let finest = long
        .iter()
        .map(|a| spacing[*a])
        .fold(f64::INFINITY, f64::min);
    long.into_iter()
        .filter(|a| spacing[*a] / finest < 2.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strides(patch: &[i64], spacing: Option<&[f64]>) -> Vec<Vec<i64>> {
        Topology::for_patch(patch, spacing, None).unwrap().strides
    }

    #[test]
    fn published_depths() {
        assert_eq!(strides(&[512, 512], None).len(), 8);
        assert_eq!(strides(&[128, 128, 128], None).len(), 6);
        assert_eq!(strides(&[4, 4], None), [[1, 1]]);
    }

    #[test]
    fn short_axes_stop_first() {
        // 80 -> 40 -> 20 -> 10 -> 5 and 128 -> .. -> 8; the last halving acts on the second axis alone, 8 < 12, so not at all
        assert_eq!(
            strides(&[80, 128], None),
            [[1, 1], [2, 2], [2, 2], [2, 2], [2, 2]]
        );
        assert_eq!(strides(&[8, 48], None), [[1, 1], [2, 2], [1, 2], [1, 2]]);
    }

    #[test]
    fn coarse_axes_wait() {
        let t = Topology::for_patch(&[16, 64, 64], Some(&[5.0, 1.0, 1.0]), None).unwrap();
        assert_eq!(
            t.strides,
            [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
        );
        assert_eq!(
            t.kernel_sizes,
            [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
        );
    }

    #[test]
    fn stages_can_be_limited_and_nonsense_is_refused() {
        assert_eq!(
            Topology::for_patch(&[512, 512], None, Some(4))
                .unwrap()
                .strides
                .len(),
            4
        );
        assert!(Topology::for_patch(&[512], None, None).is_err());
        assert!(Topology::for_patch(&[512, 0], None, None).is_err());
        assert!(Topology::for_patch(&[512, 512], Some(&[1.0]), None).is_err());
        assert!(Topology::for_patch(&[512, 512], Some(&[1.0, 0.0]), None).is_err());
    }
}
