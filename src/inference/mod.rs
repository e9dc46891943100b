//! From an image to class scores on its own grid.

pub mod sliding_window;
pub mod volume;
