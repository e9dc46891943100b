//! The one place where arrays become tensors.

use anyhow::Result;
use tch::{Device, Kind, Tensor};
use vision_mamba_datasets::Batch;
use vision_mamba_ops::device::upload;

use crate::losses::Target;
use crate::speed::Speed;

/// A batch on the device.
pub struct TensorBatch {
    /// Images, (B, C, …) float32.
    pub image: Tensor,
    /// Labels, (B, …) int64.
    pub target: Target,
}

impl TensorBatch {
    /// Moves a batch of arrays to `device`.
    pub fn new(batch: &Batch, device: Device, speed: Speed) -> Result<Self> {
        let shape: Vec<i64> = batch.shape.iter().map(|&n| n as i64).collect();
        let label_shape: Vec<i64> = shape
            .iter()
            .take(1)
            .chain(shape.iter().skip(2))
            .copied()
            .collect();
        let image = Tensor::f_from_slice(&batch.image)?.f_view(&shape[..])?;
        let labels = Tensor::f_from_slice(&batch.label)?.f_view(&label_shape[..])?;
        Ok(Self {
            image: speed.image(upload(&image, device)?)?,
            target: Target {
                labels: upload(&labels, device)?.f_to_kind(Kind::Int64)?,
                // here the labels can be looked at without waiting for the device
                partial: batch.label.iter().any(|&label| label < 0),
            },
        })
    }
}
