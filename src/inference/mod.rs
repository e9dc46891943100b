//! From an image to class scores on its own grid.

pub mod ensemble;
pub mod input;
pub mod member;
pub mod pipeline;
pub mod postprocess;
pub mod sliding_window;
pub mod volume;
