//! The networks of vision-mamba: what they are made of, which of them exist by name, and how their weights are stored.
//!
//! A network comes to be in three steps, each of them plain data until the last:
//! [`preset`] names a [`NetworkSpec`], [`NetworkSpec::for_data`] fits it to images and classes, [`build`] makes it.
//!
//! The crate knows no files but weights and presets, and neither terminal nor clock.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod cost;
pub mod describe;
pub mod error;
pub mod export;
pub mod init;
pub mod layers;
pub mod network;
pub mod params;
pub mod registry;
pub mod ssm;
mod suggest;
pub mod unet;
pub mod vision;
pub mod weights;

pub use config::NetworkSpec;
pub use cost::{cost, NetworkCost};
pub use describe::{describe, Description};
pub use error::ModelError;
pub use init::Init;
pub use network::{Backbone, Built, Network, Stage, Task};
pub use params::{EntryKind, ParamStore, Scope};
pub use registry::{build, outline, preset, presets, PresetEntry};
