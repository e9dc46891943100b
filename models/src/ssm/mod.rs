//! State space sequence mixers.

pub mod mamba;

pub use mamba::{Mamba, MambaConfig, MambaState};
