//! Vision Mamba segmentation on libtorch: training, prediction and evaluation.
//!
//! The way of the data is `datasets` (arrays) -> [`engine`] (batches, network, loss, optimiser, run folder) and, for
//! prediction, `datasets` -> [`inference`] -> label maps -> [`metrics`] -> [`report`]. Networks come from the crate
//! `vision-mamba-models`, the scan operator from `vision-mamba-ops`. Only this crate reads the environment, the clock
//! and the terminal.

pub mod benchmark;
pub mod cli;
pub mod commands;
pub mod dehaze;
pub mod engine;
pub mod inference;
pub mod losses;
pub mod metrics;
pub mod nnunet;
pub mod photo;
pub mod precision;
pub mod report;
pub mod runtime;
pub mod speed;
