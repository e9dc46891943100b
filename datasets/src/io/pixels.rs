//! The two kinds of arrays that are written, seen in one way.

use ndarray::{ArrayViewD, IxDyn};

use super::element::{encode_labels, encode_values, Element};

/// What is written into a file.
pub(super) enum Pixels<'a> {
    /// Class numbers (H, W) or (Z, Y, X), none below 0.
    Labels(ArrayViewD<'a, i16>),
    /// Values (C, H, W) or (C, Z, Y, X).
    Values(ArrayViewD<'a, f32>),
}

impl Pixels<'_> {
    pub(super) fn channels(&self) -> usize {
        match self {
            Self::Labels(_) => 1,
            Self::Values(array) => array.shape().first().copied().unwrap_or(0),
        }
    }

    /// In array order.
    pub(super) fn spatial_size(&self) -> &[usize] {
        match self {
            Self::Labels(array) => array.shape(),
            Self::Values(array) => array.shape().get(1..).unwrap_or_default(),
        }
    }

    /// The type of number to write: the narrowest for labels, float32 for values.
    pub(super) fn element(&self) -> Element {
        match self {
            Self::Labels(array) => Element::of_labels(array),
            Self::Values(_) => Element::F32,
        }
    }

    /// In array order, channels slowest.
    pub(super) fn bytes(&self, big_endian: bool) -> Vec<u8> {
        match self {
            Self::Labels(array) => encode_labels(array, self.element(), big_endian),
            Self::Values(array) => encode_values(array, big_endian),
        }
    }

    /// The bytes of [`bytes`](Self::bytes), channels fastest.
    pub(super) fn interleaved_bytes(&self, big_endian: bool) -> Vec<u8> {
        match self {
            Self::Labels(_) => self.bytes(big_endian),
            Self::Values(array) => {
                let order: Vec<usize> = (1..array.ndim()).chain([0]).collect();
                encode_values(array.view().permuted_axes(IxDyn(&order)).iter(), big_endian)
            }
        }
    }
}
