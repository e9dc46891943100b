//! State space models: continuous systems and their discretisations, HiPPO, S4, S4D and Mamba (S6).

pub mod hippo;
pub mod lti;
pub mod mamba;
pub mod s4;

pub use mamba::{Mamba, MambaConfig, MambaState};
pub use s4::{S4Block, S4BlockConfig, S4Kernel, S4KernelConfig};
