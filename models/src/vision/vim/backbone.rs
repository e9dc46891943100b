//! Vim's features in several sizes, made from one: the backbone of segmentation networks.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{ClassToken, Stream, Trunk, VimConfig};
use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::{BatchNorm, ConvTranspose};
use crate::network::Backbone;
use crate::{ModelError, Scope};

/// What is done to the last block's output before it becomes a feature, where features are the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastLayer {
    /// Taken as it is.
    None,
    /// Added to the residual stream.
    Add,
    /// Added, and normalised.
    AddNorm,
}

/// What a backbone has beyond a [`VimConfig`].
#[derive(Debug, Clone, PartialEq)]
pub struct VimBackboneConfig {
    /// Blocks whose output is a feature; one alone serves for all four sizes.
    pub out_indices: Vec<i64>,
    /// Whether features are brought to reductions 4, 8, 16 and 32.
    pub fpn: bool,
    /// Whether features are the residual stream instead of the mixers' outputs.
    pub residual_features: bool,
    /// What is done to the last block's output.
    pub last_layer: LastLayer,
}

impl VimBackboneConfig {
    /// Four features evenly spread over the depth, brought to four sizes, as in the published configurations; of fewer than four blocks the
    /// last one's output serves for all.
    pub fn new(config: &VimConfig) -> Self {
        Self {
            out_indices: match config.depth {
                depth if depth < 4 => vec![depth - 1],
                depth => (1..=4).map(|i| depth * i / 4 - 1).collect(),
            },
            fpn: true,
            residual_features: false,
            last_layer: LastLayer::None,
        }
    }
}

/// One step of the pyramid.
enum Resize {
    /// Four times as large: two transposed convolutions with batch norm and GELU between.
    Up4(ConvTranspose, BatchNorm, ConvTranspose),
    /// Twice as large.
    Up2(ConvTranspose),
    Keep,
    /// Smaller by this factor, the largest value counts.
    Pool(i64),
}

impl Resize {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        Ok(match self {
            Resize::Up4(first, norm, second) => {
                second.forward(&norm.forward(&first.forward(x), train)?.gelu("none"))
            }
            Resize::Up2(up) => up.forward(x),
            Resize::Keep => x.shallow_clone(),
            Resize::Pool(by) => x.f_max_pool2d(
                [*by; 2].as_slice(),
                [*by; 2].as_slice(),
                [0, 0].as_slice(),
                [1, 1].as_slice(),
                false,
            )?,
        })
    }
}

/// The backbone. Class tokens are left out, with their rows of learned positions.
pub struct VimBackbone {
    trunk: Trunk,
    config: VimBackboneConfig,
    pyramid: Vec<Resize>,
}

impl VimBackbone {
    /// Registers the parameters in the reference's order.
    pub fn new(
        scope: &Scope,
        config: &VimConfig,
        features: &VimBackboneConfig,
    ) -> Result<Self, ModelError> {
        let config = VimConfig {
            class_token: ClassToken::None,
            ..config.clone()
        };
        let bad = features
            .out_indices
            .iter()
            .find(|i| !(0..config.depth).contains(i));
        let count = features.out_indices.len();
        if bad.is_some() || count == 0 || (features.fpn && count > 4) {
            let message = format!(
                "{:?}, expected one to four numbers below the depth {}",
                features.out_indices, config.depth
            );
            return Err(ModelError::config("out_indices", message));
        }
        if config.paired {
            let message = "true, expected false: paired blocks have no features of their own";
            return Err(ModelError::config("paired", message));
        }
        let (trunk, ()) = Trunk::new(scope, &config, |_| Ok(()))?;
        let dim = config.embed_dim;
        let up = |name: &str| {
            // of a transposed convolution PyTorch counts the outputs as inputs
            let bias = Init::torch_bias(dim * 4);
            ConvTranspose::new(
                &scope.sub(name),
                (dim, dim),
                &[2, 2],
                TORCH_WEIGHT,
                Some(bias),
            )
        };
        let pyramid = match (features.fpn, config.patch_size) {
            (false, _) => vec![],
            (true, 16) => vec![
                Resize::Up4(
                    up("fpn1.0")?,
                    BatchNorm::new(&scope.sub("fpn1.1"), dim)?,
                    up("fpn1.3")?,
                ),
                Resize::Up2(up("fpn2.0")?),
                Resize::Keep,
                Resize::Pool(2),
            ],
            (true, 8) => vec![
                Resize::Up2(up("fpn1.0")?),
                Resize::Keep,
                Resize::Pool(2),
                Resize::Pool(4),
            ],
            (true, other) => {
                let message = format!("{other}, expected 8 or 16 for features in four sizes");
                return Err(ModelError::config("patch_size", message));
            }
        };
        Ok(Self {
            trunk,
            config: features.clone(),
            pyramid,
        })
    }

    /// The features before they are resized.
    fn plain(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let (hidden, grid) = self.trunk.embed(x, train)?;
        let wanted = &self.config.out_indices;
        let map = |tokens: &Tensor| {
            let channels = tokens.size()[2];
            tokens
                .transpose(1, 2)
                .reshape([-1, channels, grid.0, grid.1])
        };
        let mut stream = Stream {
            hidden,
            residual: None,
        };
        let mut features = vec![];
        for i in self.trunk.steps() {
            stream = self.trunk.step(i, &stream, grid, train)?;
            let i = i as i64;
            match (&stream.residual, self.config.residual_features) {
                // a block hands on the residual stream that it was given, which is the result of those before it
                (Some(residual), true) if wanted.contains(&(i - 1)) => features.push(map(residual)),
                (_, false) if wanted.contains(&i) => features.push(map(&stream.hidden)),
                _ => {}
            }
        }
        let last = self.trunk.config.depth - 1;
        if self.config.residual_features && wanted.last() == Some(&last) {
            let tokens = match (self.config.last_layer, &stream.residual) {
                (LastLayer::Add, Some(residual)) => &stream.hidden + residual,
                (LastLayer::AddNorm, _) => self.trunk.last_norm(&stream, false),
                _ => stream.hidden.shallow_clone(),
            };
            features.push(map(&tokens));
        }
        Ok(features)
    }
}

impl Backbone for VimBackbone {
    fn features(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let mut features = self.plain(x, train)?;
        if self.pyramid.is_empty() {
            return Ok(features);
        }
        if let [only] = features.as_slice() {
            features = (0..4).map(|_| only.shallow_clone()).collect();
        }
        (features.iter().zip(&self.pyramid))
            .map(|(feature, resize)| resize.forward(feature, train))
            .collect()
    }

    fn channels(&self) -> Vec<i64> {
        vec![self.trunk.config.embed_dim; self.reduction().len()]
    }

    fn reduction(&self) -> Vec<i64> {
        let stride = self.trunk.config.stride;
        if self.pyramid.is_empty() {
            return vec![stride; self.config.out_indices.len()];
        }
        let all = (self.pyramid.iter()).map(|resize| match resize {
            Resize::Up4(..) => stride / 4,
            Resize::Up2(_) => stride / 2,
            Resize::Keep => stride,
            Resize::Pool(by) => stride * by,
        });
        match self.config.out_indices.len() {
            1 => all.collect(),
            count => all.take(count).collect(),
        }
    }

    fn divisor(&self) -> i64 {
        self.reduction().into_iter().max().unwrap_or(1)
    }
}
