//! Types of stored voxels and their way to and from bytes, shared by the formats that keep voxels as a plain run of numbers.

/// How one voxel is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

impl Element {
    /// Bytes a voxel takes.
    pub(super) fn width(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The narrowest type that holds these class numbers.
    pub(super) fn of_labels<'a>(labels: impl IntoIterator<Item = &'a i16>) -> Self {
        match labels.into_iter().any(|&v| v > 255) {
            true => Self::I16,
            false => Self::U8,
        }
    }
}

/// Bytes to numbers, `slope` times the stored number plus `intercept`. Bytes beyond the last whole voxel are left out.
///
/// The product is taken in float64 of the number in float32, as ITK does, except where float64 is stored.
pub(super) fn decode(
    bytes: &[u8],
    element: Element,
    big_endian: bool,
    scaling: Option<(f64, f64)>,
) -> Vec<f32> {
    if let (Element::F64, Some((slope, intercept))) = (element, scaling) {
        let scaled = |b| (f64::from_le_bytes(b) * slope + intercept) as f32;
        return each(bytes, big_endian, scaled);
    }
    let mut values = match element {
        Element::U8 => each(bytes, false, |[b]: [u8; 1]| f32::from(b)),
        Element::I8 => each(bytes, false, |[b]: [u8; 1]| f32::from(b as i8)),
        Element::I16 => each(bytes, big_endian, |b| f32::from(i16::from_le_bytes(b))),
        Element::U16 => each(bytes, big_endian, |b| f32::from(u16::from_le_bytes(b))),
        Element::I32 => each(bytes, big_endian, |b| i32::from_le_bytes(b) as f32),
        Element::U32 => each(bytes, big_endian, |b| u32::from_le_bytes(b) as f32),
        Element::I64 => each(bytes, big_endian, |b| i64::from_le_bytes(b) as f32),
        Element::U64 => each(bytes, big_endian, |b| u64::from_le_bytes(b) as f32),
        Element::F16 => each(bytes, big_endian, |b| half::f16::from_le_bytes(b).to_f32()),
        Element::F32 => each(bytes, big_endian, f32::from_le_bytes),
        Element::F64 => each(bytes, big_endian, |b| f64::from_le_bytes(b) as f32),
    };
    if let Some((slope, intercept)) = scaling {
        for value in &mut values {
            *value = (f64::from(*value) * slope + intercept) as f32;
        }
    }
    values
}

/// The class number that a number is, if it is one: whole, from 0 to the largest of `i16`.
fn label_of(value: f32) -> Option<i16> {
    let is_label = (value as i32) as f32 == value && (0.0..=f32::from(i16::MAX)).contains(&value);
    is_label.then_some(value as i32 as i16)
}

/// Bytes to class numbers, or the first number that is none, as [`decode`] and [`label_of`] have it.
pub(super) fn decode_labels(
    bytes: &[u8],
    element: Element,
    big_endian: bool,
) -> Result<Vec<i16>, f32> {
    // whether all fit is known from a sign bit that any of them sets, without a branch inside
    let mut signs = 0i16;
    let mut seen = |v: i16| {
        signs |= v;
        v
    };
    let labels = match element {
        Element::U8 => Some(each(bytes, false, |[b]: [u8; 1]| i16::from(b))),
        Element::I8 => Some(each(bytes, false, |[b]: [u8; 1]| seen(i16::from(b as i8)))),
        // of U16, what is beyond i16 is negative in it
        Element::U16 | Element::I16 => {
            Some(each(bytes, big_endian, |b| seen(i16::from_le_bytes(b))))
        }
        _ => None,
    };
    match labels.filter(|_| signs >= 0) {
        Some(labels) => Ok(labels),
        None => labels_of(&decode(bytes, element, big_endian, None)),
    }
}

/// Class numbers of float32, or the first number that is none.
pub(super) fn labels_of(values: &[f32]) -> Result<Vec<i16>, f32> {
    let mut whole = true;
    // without a branch inside, so that voxels are looked at many at a time
    let labels = values.iter().map(|&v| {
        whole &= label_of(v).is_some();
        v as i32 as i16
    });
    let labels = labels.collect();
    match values.iter().find(|v| !whole && label_of(**v).is_none()) {
        Some(&wrong) => Err(wrong),
        None => Ok(labels),
    }
}

fn each<const N: usize, T>(
    bytes: &[u8],
    big_endian: bool,
    mut value: impl FnMut([u8; N]) -> T,
) -> Vec<T> {
    let ordered = bytes.chunks_exact(N).map(|stored| {
        let mut voxel = [0; N];
        voxel.copy_from_slice(stored);
        if big_endian {
            voxel.reverse();
        }
        value(voxel)
    });
    ordered.collect()
}

/// Class numbers to bytes of [`Element::of_labels`]'s types.
pub(super) fn encode_labels<'a>(
    labels: impl IntoIterator<Item = &'a i16>,
    element: Element,
    big_endian: bool,
) -> Vec<u8> {
    let labels = labels.into_iter();
    match (element, big_endian) {
        (Element::U8 | Element::I8, _) => labels.map(|&v| v as u8).collect(),
        (_, false) => labels.flat_map(|v| v.to_le_bytes()).collect(),
        (_, true) => labels.flat_map(|v| v.to_be_bytes()).collect(),
    }
}

/// Numbers to bytes of [`Element::F32`].
pub(super) fn encode_values<'a>(
    values: impl IntoIterator<Item = &'a f32>,
    big_endian: bool,
) -> Vec<u8> {
    let values = values.into_iter();
    match big_endian {
        false => values.flat_map(|v| v.to_le_bytes()).collect(),
        true => values.flat_map(|v| v.to_be_bytes()).collect(),
    }
}
