//! Weights on disk.

pub mod checkpoint;
pub mod import;
mod safetensors;
pub mod shipped;

pub use self::checkpoint::{read_values, Checkpoint};
pub use self::import::{import, Import};

pub use self::safetensors::{
    load_strict, load_strict_from, read_metadata, read_metadata_from, read_tensors,
    save_safetensors, save_tensors,
};
