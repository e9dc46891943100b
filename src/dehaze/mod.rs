//! Haze removed from photographs: the dark channel prior, and networks of any restoration preset, whole or in tiles.

pub mod clearing;
pub mod dark_channel;
mod filters;
pub mod network;
pub mod tiles;
