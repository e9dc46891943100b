//! Draws patches of one case for `scripts/check-augment-python`: `cargo run --release -p vision-mamba-datasets --example augmented FOLDER`.
//!
//! FOLDER has `image.npy` (float32, channels first, three axes), `label.npy` (int16) and `sets.json`:
//! `{"patch": [..], "draws": N, "sets": {NAME: settings of the augmentation}}`. Writes the patches of each set to `NAME.image.npy` (N, C, patch...)
//! and `NAME.label.npy` (N, patch...).
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use ndarray::{Array3, Array4, ArrayView};
use ndarray_npy::{read_npy, write_npy};
use serde::Deserialize;
use vision_mamba_datasets::{
    draw_batch, Augmentation, Geometry, PatchSettings, PreparedCase, SourceGrid, TrainingCase,
};

#[derive(Deserialize)]
struct Sets {
    patch: Vec<usize>,
    draws: usize,
    sets: BTreeMap<String, Augmentation>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("which folder?")?;
    let folder = Path::new(&folder);
    let image: Array4<f32> = read_npy(folder.join("image.npy"))?;
    let seg: Array3<i16> = read_npy(folder.join("label.npy"))?;
    let sets: Sets = serde_json::from_slice(&std::fs::read(folder.join("sets.json"))?)?;
    let (_, z, y, x) = image.dim();
    let case = PreparedCase {
        id: "case".into(),
        image,
        seg,
        labelled: true,
        source: SourceGrid {
            spacing: [1.0; 3],
            size: [z, y, x],
            bounds: [z, y, x].map(|n| [0, n]),
            transpose_backward: [0, 1, 2],
            spatial_dims: 3,
            geometry: Geometry::unit(3),
        },
    };
    let cases = [TrainingCase::new(case, &[], None)];
    for (number, (name, augment)) in sets.sets.into_iter().enumerate() {
        let settings = PatchSettings {
            training_patch: sets.patch.clone(),
            batch_size: sets.draws,
            oversample_foreground: 0.0,
            augment,
            masked_channels: Vec::new(),
            ignore_label: None,
            seed: 1,
        };
        settings.validate(&cases)?;
        let batch = draw_batch(&cases, &settings, number as u64);
        let mut shape = batch.shape.clone();
        let image = ArrayView::from_shape(shape.clone(), &batch.image)?;
        write_npy(folder.join(format!("{name}.image.npy")), &image)?;
        shape.remove(1);
        let label = ArrayView::from_shape(shape, &batch.label)?;
        write_npy(folder.join(format!("{name}.label.npy")), &label)?;
        println!("{name}");
    }
    Ok(())
}
