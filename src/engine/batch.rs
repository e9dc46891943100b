//! The one place where arrays become tensors.

use anyhow::Result;
use tch::{Device, Kind, Tensor};
use vision_mamba_datasets::Batch;

/// A batch on the device: `image` (B, C, …) float32 and `label` (B, …) int64, negative where there is no image.
pub struct TensorBatch {
    /// Images.
    pub image: Tensor,
    /// Labels.
    pub label: Tensor,
}

impl TensorBatch {
    /// Moves a batch of arrays to `device`.
    pub fn new(batch: &Batch, device: Device) -> Result<Self> {
        let shape: Vec<i64> = batch.shape.iter().map(|&n| n as i64).collect();
        let label_shape: Vec<i64> = shape
            .iter()
            .take(1)
            .chain(shape.iter().skip(2))
            .copied()
            .collect();
        Ok(Self {
            image: Tensor::f_from_slice(&batch.image)?
                .f_view(&shape[..])?
                .to_device(device),
            label: Tensor::f_from_slice(&batch.label)?
                .f_view(&label_shape[..])?
                .to_device(device)
                .to_kind(Kind::Int64),
        })
    }
}
