//! Weights on disk.

mod safetensors;

pub use self::safetensors::{
    load_strict, read_metadata, read_tensors, save_safetensors, save_tensors,
};
