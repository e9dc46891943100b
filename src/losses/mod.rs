//! Training losses.

pub mod image;
mod segmentation;
mod soft_dice;

pub use segmentation::{
    deep_supervision_weights, region_target, LossKind, SegmentationLoss, Target,
};
pub use soft_dice::{soft_dice, squared_dice, DiceOver};
