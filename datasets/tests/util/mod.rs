//! Fixtures and small data sets for the tests.

#[allow(dead_code)] // not every test binary has downloads
pub mod downloads;

use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors};
use vision_mamba_datasets::{write_labels, Geometry, LabelMap};

#[allow(dead_code)] // not every test binary has fixtures
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// All tensors of a file, as float64.
#[allow(dead_code)] // not every test binary has goldens
pub fn tensors(path: &Path) -> Vec<(String, ArrayD<f64>)> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes
            .chunks_exact(N)
            .map(|b| value(b.try_into().unwrap()))
            .collect()
    }
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let named = file.tensors().into_iter().map(|(name, t)| {
        let data = t.data();
        let values = match t.dtype() {
            Dtype::U8 => each(data, |[b]: [u8; 1]| b.into()),
            Dtype::I8 => each(data, |[b]: [u8; 1]| (b as i8).into()),
            Dtype::I16 => each(data, |b| i16::from_le_bytes(b).into()),
            Dtype::U16 => each(data, |b| u16::from_le_bytes(b).into()),
            Dtype::I32 => each(data, |b| i32::from_le_bytes(b).into()),
            Dtype::F32 => each(data, |b| f32::from_le_bytes(b).into()),
            Dtype::F64 => each(data, f64::from_le_bytes),
            other => panic!("{name}: {other:?}"),
        };
        (
            name,
            ArrayD::from_shape_vec(IxDyn(t.shape()), values).unwrap(),
        )
    });
    named.collect()
}

/// A data set of `cases` greyscale PNGs of 12 x 10 pixels with a square of class 1.
#[allow(dead_code)] // not every test binary makes data sets
pub fn small_dataset(root: &Path, cases: usize) {
    for folder in ["imagesTr", "labelsTr"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    describe(
        root,
        r#"{"0": "T1"}"#,
        r#"{"background": 0, "square": 1}"#,
        ".png",
    );
    for case in 0..cases {
        let label = square(12, 10, 1);
        write_labels(&root.join(format!("labelsTr/case_{case}.png")), &label).unwrap();
        // An image is a map of numbers too.
        let image = LabelMap {
            data: label.data.mapv(|v| 40 + 100 * v + case as i16),
            ..label
        };
        write_labels(&root.join(format!("imagesTr/case_{case}_0000.png")), &image).unwrap();
    }
}

#[allow(dead_code)] // not every test binary makes data sets
pub fn describe(root: &Path, channels: &str, labels: &str, ending: &str) {
    let text = format!(
        r#"{{"channel_names": {channels}, "labels": {labels}, "file_ending": "{ending}", "numTraining": 3, "licence": "none", "reference": null}}"#
    );
    std::fs::write(root.join("dataset.json"), text).unwrap();
}

#[allow(dead_code)] // not every test binary makes data sets
pub fn square(height: usize, width: usize, value: i16) -> LabelMap {
    let mut data = ArrayD::zeros(IxDyn(&[height, width]));
    for row in 3..6 {
        for column in 4..8 {
            data[[row, column]] = value;
        }
    }
    LabelMap {
        data,
        geometry: Geometry::unit(2),
    }
}
