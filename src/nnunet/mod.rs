//! What nnU-Net v2 and its forks leave on disk: where results lie, which trainer made them, and the network that their plans describe.

pub mod architecture;
pub mod results;
pub mod trainer;
