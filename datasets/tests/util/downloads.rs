//! Volumes as Mamba-UNet and TransUNet prepare them, with contents of our own; the program's tests use them too.

use std::fs;
use std::path::Path;

const GOLDEN: &[u8] =
    include_bytes!("../../../tests/golden_pipeline/formats/Synapse/test_vol_h5/case0008.npy.h5");
/// Where the arrays of the golden volume lie in its file, both 3 x 48 x 48 of float32 and not packed.
const IMAGE: usize = 2048;
const LABEL: usize = 29696;
const VOXELS: usize = 3 * 48 * 48;

/// A number in 0..1 that differs between places and files.
pub fn value(at: usize, seed: usize) -> f32 {
    ((at * 31 + seed * 7919) % 997) as f32 / 997.0
}

/// A volume and its label map: the golden file of TransUNet's form with other numbers in it.
pub fn hdf5(path: &Path, seed: usize, classes: usize) {
    let mut bytes = GOLDEN.to_vec();
    for at in 0..VOXELS {
        let label = (at / 300 + seed) % classes;
        bytes[IMAGE + 4 * at..][..4].copy_from_slice(&value(at, seed).to_le_bytes());
        bytes[LABEL + 4 * at..][..4].copy_from_slice(&(label as f32).to_le_bytes());
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
