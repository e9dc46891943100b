//! The 348 bytes of a NIfTI-1 header, kept verbatim so that a label map can repeat the source's geometry bit by bit.
//!
//! Geometry follows SimpleITK, because nnU-Net reads through it: world axes are left-posterior-superior (NIfTI's x and y negated); the sform
//! counts when its code is 1 or when there is no qform, otherwise the qform; with neither, direction is the identity and origin zero.

use crate::{Geometry, SourceHeader};

/// Length of the header on disk.
pub(super) const LENGTH: usize = 348;
/// Where the voxels begin in a file without extensions.
pub(super) const VOXELS_AT: usize = 352;

// Byte positions of the fields used here.
const DIM: usize = 40;
const INTENT_CODE: usize = 68;
const DATATYPE: usize = 70;
const BITPIX: usize = 72;
const PIXDIM: usize = 76;
const VOX_OFFSET: usize = 108;
const SCL_SLOPE: usize = 112;
const SCL_INTER: usize = 116;
const CAL_MAX: usize = 124;
const CAL_MIN: usize = 128;
const XYZT_UNITS: usize = 123;
const QFORM_CODE: usize = 252;
const SFORM_CODE: usize = 254;
const QUATERN: usize = 256;
const QOFFSET: usize = 268;
const SROW: usize = 280;
const MAGIC: usize = 344;

/// Columns of an affine may differ from orthogonal by this much (cosine), which float32 rounding stays far below.
const LARGEST_SHEAR: f64 = 1e-3;

/// Voxel types that can be read, with their NIfTI codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VoxelType {
    U8,
    I16,
    I32,
    F32,
    F64,
    I8,
    U16,
    U32,
    I64,
    U64,
}

const VOXEL_TYPES: &[(i16, VoxelType, usize)] = &[
    (2, VoxelType::U8, 1),
    (4, VoxelType::I16, 2),
    (8, VoxelType::I32, 4),
    (16, VoxelType::F32, 4),
    (64, VoxelType::F64, 8),
    (256, VoxelType::I8, 1),
    (512, VoxelType::U16, 2),
    (768, VoxelType::U32, 4),
    (1024, VoxelType::I64, 8),
    (1280, VoxelType::U64, 8),
];

/// A NIfTI-1 header as it was in the file.
#[derive(Clone, PartialEq)]
pub struct Header {
    bytes: [u8; LENGTH],
    big_endian: bool,
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header")
            .field("size", &self.size())
            .field("big_endian", &self.big_endian)
            .finish_non_exhaustive()
    }
}

impl Header {
    /// Checks what has to hold before the rest of the file is looked at. The error names the field and its value.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let first: [u8; 4] = bytes
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .ok_or("the file is empty or ends inside the header")?;
        let big_endian = match (i32::from_le_bytes(first), i32::from_be_bytes(first)) {
            (348, _) => false,
            (_, 348) => true,
            (540, _) | (_, 540) => return Err(
                "it is NIfTI-2, only NIfTI-1 can be read (convert it, for example with nibabel)"
                    .into(),
            ),
            (other, _) => return Err(format!("sizeof_hdr is {other}, a NIfTI-1 header has 348")),
        };
        let bytes: [u8; LENGTH] = bytes
            .get(..LENGTH)
            .and_then(|b| b.try_into().ok())
            .ok_or("the file ends inside the header")?;
        let header = Self { bytes, big_endian };
        match &header.bytes[MAGIC..MAGIC + 4] {
            b"n+1\0" => {}
            b"ni1\0" => {
                return Err(
                    "it is the header of a .hdr/.img pair, only single .nii files can be read"
                        .into(),
                )
            }
            other => {
                return Err(format!(
                    "its magic is {:?}, expected \"n+1\"",
                    String::from_utf8_lossy(other)
                ))
            }
        }
        let dims = header.i16(DIM);
        if !(1..=7).contains(&dims) {
            return Err(format!("dim[0] is {dims}, expected 1 to 7"));
        }
        for axis in 1..=dims as usize {
            let size = header.i16(DIM + 2 * axis);
            if size < 1 {
                return Err(format!("dim[{axis}] is {size}, expected at least 1"));
            }
        }
        header.voxel_type()?;
        let offset = header.f32(VOX_OFFSET);
        // 0 is written by some tools and means "right after the header".
        if offset != 0.0 && !(LENGTH as f32..=1e9).contains(&offset) {
            return Err(format!("vox_offset is {offset}, expected at least 352"));
        }
        Ok(header)
    }

    /// A header for an array that came without one, from its geometry; `spacing` in array order.
    pub(super) fn from_geometry(geometry: &Geometry) -> Self {
        let mut header = Self {
            bytes: [0; LENGTH],
            big_endian: false,
        };
        header.bytes[..4].copy_from_slice(&348i32.to_le_bytes());
        header.bytes[MAGIC..].copy_from_slice(b"n+1\0");
        header.bytes[XYZT_UNITS] = 2; // millimetres
        let dims = geometry.spacing.len();
        header.put_f32(PIXDIM, 1.0);
        let spacing: Vec<f64> = geometry.spacing.iter().rev().copied().collect();
        for axis in 0..7 {
            header.put_f32(
                PIXDIM + 4 * (axis + 1),
                spacing.get(axis).map_or(1.0, |&s| s as f32),
            );
        }
        header.put_i16(SFORM_CODE, 1);
        for row in 0..3 {
            // LPS -> RAS
            let sign = if row < 2 { -1.0 } else { 1.0 };
            for (column, length) in spacing.iter().chain(&[1.0; 3]).take(3).enumerate() {
                let value = if row < dims && column < dims {
                    sign * geometry.direction[row * dims + column] * length
                } else {
                    f64::from(u8::from(row == column))
                };
                header.put_f32(SROW + 16 * row + 4 * column, value as f32);
            }
            let origin = geometry.origin.get(row).map_or(0.0, |o| sign * o);
            header.put_f32(SROW + 16 * row + 12, origin as f32);
        }
        header
    }

    /// This header for a label map: size, voxel type and what depends on them change, geometry and units stay.
    pub(super) fn for_labels(&self, size: &[usize], wide: bool) -> Self {
        let mut header = self.clone();
        for i in 0..8 {
            let value = if i == 0 {
                size.len()
            } else {
                size.iter().rev().nth(i - 1).copied().unwrap_or(1)
            };
            header.put_i16(DIM + 2 * i, value as i16);
        }
        header.put_i16(DATATYPE, if wide { 4 } else { 2 });
        header.put_i16(BITPIX, if wide { 16 } else { 8 });
        header.put_i16(INTENT_CODE, 0);
        header.put_f32(VOX_OFFSET, VOXELS_AT as f32);
        header.put_f32(SCL_SLOPE, 1.0);
        header.put_f32(SCL_INTER, 0.0);
        header.put_f32(CAL_MAX, 0.0);
        header.put_f32(CAL_MIN, 0.0);
        header
    }

    /// The header as it is, or will be, on disk.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn big_endian(&self) -> bool {
        self.big_endian
    }

    pub(super) fn voxel_type(&self) -> Result<(VoxelType, usize), String> {
        let code = self.i16(DATATYPE);
        VOXEL_TYPES
            .iter()
            .find(|t| t.0 == code)
            .map(|t| (t.1, t.2))
            .ok_or_else(|| {
                format!(
                    "datatype is {code}, which is not one of the real-valued types {:?}",
                    VOXEL_TYPES.iter().map(|t| t.0).collect::<Vec<_>>()
                )
            })
    }

    /// First byte of the voxels.
    pub(super) fn voxels_at(&self) -> usize {
        (self.f32(VOX_OFFSET) as usize).max(VOXELS_AT)
    }

    /// Slope and intercept, when there is a scaling.
    pub(super) fn scaling(&self) -> Option<(f64, f64)> {
        let (slope, inter) = (
            f64::from(self.f32(SCL_SLOPE)),
            f64::from(self.f32(SCL_INTER)),
        );
        let inter = if inter.is_finite() { inter } else { 0.0 };
        let scales = slope.is_finite() && slope != 0.0 && (slope, inter) != (1.0, 0.0);
        scales.then_some((slope, inter))
    }

    /// Size in array order, without trailing axes of size 1 beyond the third.
    pub(super) fn size(&self) -> Vec<usize> {
        let mut size: Vec<usize> = (1..=self.i16(DIM).clamp(0, 7) as usize)
            .map(|a| self.i16(DIM + 2 * a).max(0) as usize)
            .collect();
        while size.len() > 3 && size.last() == Some(&1) {
            size.pop();
        }
        size.reverse();
        size
    }

    /// Geometry of the first `dims` (2 or 3) axes, as SimpleITK reads it.
    pub(super) fn geometry(&self, dims: usize) -> Result<Geometry, String> {
        let pixdim: Vec<f64> = (1..=3)
            .map(|axis| f64::from(self.f32(PIXDIM + 4 * axis)).abs())
            .map(|s| if s > 0.0 && s.is_finite() { s } else { 1.0 })
            .collect();
        let (sform, qform) = (self.i16(SFORM_CODE), self.i16(QFORM_CODE));
        let frame = match (sform > 0, qform > 0) {
            (true, true) if sform != 1 => Some(self.qform_frame()),
            (true, has_qform) => match self.sform_frame() {
                Ok(frame) => Some(frame),
                Err(_) if has_qform => Some(self.qform_frame()),
                Err(problem) => return Err(problem),
            },
            (false, true) => Some(self.qform_frame()),
            (false, false) => None,
        };
        let mut geometry = Geometry::unit(dims);
        geometry.spacing = pixdim[..dims].iter().rev().copied().collect();
        if let Some(Frame {
            columns,
            origin,
            lengths,
        }) = frame
        {
            for row in 0..dims {
                let sign = if row < 2 { -1.0 } else { 1.0 };
                for (column, vector) in columns.iter().enumerate().take(dims) {
                    geometry.direction[row * dims + column] = sign * vector[row];
                }
                geometry.origin[row] = sign * origin[row];
            }
            if let Some(lengths) = lengths {
                for axis in 0..dims {
                    // Both are float32 of the same number, unless the file contradicts itself: then the affine, which places voxels, counts.
                    if (lengths[axis] / pixdim[axis] - 1.0).abs() > 1e-3 {
                        geometry.spacing[dims - 1 - axis] = lengths[axis];
                    }
                }
            }
        }
        if geometry
            .origin
            .iter()
            .chain(&geometry.direction)
            .any(|v| !v.is_finite())
        {
            return Err("its qform or sform holds NaN or infinity".into());
        }
        geometry.source = SourceHeader::Nifti(Box::new(self.clone()));
        Ok(geometry)
    }

    fn sform_frame(&self) -> Result<Frame, String> {
        let at = |row: usize, column: usize| f64::from(self.f32(SROW + 16 * row + 4 * column));
        let mut columns = [[0.0; 3]; 3];
        let mut lengths = [0.0; 3];
        for column in 0..3 {
            let length = (0..3)
                .map(|row| at(row, column).powi(2))
                .sum::<f64>()
                .sqrt();
            if !(length.is_finite() && length > 0.0) {
                return Err(format!("column {column} of its sform has length {length}"));
            }
            lengths[column] = length;
            columns[column] = [0, 1, 2].map(|row| at(row, column) / length);
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let cosine: f64 = (0..3).map(|row| columns[a][row] * columns[b][row]).sum();
            if cosine.abs() > LARGEST_SHEAR {
                return Err(format!("its sform is sheared (cosine {cosine:.4} between axes {a} and {b}); resample it to a grid with right angles"));
            }
        }
        Ok(Frame {
            columns,
            origin: [0, 1, 2].map(|row| at(row, 3)),
            lengths: Some(lengths),
        })
    }

    fn qform_frame(&self) -> Frame {
        let [b, c, d] = [0, 1, 2].map(|i| f64::from(self.f32(QUATERN + 4 * i)));
        let rest = 1.0 - (b * b + c * c + d * d);
        // A half turn has a = 0, and rounding may leave the rest a little below zero.
        let (a, b, c, d) = if rest < 1e-7 {
            let scale = 1.0 / (b * b + c * c + d * d).sqrt();
            (0.0, b * scale, c * scale, d * scale)
        } else {
            (rest.sqrt(), b, c, d)
        };
        let flip = if self.f32(PIXDIM) < 0.0 { -1.0 } else { 1.0 };
        let columns = [
            [
                a * a + b * b - c * c - d * d,
                2.0 * (b * c + a * d),
                2.0 * (b * d - a * c),
            ],
            [
                2.0 * (b * c - a * d),
                a * a + c * c - b * b - d * d,
                2.0 * (c * d + a * b),
            ],
            [
                2.0 * (b * d + a * c),
                2.0 * (c * d - a * b),
                a * a + d * d - b * b - c * c,
            ]
            .map(|v| flip * v),
        ];
        Frame {
            columns,
            origin: [0, 1, 2].map(|i| f64::from(self.f32(QOFFSET + 4 * i))),
            lengths: None,
        }
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.bytes[at..at + N]);
        if self.big_endian {
            bytes.reverse();
        }
        bytes
    }

    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.array(at))
    }

    fn f32(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.array(at))
    }

    fn put<const N: usize>(&mut self, at: usize, mut little_endian: [u8; N]) {
        if self.big_endian {
            little_endian.reverse();
        }
        self.bytes[at..at + N].copy_from_slice(&little_endian);
    }

    fn put_i16(&mut self, at: usize, value: i16) {
        self.put(at, value.to_le_bytes());
    }

    fn put_f32(&mut self, at: usize, value: f32) {
        self.put(at, value.to_le_bytes());
    }
}

/// Axes and origin in NIfTI's own frame (right-anterior-superior).
struct Frame {
    /// Unit vector of each voxel axis x, y, z.
    columns: [[f64; 3]; 3],
    origin: [f64; 3],
    /// Voxel sizes, where the form carries them.
    lengths: Option<[f64; 3]>,
}
