//! Arrays out of safetensors files.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{ArrayD, Dimension};
use safetensors::{Dtype, SafeTensors};

use crate::checks::{Fallible, Worst};

/// All arrays of a file, as float64, by name.
pub struct Arrays(BTreeMap<String, ArrayD<f64>>, BTreeMap<String, String>);

impl Arrays {
    pub fn read(path: &Path) -> Fallible<Self> {
        let bytes = std::fs::read(path)?;
        let file = SafeTensors::deserialize(&bytes)?;
        let mut arrays = BTreeMap::new();
        for (name, tensor) in file.tensors() {
            let data = tensor.data();
            let values = match tensor.dtype() {
                Dtype::BOOL | Dtype::U8 => data.iter().map(|&b| b.into()).collect(),
                Dtype::I8 => data.iter().map(|&b| f64::from(b as i8)).collect(),
                Dtype::I16 => each(data, |b| i16::from_le_bytes(b).into()),
                Dtype::U16 => each(data, |b| u16::from_le_bytes(b).into()),
                Dtype::I32 => each(data, |b| i32::from_le_bytes(b).into()),
                Dtype::I64 => each(data, |b| i64::from_le_bytes(b) as f64),
                Dtype::F16 => each(data, |b| half(u16::from_le_bytes(b))),
                Dtype::F32 => each(data, |b| f32::from_le_bytes(b).into()),
                Dtype::F64 => each(data, f64::from_le_bytes),
                other => return Err(format!("{name} is of type {other:?}").into()),
            };
            arrays.insert(name, ArrayD::from_shape_vec(tensor.shape(), values)?);
        }
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self(arrays, metadata.into_iter().collect()))
    }

    /// A text stored with the arrays.
    pub fn metadata(&self, key: &str) -> Fallible<&str> {
        let text = self.1.get(key).map(String::as_str);
        text.ok_or_else(|| format!("there is no metadata {key}").into())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn find(&self, name: &str) -> Option<&ArrayD<f64>> {
        self.0.get(name)
    }

    pub fn get(&self, name: &str) -> Fallible<&ArrayD<f64>> {
        self.find(name)
            .ok_or_else(|| format!("there is no array {name}").into())
    }

    /// An array of a given number of axes and type.
    pub fn of<T, D: Dimension>(&self, name: &str) -> Fallible<ndarray::Array<T, D>>
    where
        T: FromF64,
    {
        Ok(self
            .get(name)?
            .mapv(T::from_f64)
            .into_dimensionality::<D>()?)
    }
}

/// Numbers that float64 holds.
pub trait FromF64 {
    fn from_f64(v: f64) -> Self;
}

impl FromF64 for f32 {
    fn from_f64(v: f64) -> Self {
        v as f32
    }
}

impl FromF64 for i16 {
    fn from_f64(v: f64) -> Self {
        v as i16
    }
}

fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes
        .chunks_exact(N)
        .map(|b| value(b.try_into().unwrap()))
        .collect()
}

/// IEEE half precision.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    sign * match exponent {
        0 => mantissa * 2f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1.0 + mantissa / 1024.0) * 2f64.powi(e - 15),
    }
}

/// Compares every value of two arrays of one shape.
pub fn compare<T, D: Dimension>(
    worst: &mut Worst,
    name: &str,
    ours: &ndarray::Array<T, D>,
    theirs: &ArrayD<f64>,
    tolerance: f64,
) where
    T: Copy + Into<f64>,
{
    if ours.shape() != theirs.shape() {
        worst.same(name, &ours.shape().to_vec(), &theirs.shape().to_vec());
        return;
    }
    for (&a, (at, &b)) in ours.iter().zip(theirs.indexed_iter()) {
        let (a, b): (f64, f64) = (a.into(), b);
        // naming each value is slow: only those that matter
        match (a - b).abs() <= tolerance {
            true => worst.close((a - b).abs(), name),
            false => worst.number(&format!("{name}{:?}", at.slice()), a, b, tolerance),
        }
    }
}
