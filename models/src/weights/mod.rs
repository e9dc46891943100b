//! Weights on disk.

mod safetensors;

pub use self::safetensors::{load_strict, read_metadata, save_safetensors};
