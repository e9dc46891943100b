//! Voxels as a file has them, on their way to float32 or to class numbers.
//!
//! A label map of bytes never becomes float32: that costs four times its memory, and most of the time that reading takes.

use ndarray::{ArrayD, Axis, IxDyn};

use super::element::{decode, decode_labels, labels_of, Element};
use super::source::Parsed;
use crate::{Geometry, Image, LabelMap};

/// Numbers of a file in the order in which they lie there.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Numbers {
    /// Bytes that are decoded once it is known into what.
    Raw {
        bytes: Vec<u8>,
        element: Element,
        big_endian: bool,
    },
    /// Numbers that are not as they were stored: scaled, written as text, packed into bits.
    Real(Vec<f32>),
}

impl Numbers {
    /// Numbers in this machine's order of bytes.
    pub(super) fn native(bytes: Vec<u8>, element: Element) -> Self {
        Self::Raw {
            bytes,
            element,
            big_endian: cfg!(target_endian = "big"),
        }
    }

    pub(super) fn real(self) -> Vec<f32> {
        match self {
            Self::Real(values) => values,
            Self::Raw {
                bytes,
                element,
                big_endian,
            } => decode(&bytes, element, big_endian, None),
        }
    }

    /// Class numbers, or the first number that is none.
    fn labels(self) -> Result<Vec<i16>, f32> {
        match self {
            Self::Raw {
                bytes,
                element,
                big_endian,
            } => decode_labels(&bytes, element, big_endian),
            Self::Real(values) => labels_of(&values),
        }
    }

    /// These, then those of the next part of the same image.
    pub(super) fn append(&mut self, next: Self) {
        match (&mut *self, next) {
            (
                Self::Raw { bytes, element, .. },
                Self::Raw {
                    bytes: more,
                    element: same,
                    ..
                },
            ) if *element == same => bytes.extend(more),
            (Self::Real(values), next) => values.extend(next.real()),
            (Self::Raw { .. }, next) => {
                let mut values = std::mem::replace(self, Self::Real(Vec::new())).real();
                values.extend(next.real());
                *self = Self::Real(values);
            }
        }
    }
}

/// An image as a file has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    pub(super) numbers: Numbers,
    /// Slowest axis first.
    pub(super) shape: Vec<usize>,
    /// Which of them counts channels; none where there is one channel.
    pub(super) channel_axis: Option<usize>,
    pub(super) geometry: Geometry,
}

impl Stored {
    fn channels(&self) -> usize {
        self.channel_axis.map_or(1, |axis| self.shape[axis])
    }

    /// As float32, channels first. The error: numbers and shape do not fit.
    pub(super) fn image(self) -> Parsed<Image> {
        let values = self.numbers.real();
        Ok(Image {
            data: channels_first(values, &self.shape, self.channel_axis)?,
            geometry: self.geometry,
        })
    }

    /// As class numbers.
    pub(super) fn labels(self) -> Result<LabelMap, NoLabels> {
        if self.channels() != 1 {
            return Err(NoLabels::Channels(self.channels()));
        }
        let labels = self.numbers.labels().map_err(NoLabels::Value)?;
        let data =
            channels_first(labels, &self.shape, self.channel_axis).map_err(NoLabels::Shape)?;
        Ok(LabelMap {
            data: data.index_axis_move(Axis(0), 0),
            geometry: self.geometry,
        })
    }
}

/// Why an image is no label map.
#[derive(Debug)]
pub(super) enum NoLabels {
    /// It has as many channels.
    Channels(usize),
    /// This number is in it.
    Value(f32),
    /// Numbers and shape do not fit.
    Shape(String),
}

fn channels_first<T: Clone>(
    values: Vec<T>,
    shape: &[usize],
    channel_axis: Option<usize>,
) -> Parsed<ArrayD<T>> {
    let mut data =
        ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|error| error.to_string())?;
    let Some(axis) = channel_axis else {
        data.insert_axis_inplace(Axis(0));
        return Ok(data);
    };
    if shape[axis] == 1 {
        // An axis of one moves without its voxels.
        return Ok(data.index_axis_move(Axis(axis), 0).insert_axis(Axis(0)));
    }
    if axis == 0 {
        return Ok(data);
    }
    let order: Vec<usize> = std::iter::once(axis)
        .chain((0..shape.len()).filter(|a| *a != axis))
        .collect();
    Ok(data
        .permuted_axes(IxDyn(&order))
        .as_standard_layout()
        .into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ELEMENTS: &[Element] = &[
        Element::U8,
        Element::I8,
        Element::U16,
        Element::I16,
        Element::U32,
        Element::I32,
        Element::U64,
        Element::I64,
        Element::F16,
        Element::F32,
        Element::F64,
    ];

    /// The bytes of a whole number that the element can hold.
    fn bytes_of(value: i64, element: Element, big_endian: bool) -> Option<Vec<u8>> {
        let mut bytes = match element {
            Element::U8 => u8::try_from(value).ok()?.to_le_bytes().to_vec(),
            Element::I8 => i8::try_from(value).ok()?.to_le_bytes().to_vec(),
            Element::U16 => u16::try_from(value).ok()?.to_le_bytes().to_vec(),
            Element::I16 => i16::try_from(value).ok()?.to_le_bytes().to_vec(),
            Element::U32 => u32::try_from(value).ok()?.to_le_bytes().to_vec(),
            Element::I32 => i32::try_from(value).ok()?.to_le_bytes().to_vec(),
            Element::U64 => u64::try_from(value).ok()?.to_le_bytes().to_vec(),
            Element::I64 => value.to_le_bytes().to_vec(),
            Element::F16 => half::f16::from_f64(value as f64).to_le_bytes().to_vec(),
            Element::F32 => (value as f32).to_le_bytes().to_vec(),
            Element::F64 => (value as f64).to_le_bytes().to_vec(),
        };
        if big_endian {
            bytes.reverse();
        }
        Some(bytes)
    }

    #[test]
    fn labels_read_straight_are_those_read_through_float32() {
        let groups: [&[i64]; 7] = [
            &[0, 1, 2, 100],
            &[0, 255, 3],
            &[7, 32767, 0],
            &[1, 32768, -1],
            &[1, -2, 65535],
            &[1, 70000, -5],
            &[4, 1 << 32, 1 << 40],
        ];
        let (mut accepted, mut refused) = (0, 0);
        for &element in ELEMENTS {
            for (group, big_endian) in groups.iter().flat_map(|g| [(g, false), (g, true)]) {
                let parts = group.iter().map(|v| bytes_of(*v, element, big_endian));
                let Some(parts) = parts.collect::<Option<Vec<_>>>() else {
                    continue;
                };
                let bytes = parts.concat();
                let through = labels_of(&decode(&bytes, element, big_endian, None));
                let straight = decode_labels(&bytes, element, big_endian);
                assert_eq!(straight, through, "{element:?} {group:?} {big_endian}");
                match straight {
                    Ok(_) => accepted += 1,
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(accepted > 20 && refused > 20, "{accepted} {refused}");
    }

    #[test]
    fn float32_that_is_no_label_is_named() {
        assert_eq!(labels_of(&[0.0, 2.0, 1.0]), Ok(vec![0, 2, 1]));
        assert_eq!(labels_of(&[0.0, 0.5, -1.0]), Err(0.5));
        assert!(labels_of(&[0.0, f32::NAN]).is_err_and(f32::is_nan));
        assert_eq!(labels_of(&[f32::INFINITY]), Err(f32::INFINITY));
    }

    #[test]
    fn channels_move_to_the_front_from_anywhere() {
        let of = |axis| channels_first((0..6).collect::<Vec<i32>>(), &[1, 2, 3], axis).unwrap();
        let shown = |a: ArrayD<i32>| (a.shape().to_vec(), a.iter().copied().collect::<Vec<_>>());
        assert_eq!(shown(of(None)), (vec![1, 1, 2, 3], vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(shown(of(Some(0))), (vec![1, 2, 3], vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(shown(of(Some(1))), (vec![2, 1, 3], vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(shown(of(Some(2))), (vec![3, 1, 2], vec![0, 3, 1, 4, 2, 5]));
        assert!(channels_first(vec![0; 5], &[2, 3], None).is_err());
    }

    #[test]
    fn parts_are_joined() {
        let raw = |bytes: &[u8]| Numbers::native(bytes.to_vec(), Element::U8);
        let mut numbers = raw(&[1, 2]);
        numbers.append(raw(&[3]));
        assert_eq!(numbers, raw(&[1, 2, 3]));
        numbers.append(Numbers::Real(vec![4.5]));
        assert_eq!(numbers, Numbers::Real(vec![1.0, 2.0, 3.0, 4.5]));
    }
}
