//! Benchmarks: methods scored on a data set of the catalogue, beside what was published.

pub mod members;
pub mod predictions;
pub mod results;
pub mod score;
