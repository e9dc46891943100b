//! One file a command: settings in, work done, result printed.

pub mod average_weights;
pub mod benchmark;
pub mod catalog;
pub mod datasets;
pub mod dehaze;
pub mod evaluate;
pub mod evaluate_protocol;
pub mod evaluate_restoration;
pub mod export;
pub mod find_best;
pub mod import_results;
pub mod info;
pub mod models;
pub mod plan;
pub mod predict;
pub mod train;
pub mod train_restoration;
pub mod weights;
