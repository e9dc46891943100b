//! Depth, features, kernels and strides of a U-Net: stated, or following from the training patch.

use serde::{Deserialize, Serialize};

use super::topology::Topology;
use crate::ModelError;

/// One number for all stages, or one each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerStage {
    /// The same everywhere.
    Same(i64),
    /// Finest stage first in the encoder, coarsest first in the decoder.
    Each(Vec<i64>),
}

impl PerStage {
    /// One number a stage; a list must have exactly as many.
    pub fn resolve(&self, stages: usize, field: &'static str) -> Result<Vec<i64>, ModelError> {
        let each = match self {
            PerStage::Same(n) => vec![*n; stages],
            PerStage::Each(each) => each.clone(),
        };
        if each.len() != stages || each.iter().any(|n| *n < 1) {
            let message = format!("{each:?} does not go with {stages} stages, expected {stages} numbers of at least 1");
            return Err(ModelError::config(field, message));
        }
        Ok(each)
    }

    /// One number a stage; a list may have more, of which the first count, as in a planner's rule for any depth.
    pub fn resolve_prefix(
        &self,
        stages: usize,
        field: &'static str,
    ) -> Result<Vec<i64>, ModelError> {
        match self {
            PerStage::Each(each) if each.len() > stages => {
                PerStage::Each(each[..stages].to_vec()).resolve(stages, field)
            }
            _ => self.resolve(stages, field),
        }
    }
}

/// The fields of a configuration that decide on its levels. Lists left empty follow from the training patch.
pub struct Layout<'a> {
    /// Size of the crops it is trained on.
    pub training_patch: &'a [i64],
    /// Voxel spacing of the crops along the same axes; none: the same along all.
    pub spacing: Option<&'a [f64]>,
    /// Upper limit to the depth that follows from the training patch.
    pub max_stages: Option<usize>,
    /// Features of the first stage, doubled from stage to stage.
    pub base_features: i64,
    /// Where the doubling ends.
    pub max_features: i64,
    /// Features of every stage, instead of the two above; also fixes the depth.
    pub features_per_stage: &'a [i64],
    /// Kernel of every stage.
    pub kernel_sizes: &'a [Vec<i64>],
    /// Stride of every stage.
    pub strides: &'a [Vec<i64>],
}

/// What a [`Layout`] amounts to: lists of one length, at least 2.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    /// Features per stage.
    pub features: Vec<i64>,
    /// Kernel per stage.
    pub kernels: Vec<Vec<i64>>,
    /// Stride per stage.
    pub strides: Vec<Vec<i64>>,
}

impl Layout<'_> {
    /// Number of spatial axes.
    pub fn spatial_dims(&self) -> usize {
        self.strides
            .first()
            .map_or(self.training_patch.len(), Vec::len)
    }

    /// Fills the open lists and checks that all go together.
    pub fn resolve(&self) -> Result<Levels, ModelError> {
        let dims = self.spatial_dims();
        let (mut strides, mut kernels) = (self.strides.to_vec(), self.kernel_sizes.to_vec());
        if strides.is_empty() {
            let stated = [self.features_per_stage.len(), kernels.len()]
                .into_iter()
                .find(|n| *n > 0);
            let topology = Topology::for_patch(
                self.training_patch,
                self.spacing,
                stated.or(self.max_stages),
            )?;
            if stated.is_some_and(|n| n > topology.strides.len()) {
                let message = format!(
                    "{} stages need a larger training patch than {:?}, which allows {}; state fewer, or `strides` too",
                    stated.unwrap_or_default(),
                    self.training_patch,
                    topology.strides.len()
                );
                return Err(ModelError::config("features_per_stage", message));
            }
            if kernels.is_empty() {
                kernels = topology.kernel_sizes;
            }
            strides = topology.strides;
        } else if kernels.is_empty() {
            kernels = vec![vec![3; dims]; strides.len()];
        }
        let features = match self.features_per_stage.is_empty() {
            false => self.features_per_stage.to_vec(),
            true => (0..strides.len() as u32)
                .map(|i| {
                    self.base_features
                        .saturating_mul(2i64.saturating_pow(i))
                        .min(self.max_features)
                })
                .collect(),
        };
        let levels = Levels {
            features,
            kernels,
            strides,
        };
        levels.check(dims)?;
        Ok(levels)
    }
}

impl Levels {
    /// Number of stages.
    pub fn count(&self) -> usize {
        self.strides.len()
    }

    /// Product of the strides down to each stage.
    pub fn reductions(&self) -> Vec<Vec<i64>> {
        let start = vec![1; self.strides.first().map_or(0, Vec::len)];
        let next = |so_far: &mut Vec<i64>, stride: &Vec<i64>| {
            so_far.iter_mut().zip(stride).for_each(|(r, s)| *r *= s);
            Some(so_far.clone())
        };
        self.strides.iter().scan(start, next).collect()
    }

    /// For training on data: logits must be as large as the image.
    pub fn check_full_resolution(&self) -> Result<(), ModelError> {
        match self.strides.first() {
            Some(first) if first.iter().any(|s| *s != 1) => {
                let message = format!(
                    "first stride {first:?}, expected 1: logits must be as large as the image"
                );
                Err(ModelError::config("strides", message))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, dims: usize) -> Result<(), ModelError> {
        let n = self.count();
        if n < 2 {
            let message = format!(
                "{n} stage, a U-Net needs at least 2; the training patch must be at least 8 long"
            );
            return Err(ModelError::config("strides", message));
        }
        if !(2..=3).contains(&dims) {
            return Err(ModelError::config(
                "strides",
                format!("{dims} spatial axes, expected 2 or 3"),
            ));
        }
        for (field, length) in [
            ("features_per_stage", self.features.len()),
            ("kernel_sizes", self.kernels.len()),
        ] {
            if length != n {
                return Err(ModelError::config(
                    field,
                    format!("{length} stages, but `strides` has {n}"),
                ));
            }
        }
        for (field, rows) in [("strides", &self.strides), ("kernel_sizes", &self.kernels)] {
            if let Some(row) = rows
                .iter()
                .find(|row| row.len() != dims || row.iter().any(|v| *v < 1))
            {
                return Err(ModelError::config(
                    field,
                    format!("{row:?}, expected {dims} numbers of at least 1"),
                ));
            }
        }
        if let Some(row) = self
            .kernels
            .iter()
            .find(|row| row.iter().any(|k| k % 2 == 0))
        {
            let message = format!(
                "{row:?}, expected odd sizes, an even one changes the size of the feature map"
            );
            return Err(ModelError::config("kernel_sizes", message));
        }
        check_positive(self.features.iter().map(|f| ("features_per_stage", *f)))
    }
}

/// Every size at least one.
pub fn check_positive(
    sizes: impl IntoIterator<Item = (&'static str, i64)>,
) -> Result<(), ModelError> {
    match sizes.into_iter().find(|(_, size)| *size < 1) {
        Some((field, size)) => Err(ModelError::config(
            field,
            format!("{size}, expected at least 1"),
        )),
        None => Ok(()),
    }
}

/// A data set's training patch has as many axes as the network.
pub fn check_axes(has: usize, training_patch: &[i64]) -> Result<(), ModelError> {
    let wants = training_patch.len();
    if has != wants {
        let message = format!(
            "this network has {has} spatial axes, the data {wants}; choose the {wants}-D preset"
        );
        return Err(ModelError::config("training_patch", message));
    }
    Ok(())
}

/// A training step needs more than one position in the coarsest feature map, or its instance norms have nothing to go by.
pub fn check_trainable(shape: &[i64], divisor: &[i64]) -> Result<(), ModelError> {
    if shape[2..] != *divisor {
        return Ok(());
    }
    Err(ModelError::Input {
        shape: shape.to_vec(),
        message:
            "the coarsest feature map has one position, which an instance norm cannot be trained on"
                .into(),
    })
}
