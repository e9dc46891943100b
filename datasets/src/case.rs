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

/// What a file's header says about the grid beyond spacing, origin and direction. A format that finds nothing of its own here, because
/// the source is of another format, makes its header from those three.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceHeader {
    /// Nothing more.
    None,
    /// The verbatim NIfTI header: it rounds to float32 in two redundant forms, so only a copy gives them back bit by bit.
    Nifti(Box<Header>),
}

impl Geometry {
    /// From spacing in array order, and origin and direction in world order. The error says what no grid can have.
    pub fn new(
        spacing: Vec<f64>,
        origin: Vec<f64>,
        direction: Vec<f64>,
    ) -> std::result::Result<Self, String> {
        let dims = spacing.len();
        if origin.len() != dims || direction.len() != dims * dims {
            return Err(format!(
                "spacing, origin and direction have {dims}, {} and {} numbers",
                origin.len(),
                direction.len()
            ));
        }
        if spacing.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err(format!(
                "its spacing is {spacing:?} (slowest axis first), expected numbers above 0"
            ));
        }
        if origin.iter().chain(&direction).any(|v| !v.is_finite()) {
            return Err("its origin or direction holds NaN or infinity".into());
        }
        let d = &direction;
        let determinant = match dims {
            2 => d[0] * d[3] - d[1] * d[2],
            3 => {
                d[0] * (d[4] * d[8] - d[5] * d[7]) - d[1] * (d[3] * d[8] - d[5] * d[6])
                    + d[2] * (d[3] * d[7] - d[4] * d[6])
            }
            _ => 1.0,
        };
        if determinant.is_nan() || determinant.abs() < 1e-6 {
            return Err(format!(
                "its axes do not span space: the determinant of its direction is {determinant}"
            ));
        }
        Ok(Self {
            spacing,
            origin,
            direction,
            source: SourceHeader::None,
        })
    }

    /// From the steps between neighbouring voxels along each axis, fastest axis first, in world order.
    pub(crate) fn from_steps(
        steps: &[Vec<f64>],
        origin: Vec<f64>,
    ) -> std::result::Result<Self, String> {
        let dims = steps.len();
        let (mut spacing, mut direction) = (vec![0.0; dims], vec![0.0; dims * dims]);
        for (axis, step) in steps.iter().enumerate() {
            let length = step.iter().map(|v| v * v).sum::<f64>().sqrt();
            spacing[dims - 1 - axis] = length;
            for (world, value) in step.iter().enumerate().take(dims) {
                direction[world * dims + axis] = value / length;
            }
        }
        Self::new(spacing, origin, direction)
    }

    /// The step between neighbouring voxels along each axis, fastest axis first, in world order.
    pub(crate) fn steps(&self) -> Vec<Vec<f64>> {
        let dims = self.spacing.len();
        let step = |axis: usize| {
            let cosines = (0..dims).map(move |world| self.direction[world * dims + axis]);
            cosines.map(|c| c * self.spacing[dims - 1 - axis]).collect()
        };
        (0..dims).map(step).collect()
    }

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
