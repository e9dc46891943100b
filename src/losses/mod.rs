//! Training losses.

mod dice_ce;

pub use dice_ce::{deep_supervision_weights, DiceCrossEntropy, DiceOver};
