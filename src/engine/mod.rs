//! Training: settings, schedule, optimiser, the loop, and the run folder it writes.

pub mod average;
pub mod batch;
pub mod config;
pub mod optimizer;
pub mod profile;
pub mod recorded;
pub mod restoration;
pub mod run_folder;
pub mod schedule;
pub mod segmentation;
pub mod state;
pub mod tally;
pub mod task;
pub mod tensorboard;
pub mod train;
pub mod validation;
