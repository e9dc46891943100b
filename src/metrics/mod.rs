//! Scores of predictions against references. Arrays only: no files, no tensors.

pub mod bootstrap;
pub mod distance;
pub mod instances;
pub mod overlap;
pub mod paired;
pub mod protocol;
pub mod restoration;
pub mod summary;
pub mod surface;
pub mod surfels;
