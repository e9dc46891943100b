//! Depth, strides and kernels of a U-Net from spacing and patch: nnU-Net's pooling rule (`network_topology.py`).

/// No feature map gets a side below this one by pooling.
const SMALLEST_SIDE: f64 = 4.0;
/// An axis alone is pooled only from this many times the smallest side on.
const ALONE: f64 = 3.0;

/// Strides and kernels, one row a stage, finest first, and the patch they fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Halvings along each axis.
    pub pools: Vec<u32>,
    /// Stride of each stage.
    pub strides: Vec<Vec<usize>>,
    /// Kernel of each stage.
    pub kernel_sizes: Vec<Vec<usize>>,
    /// The patch rounded up to what the strides divide.
    pub patch: Vec<usize>,
}

impl Topology {
    /// For a patch whose sides may be halves of odd numbers (medians are).
    pub fn new(spacing: &[f64], patch: &[f64]) -> Self {
        let dims = spacing.len();
        let (mut spacing, mut size) = (spacing.to_vec(), patch.to_vec());
        let mut pools = vec![0u32; dims];
        let mut kernel = vec![1; dims];
        let mut strides = vec![vec![1; dims]];
        let mut kernel_sizes = vec![];
        loop {
            let pooled = axes_to_pool(&size, &spacing);
            if pooled.is_empty() || (pooled.len() == 1 && size[pooled[0]] < ALONE * SMALLEST_SIDE) {
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
                pools[axis] += 1;
                spacing[axis] *= 2.0;
                size[axis] = (size[axis] / 2.0).ceil();
            }
            strides.push(stride);
            kernel_sizes.push(kernel.clone());
        }
        kernel_sizes.push(vec![3; dims]);
        let patch = patch
            .iter()
            .zip(&pools)
            .map(|(side, pools)| pad(*side, 1 << pools))
            .collect();
        Self {
            pools,
            strides,
            kernel_sizes,
            patch,
        }
    }

    /// What each side of the patch must be a multiple of.
    pub fn divisor(&self) -> Vec<usize> {
        self.pools.iter().map(|p| 1 << p).collect()
    }
}

/// Rounds up to a multiple, and a half down after that, as the reference's whole numbers come about.
fn pad(side: f64, divisor: usize) -> usize {
    let divisor = divisor as f64;
    let rest = side % divisor;
    let padded = match rest == 0.0 {
        true => side,
        false => side + divisor - rest,
    };
    padded as usize
}

/// The axes still long enough whose spacing is below twice the finest among them.
fn axes_to_pool(size: &[f64], spacing: &[f64]) -> Vec<usize> {
    let long: Vec<usize> = (0..size.len())
        .filter(|a| size[*a] >= 2.0 * SMALLEST_SIDE)
        .collect();
    let finest = long
        .iter()
        .map(|a| spacing[*a])
        .fold(f64::INFINITY, f64::min);
    long.into_iter()
        .filter(|a| spacing[*a] / finest < 2.0)
        .collect()
}
