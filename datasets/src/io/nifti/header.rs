//! The header of a NIfTI file, 348 bytes of NIfTI-1 or 540 of NIfTI-2, kept verbatim so that a label map can repeat the source's geometry
//! bit by bit.
//!
//! Geometry follows SimpleITK, because nnU-Net reads through it: world axes are left-posterior-superior (NIfTI's x and y negated); the sform
//! counts when its code is 1 or when there is no qform, otherwise the qform; with neither, direction is the identity and origin zero. Voxel
//! sizes are `pixdim`'s, whatever lengths an sform has.

use crate::io::element::Element;
use crate::{Geometry, SourceHeader};

/// Where the fields are. The integers of NIfTI-2 are wider and its reals are float64, its order is another, its meaning the same.
struct Fields {
    /// Length of the header on disk, which is also its first number.
    length: usize,
    /// Position and bytes of the magic of a single file.
    magic: (usize, &'static [u8]),
    dim: usize,
    intent_code: usize,
    datatype: usize,
    bitpix: usize,
    pixdim: usize,
    vox_offset: usize,
    /// Slope, then intercept.
    scl_slope: usize,
    /// Largest and smallest value for display.
    cal: usize,
    xyzt_units: usize,
    qform_code: usize,
    sform_code: usize,
    /// Three numbers, and the three of the offset.
    quatern: usize,
    srow: usize,
    wide: bool,
}

const NIFTI_1: Fields = Fields {
    length: 348,
    magic: (344, b"n+1\0"),
    dim: 40,
    intent_code: 68,
    datatype: 70,
    bitpix: 72,
    pixdim: 76,
    vox_offset: 108,
    scl_slope: 112,
    cal: 124,
    xyzt_units: 123,
    qform_code: 252,
    sform_code: 254,
    quatern: 256,
    srow: 280,
    wide: false,
};

const NIFTI_2: Fields = Fields {
    length: 540,
    magic: (4, b"n+2\0\r\n\x1a\n"),
    dim: 16,
    intent_code: 504,
    datatype: 12,
    bitpix: 14,
    pixdim: 104,
    vox_offset: 168,
    scl_slope: 176,
    cal: 192,
    xyzt_units: 500,
    qform_code: 344,
    sform_code: 348,
    quatern: 352,
    srow: 400,
    wide: true,
};

/// Columns of an affine may differ from orthogonal by this much (cosine), which float32 rounding stays far below.
const LARGEST_SHEAR: f64 = 1e-3;

/// Voxel types that can be read: NIfTI's code, the numbers, how many of them a voxel has.
const VOXEL_TYPES: &[(i16, Element, usize)] = &[
    (2, Element::U8, 1),
    (4, Element::I16, 1),
    (8, Element::I32, 1),
    (16, Element::F32, 1),
    (64, Element::F64, 1),
    (128, Element::U8, 3),
    (256, Element::I8, 1),
    (512, Element::U16, 1),
    (768, Element::U32, 1),
    (1024, Element::I64, 1),
    (1280, Element::U64, 1),
    (2304, Element::U8, 4),
];

/// Types that are no real numbers of at most 64 bits, by name.
const OTHER_TYPES: &[(i16, &str)] = &[
    (0, "unknown"),
    (1, "binary"),
    (32, "complex64"),
    (1536, "float128"),
    (1792, "complex128"),
    (2048, "complex256"),
];

/// A NIfTI header as it was in the file.
#[derive(Clone, PartialEq)]
pub struct Header {
    /// 348 or 540.
    bytes: Vec<u8>,
    big_endian: bool,
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header")
            .field("length", &self.bytes.len())
            .field("size", &self.size())
            .field("big_endian", &self.big_endian)
            .finish_non_exhaustive()
    }
}

impl Header {
    /// Bytes of the header that begins with these four, and whether they are in big-endian order.
    pub(super) fn length(first: &[u8]) -> Result<(usize, bool), String> {
        let first: [u8; 4] = first
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .ok_or("the file is empty or ends inside the header")?;
        for (value, big_endian) in [
            (i32::from_le_bytes(first), false),
            (i32::from_be_bytes(first), true),
        ] {
            if value == 348 || value == 540 {
                return Ok((value as usize, big_endian));
            }
        }
        Err(format!(
            "sizeof_hdr is {}, a NIfTI-1 header has 348 and a NIfTI-2 header 540",
            i32::from_le_bytes(first)
        ))
    }

    /// Checks what has to hold before the rest of the file is looked at. The error names the field and its value.
    /// `pair`: the voxels are in another file.
    pub(super) fn parse(bytes: &[u8], pair: bool) -> Result<Self, String> {
        let (length, big_endian) = Self::length(bytes)?;
        let bytes = bytes
            .get(..length)
            .ok_or("the file ends inside the header")?
            .to_vec();
        let header = Self { bytes, big_endian };
        let fields = header.fields();
        let (at, magic) = fields.magic;
        let found = &header.bytes[at..at + magic.len()];
        if header.is_pair() && !pair {
            return Err("it is the header of a pair, whose name ends in .hdr".into());
        }
        let mut expected = magic.to_vec();
        if pair {
            expected[1] = b'i';
        }
        if found != expected {
            return Err(format!(
                "its magic is {:?}, expected {:?}; convert files of Analyze 7.5, which have none",
                String::from_utf8_lossy(found),
                String::from_utf8_lossy(&expected)
            ));
        }
        let dims = header.dim(0);
        if !(1..=7).contains(&dims) {
            return Err(format!("dim[0] is {dims}, expected 1 to 7"));
        }
        for axis in 1..=dims as usize {
            let size = header.dim(axis);
            if !(1..=i64::from(u32::MAX)).contains(&size) {
                return Err(format!("dim[{axis}] is {size}, expected at least 1"));
            }
        }
        header.voxel_type()?;
        let offset = header.offset();
        // 0 is written by some tools and means "right after the header".
        let least = if pair { 0 } else { length };
        if offset != 0.0 && !(least as f64..=1e9).contains(&offset) {
            return Err(format!("vox_offset is {offset}, expected at least {least}"));
        }
        Ok(header)
    }

    /// A header for an array of this size that came without one, from its geometry: NIfTI-1, or NIfTI-2 where an axis is too long for it.
    pub(super) fn from_geometry(geometry: &Geometry, size: &[usize]) -> Self {
        let fields = match size.iter().any(|&s| s > i16::MAX as usize) {
            true => &NIFTI_2,
            false => &NIFTI_1,
        };
        let mut header = Self {
            bytes: vec![0; fields.length],
            big_endian: false,
        };
        header.put(0, &(fields.length as i32).to_le_bytes());
        header.put(fields.magic.0, fields.magic.1);
        header.bytes[fields.xyzt_units] = 2; // millimetres
        header.put_real(fields.pixdim, 0, 1.0);
        for axis in 0..7 {
            let spacing = geometry.spacing.iter().rev().nth(axis);
            header.put_real(fields.pixdim, axis + 1, spacing.copied().unwrap_or(1.0));
        }
        header.put_code(fields.sform_code, 1);
        let steps = geometry.steps();
        for row in 0..3 {
            // LPS -> RAS
            let sign = if row < 2 { -1.0 } else { 1.0 };
            for column in 0..3 {
                let step = steps.get(column).and_then(|step| step.get(row));
                let value = step.map_or(f64::from(u8::from(row == column)), |v| sign * v);
                header.put_real(fields.srow, 4 * row + column, value);
            }
            let origin = geometry.origin.get(row).map_or(0.0, |o| sign * o);
            header.put_real(fields.srow, 4 * row + 3, origin);
        }
        header
    }

    /// This header for other voxels on the same grid: size, voxel type and what depends on them change, geometry and units stay. `size` is
    /// in array order, with the channels in front if there are several.
    pub(super) fn with_voxels(&self, size: &[usize], element: Element) -> Self {
        let mut header = self.clone();
        let fields = self.fields();
        for i in 0..8 {
            let value = match i {
                0 => size.len(),
                _ => size.iter().rev().nth(i - 1).copied().unwrap_or(1),
            };
            header.put_dim(i, value as i64);
        }
        let code = VOXEL_TYPES
            .iter()
            .find(|t| (t.1, t.2) == (element, 1))
            .map_or(16, |t| t.0);
        header.put(fields.datatype, &code.to_le_bytes());
        header.put(fields.bitpix, &(8 * element.width() as i16).to_le_bytes());
        header.put_code(fields.intent_code, 0);
        // Whatever the source was, what is written is a single file.
        let (at, magic) = fields.magic;
        header.bytes[at..at + magic.len()].copy_from_slice(magic);
        let begin = self.begin();
        match fields.wide {
            true => header.put(fields.vox_offset, &(begin as i64).to_le_bytes()),
            false => header.put(fields.vox_offset, &(begin as f32).to_le_bytes()),
        }
        header.put_real(fields.scl_slope, 0, 1.0);
        header.put_real(fields.scl_slope, 1, 0.0);
        header.put_real(fields.cal, 0, 0.0);
        header.put_real(fields.cal, 1, 0.0);
        header
    }

    /// Whether sizes as large as these can be written into it.
    pub(super) fn holds(&self, size: &[usize]) -> bool {
        self.fields().wide || size.iter().all(|&s| s <= i16::MAX as usize)
    }

    /// The header as it is, or will be, on disk.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn big_endian(&self) -> bool {
        self.big_endian
    }

    /// Type of the numbers and how many of them make a voxel.
    pub(super) fn voxel_type(&self) -> Result<(Element, usize), String> {
        let code = self.i16(self.fields().datatype);
        let known = VOXEL_TYPES.iter().find(|t| t.0 == code);
        known.map(|t| (t.1, t.2)).ok_or_else(|| {
            let name = OTHER_TYPES.iter().find(|t| t.0 == code);
            let name = name.map_or(String::new(), |t| format!(" ({})", t.1));
            let codes: Vec<i16> = VOXEL_TYPES.iter().map(|t| t.0).collect();
            format!("datatype is {code}{name}, which is not one of the real-valued types {codes:?}; convert it to float32")
        })
    }

    /// Where the voxels begin in a file without extensions.
    pub(super) fn begin(&self) -> usize {
        self.bytes.len() + 4
    }

    /// Whether the voxels are in another file.
    fn is_pair(&self) -> bool {
        let at = self.fields().magic.0;
        matches!(self.bytes[at..at + 3], [b'n', b'i', b'1' | b'2'])
    }

    /// First byte of the voxels in their file.
    pub(super) fn voxels_at(&self) -> usize {
        let least = if self.is_pair() { 0 } else { self.begin() };
        (self.offset() as usize).max(least)
    }

    fn offset(&self) -> f64 {
        let at = self.fields().vox_offset;
        match self.fields().wide {
            true => i64::from_le_bytes(self.array(at)) as f64,
            false => f32::from_le_bytes(self.array(at)).into(),
        }
    }

    /// Slope and intercept, when there is a scaling. As ITK has it, a slope that is no slope counts as 1.
    pub(super) fn scaling(&self) -> Option<(f64, f64)> {
        let [slope, intercept] = [0, 1].map(|i| self.real(self.fields().scl_slope, i));
        let slope = match slope.is_finite() && slope.abs() > f64::EPSILON {
            true => slope,
            false => 1.0,
        };
        let intercept = if intercept.is_finite() {
            intercept
        } else {
            0.0
        };
        Some((slope, intercept)).filter(|scaling| *scaling != (1.0, 0.0))
    }

    /// Size in array order, without trailing axes of size 1 beyond the third.
    pub(super) fn size(&self) -> Vec<usize> {
        let mut size: Vec<usize> = (1..=self.dim(0).clamp(0, 7) as usize)
            .map(|axis| self.dim(axis).max(0) as usize)
            .collect();
        while size.len() > 3 && size.last() == Some(&1) {
            size.pop();
        }
        size.reverse();
        size
    }

    /// Geometry of the first `dims` (2 or 3) axes, as SimpleITK reads it.
    pub(super) fn geometry(&self, dims: usize) -> Result<Geometry, String> {
        let fields = self.fields();
        let (sform, qform) = (self.code(fields.sform_code), self.code(fields.qform_code));
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
        let millimetres = match self.bytes[fields.xyzt_units + self.low_byte()] & 7 {
            1 => 1000.0,
            3 => 0.001,
            _ => 1.0,
        };
        let mut geometry = Geometry::unit(dims);
        if let Some(frame) = &frame {
            for row in 0..dims {
                let sign = if row < 2 { -1.0 } else { 1.0 };
                for (column, vector) in frame.columns.iter().enumerate().take(dims) {
                    geometry.direction[row * dims + column] = sign * vector[row];
                }
                geometry.origin[row] = sign * frame.origin[row] * millimetres;
            }
        }
        for axis in 0..dims {
            let stored = self.real(fields.pixdim, axis + 1);
            let spacing = match stored.is_finite() && stored != 0.0 {
                true => stored.abs(),
                false => frame.as_ref().map_or(1.0, |f| f.lengths[axis]),
            };
            geometry.spacing[dims - 1 - axis] = spacing * millimetres;
            if stored < 0.0 {
                for row in 0..dims {
                    geometry.direction[row * dims + axis] *= -1.0;
                }
            }
        }
        let mut geometry = Geometry::new(geometry.spacing, geometry.origin, geometry.direction)?;
        geometry.source = SourceHeader::Nifti(Box::new(self.clone()));
        Ok(geometry)
    }

    fn sform_frame(&self) -> Result<Frame, String> {
        let at = |row: usize, column: usize| self.real(self.fields().srow, 4 * row + column);
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
            lengths,
        })
    }

    fn qform_frame(&self) -> Frame {
        let [b, c, d] = [0, 1, 2].map(|i| self.real(self.fields().quatern, i));
        let rest = 1.0 - (b * b + c * c + d * d);
        // A half turn has a = 0, and rounding may leave the rest a little below zero.
        let (a, b, c, d) = if rest < 1e-7 {
            let scale = 1.0 / (b * b + c * c + d * d).sqrt();
            (0.0, b * scale, c * scale, d * scale)
        } else {
            (rest.sqrt(), b, c, d)
        };
        let flip = if self.real(self.fields().pixdim, 0) < 0.0 {
            -1.0
        } else {
            1.0
        };
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
            origin: [0, 1, 2].map(|i| self.real(self.fields().quatern, 3 + i)),
            lengths: [1.0; 3],
        }
    }

    fn fields(&self) -> &'static Fields {
        match self.bytes.len() == NIFTI_2.length {
            true => &NIFTI_2,
            false => &NIFTI_1,
        }
    }

    /// Position of the lowest byte of the units, which are one byte in NIfTI-1 and an int32 in NIfTI-2.
    fn low_byte(&self) -> usize {
        match self.fields().wide && self.big_endian {
            true => 3,
            false => 0,
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

    fn dim(&self, index: usize) -> i64 {
        let at = self.fields().dim;
        match self.fields().wide {
            true => i64::from_le_bytes(self.array(at + 8 * index)),
            false => self.i16(at + 2 * index).into(),
        }
    }

    fn code(&self, at: usize) -> i32 {
        match self.fields().wide {
            true => i32::from_le_bytes(self.array(at)),
            false => self.i16(at).into(),
        }
    }

    /// The real number at a place of a row of them.
    fn real(&self, row: usize, index: usize) -> f64 {
        match self.fields().wide {
            true => f64::from_le_bytes(self.array(row + 8 * index)),
            false => f32::from_le_bytes(self.array(row + 4 * index)).into(),
        }
    }

    /// Overwrites bytes given in little-endian order.
    fn put(&mut self, at: usize, little_endian: &[u8]) {
        let place = &mut self.bytes[at..at + little_endian.len()];
        place.copy_from_slice(little_endian);
        if self.big_endian {
            place.reverse();
        }
    }

    fn put_dim(&mut self, index: usize, value: i64) {
        let at = self.fields().dim;
        match self.fields().wide {
            true => self.put(at + 8 * index, &value.to_le_bytes()),
            false => self.put(at + 2 * index, &(value as i16).to_le_bytes()),
        }
    }

    fn put_code(&mut self, at: usize, value: i32) {
        match self.fields().wide {
            true => self.put(at, &value.to_le_bytes()),
            false => self.put(at, &(value as i16).to_le_bytes()),
        }
    }

    fn put_real(&mut self, row: usize, index: usize, value: f64) {
        match self.fields().wide {
            true => self.put(row + 8 * index, &value.to_le_bytes()),
            false => self.put(row + 4 * index, &(value as f32).to_le_bytes()),
        }
    }
}

/// Axes and origin in NIfTI's own frame (right-anterior-superior).
struct Frame {
    /// Unit vector of each voxel axis x, y, z.
    columns: [[f64; 3]; 3],
    origin: [f64; 3],
    /// Voxel sizes, for where `pixdim` has none.
    lengths: [f64; 3],
}
