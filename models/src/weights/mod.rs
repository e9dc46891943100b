//! Weights on disk.

pub mod checkpoint;
pub mod import;
mod safetensors;

pub use self::checkpoint::{read_values, Checkpoint};
pub use self::import::{import, Import};

pub use self::safetensors::{
    load_strict, read_metadata, read_tensors, save_safetensors, save_tensors,
};
