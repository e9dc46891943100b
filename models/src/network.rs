//! What every network offers, whatever it is made of and whatever it is for.

use serde::Serialize;
use tch::Tensor;

use crate::{ModelError, NetworkSpec, ParamStore};

/// Features somewhere in a network: encoder and decoder meet at these, and `models show` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Name of the module that makes the features.
    pub name: String,
    /// Channels of the features.
    pub channels: i64,
    /// How many input voxels one feature covers, per axis.
    pub reduction: Vec<i64>,
}

/// What a network is for, and with it what it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Logits (B, classes, spatial..), as large as the image; with deep supervision also coarser ones.
    Segmentation,
    /// One image (B, channels, spatial..), the clear one.
    Restoration,
    /// Logits (B, classes).
    Classification,
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Task::Segmentation => "segmentation",
            Task::Restoration => "restoration",
            Task::Classification => "classification",
        })
    }
}

/// A network on images (B, channels, spatial..).
pub trait Network: Send {
    /// What its [`Task`] says. Segmentation gives the finest logits first: one entry, or one a decoder stage with deep
    /// supervision; the other tasks give one entry.
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError>;

    /// Every spatial side of an input must be a multiple of these.
    fn divisor(&self) -> Vec<i64>;

    /// Whether [`forward`](Self::forward) returns more than the finest logits.
    fn deep_supervision(&self) -> bool {
        false
    }

    /// The features along the way, in the order of the data.
    fn stages(&self) -> Vec<Stage>;
}

/// The part of a network that makes features of several sizes from images; any decoder can stand on it.
pub trait Backbone: Send {
    /// Features (B, channels, spatial..) of each stage, fine to coarse.
    fn features(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError>;

    /// Channels of each stage.
    fn channels(&self) -> Vec<i64>;

    /// How many pixels one feature of each stage covers along an axis.
    fn reduction(&self) -> Vec<i64>;

    /// Every spatial side of an input must be a multiple of this.
    fn divisor(&self) -> i64;
}

/// A network with its parameters and the configuration it was made from.
pub struct Built {
    /// The network.
    pub net: Box<dyn Network>,
    /// Its named tensors.
    pub params: ParamStore,
    /// Its configuration.
    pub spec: NetworkSpec,
}

/// Checks an input's rank, channels and divisibility, so that the maths behind it can take them for granted.
pub(crate) fn check_input(x: &Tensor, channels: &[i64], divisor: &[i64]) -> Result<(), ModelError> {
    let shape = x.size();
    let fail = |message: String| {
        Err(ModelError::Input {
            shape: shape.clone(),
            message,
        })
    };
    if shape.len() != divisor.len() + 2 {
        return fail(format!(
            "expected {} axes: batch, channels, {} spatial",
            divisor.len() + 2,
            divisor.len()
        ));
    }
    if !channels.contains(&shape[1]) {
        let expected = channels
            .iter()
            .map(i64::to_string)
            .collect::<Vec<_>>()
            .join(" or ");
        return fail(format!(
            "axis 1 has {} channels, expected {expected}",
            shape[1]
        ));
    }
    for (axis, (side, by)) in shape[2..].iter().zip(divisor).enumerate() {
        if *side == 0 || side % by != 0 {
            let up = (side / by + 1) * by;
            return fail(format!(
                "spatial axis {axis} has {side}, expected a multiple of {by} (pad it to {up})"
            ));
        }
    }
    Ok(())
}
