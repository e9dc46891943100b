//! Building blocks for images as grids of tokens, channels last: (B, H, W, C).

pub mod mlp;
pub mod norm;
pub mod patch;
pub mod scan;
pub mod ss2d;
pub mod vim;
pub mod vmamba;
pub mod vss;

pub use ss2d::{Ss2d, Ss2dConfig};
pub use vim::{Vim, VimBackbone, VimBackboneConfig, VimConfig};
pub use vmamba::{Vmamba, VmambaBackbone, VmambaConfig};
pub use vss::{in_turn, VssBlock, VssBlockConfig};

use crate::Init;

/// What VMamba and its descendants do to every linear layer after construction; biases become zero. Convolutions and
/// the stacked projections of SS2D, which are no linear layers, keep PyTorch's rule.
pub const VSSM_LINEAR: Init = Init::TruncNormal { std: 0.02 };
