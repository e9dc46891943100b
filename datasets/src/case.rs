//! An image or a label map together with its place in the world.

use ndarray::ArrayD;

use crate::io::nifti::Header;

/// Where an array lies in space.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// Distance between voxels, one per spatial axis in array order (slowest first); 1 where the file has none.
    pub spacing: Vec<f64>,
    /// Position of the first voxel, in the order x, y, z and in the left-posterior-superior frame, as SimpleITK gives it.
    pub origin: Vec<f64>,
    /// Direction cosines, row by row, in the same frame and order.
    pub direction: Vec<f64>,
    /// What a file with the same geometry needs besides.
    pub source: SourceHeader,
}

/// The part of a file's header that a label map on the same grid must repeat.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceHeader {
    /// PNG and the like: nothing.
    None,
    /// The verbatim NIfTI-1 header.
    Nifti(Box<Header>),
}

impl Geometry {
    /// Unit spacing, zero origin, identity direction: what an image has that comes without geometry.
    pub fn unit(spatial_dims: usize) -> Self {
        let mut direction = vec![0.0; spatial_dims * spatial_dims];
        for axis in 0..spatial_dims {
            direction[axis * spatial_dims + axis] = 1.0;
        }
        Self {
            spacing: vec![1.0; spatial_dims],
            origin: vec![0.0; spatial_dims],
            direction,
            source: SourceHeader::None,
        }
    }
}

/// An image of several channels.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// (C, H, W) or (C, Z, Y, X).
    pub data: ArrayD<f32>,
    /// Where it lies.
    pub geometry: Geometry,
}

impl Image {
    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.data.shape()[0]
    }

    /// Size without the channel axis.
    pub fn spatial_size(&self) -> &[usize] {
        &self.data.shape()[1..]
    }
}

/// A class number for every voxel.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelMap {
    /// (H, W) or (Z, Y, X).
    pub data: ArrayD<i16>,
    /// Where it lies; take the image's to write a prediction on the image's grid.
    pub geometry: Geometry,
}
