//! Measures of how well a prediction agrees with its reference.

pub mod overlap;
pub mod restoration;
pub mod summary;
