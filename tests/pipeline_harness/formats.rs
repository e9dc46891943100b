//! Files of every format against what SimpleITK, nibabel, nnU-Net's readers, h5py and NumPy give.

use std::path::Path;

use ndarray::ArrayD;
use safetensors::SafeTensors;
use serde_json::{Map, Value};
use vision_mamba_datasets::{
    read_image, read_labels, write_image, write_labels, zoom, Geometry, Image, LabelMap, ZoomOrder,
};

use crate::checks::{Checks, Fallible, Worst};

/// Numbers that the file holds in float32 and that the peers normalise in their own ways.
const SINGLE: f64 = 1e-6;
/// Numbers that the file holds in float64.
const DOUBLE: f64 = 1e-12;

/// Everything in the folder that has expected values.
pub fn check(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    if folder.join("expected.json").exists() {
        volumes(folder, checks)?;
    }
    if folder.join("png_expected.safetensors").exists() {
        pictures(folder, checks)?;
    }
    if folder.join("h5_npz_expected.json").exists() {
        arrays(folder, checks)?;
    }
    if folder.join("scipy_zoom.safetensors").exists() {
        zooms(folder, checks)?;
    }
    Ok(())
}

/// `N.in` resized to `N.order0` and `N.order3`; and the lengths at which the last sample of a resized row of ones is 0.
fn zooms(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let bytes = std::fs::read(folder.join("scipy_zoom.safetensors"))?;
    let arrays = SafeTensors::deserialize(&bytes)?;
    for name in arrays.names() {
        let (order, tolerance) = match name.rsplit_once('.') {
            Some((_, "order0")) => (ZoomOrder::Nearest, 0.0),
            // Stored in float32, values up to 255.
            Some((_, "order3")) => (ZoomOrder::Cubic, 3e-5),
            _ => continue,
        };
        checks.run(&format!("scipy_zoom {name}"), || {
            let (number, _) = name.rsplit_once('.').ok_or("no number")?;
            let source = values(&arrays, &format!("{number}.in"))?.mapv(|v| v as f32);
            let expected = values(&arrays, name)?;
            let found = zoom(&source, expected.shape(), order)?;
            let mut worst = Worst::default();
            for ((at, ours), theirs) in found.indexed_iter().zip(&expected) {
                worst.number(&format!("{at:?}"), (*ours).into(), *theirs, tolerance);
            }
            worst.verdict()
        });
    }
    let lists = folder.join("scipy_zoom_last_sample_zero.json");
    if !lists.exists() {
        return Ok(());
    }
    for (name, list) in object(&lists)? {
        let Some((from, to)) = name.split_once("->") else {
            continue;
        };
        checks.run(&format!("scipy_zoom last sample {name}"), || {
            let expected: Vec<usize> = reals(&list)?.into_iter().map(|n| n as usize).collect();
            let mut found = Vec::new();
            for n in 2..=512 {
                let length = |word: &str| word.parse::<usize>().unwrap_or(n);
                let ones = ArrayD::ones(vec![length(from)]);
                let resized = zoom(&ones, &[length(to)], ZoomOrder::Nearest)?;
                if resized.iter().last() == Some(&0.0) {
                    found.push(n);
                }
            }
            let mut worst = Worst::default();
            worst.same("lengths", &found, &expected);
            worst.verdict()
        });
    }
    Ok(())
}

/// `h5_npz_expected.json`: shapes, sums and corners of the arrays `image` and `label` of each file below the folder.
fn arrays(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    for (name, report) in object(&folder.join("h5_npz_expected.json"))? {
        let path = folder.join(&name);
        checks.run(&name, || {
            let image = read_image(&path)?.data.index_axis_move(ndarray::Axis(0), 0);
            let labels = read_labels(&path)?.data.mapv(f32::from);
            let mut worst = Worst::default();
            for (role, array) in [("image", image), ("label", labels)] {
                let expected = &report[role];
                let theirs: Vec<usize> = reals(&expected["shape"])?
                    .into_iter()
                    .map(|s| s as usize)
                    .collect();
                worst.same(&format!("{role} shape"), &array.shape().to_vec(), &theirs);
                let sum: f64 = array.iter().map(|&v| f64::from(v)).sum();
                let total = expected["sum_f64"].as_f64().ok_or("no sum")?;
                worst.number(
                    &format!("{role} sum"),
                    sum,
                    total,
                    1e-9 * total.abs().max(1.0),
                );
                for (key, value) in [
                    ("first", array.iter().next()),
                    ("last", array.iter().last()),
                ] {
                    // Some files come with shape and sum alone.
                    if let Some(theirs) = expected[key].as_f64() {
                        let ours = value.ok_or("empty array")?;
                        worst.number(&format!("{role} {key}"), (*ours).into(), theirs, 0.0);
                    }
                }
            }
            worst.verdict()
        });
    }
    Ok(())
}

fn object(path: &Path) -> Fallible<Map<String, Value>> {
    match serde_json::from_str(&std::fs::read_to_string(path)?)? {
        Value::Object(map) => Ok(map),
        _ => Err(format!("{} is no object", path.display()).into()),
    }
}

fn reals(value: &Value) -> Fallible<Vec<f64>> {
    let list = value
        .as_array()
        .ok_or_else(|| format!("{value} is no list"))?;
    let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
    numbers.ok_or_else(|| format!("{value} is not all numbers").into())
}

/// `files/` by `expected.json` and, where SimpleITK gives one, the array of its name.
fn volumes(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let bytes = std::fs::read(folder.join("expected_arrays.safetensors"))?;
    let arrays = SafeTensors::deserialize(&bytes)?;
    for (name, report) in object(&folder.join("expected.json"))? {
        let path = folder.join("files").join(&name);
        checks.run(&name, || {
            let sitk = &report["sitk"];
            let nibabel = &report["nibabel"];
            let whole = sitk["accepts_damaged_file"] != true && sitk["fails"].is_null();
            let only_nibabel = !sitk["fails"].is_null()
                && nibabel["affine"].is_array()
                && has_right_angles(&nibabel["affine"])?;
            if !whole && !only_nibabel {
                return refused(&path);
            }
            let image = read_image(&path)?;
            let mut worst = Worst::default();
            if whole {
                as_simpleitk(&image, sitk, &name, &mut worst)?;
                let expected = values(&arrays, &name)?;
                worst.same("shape", &with_channel(expected.shape()), &shape(&image));
                for (at, (ours, theirs)) in image.data.iter().zip(&expected).enumerate() {
                    worst.number(
                        &format!("voxel {at}"),
                        (*ours).into(),
                        f64::from(*theirs as f32),
                        0.0,
                    );
                }
            } else {
                as_nibabel(&image, nibabel, &mut worst)?;
            }
            there_and_back(&image, &mut worst)?;
            worst.verdict()
        });
    }
    Ok(())
}

/// (Z, Y, X) as the shape of one channel, (T, Z, Y, X) as it is.
fn with_channel(shape: &[usize]) -> Vec<usize> {
    match shape.len() {
        4 => shape.to_vec(),
        _ => std::iter::once(1).chain(shape.iter().copied()).collect(),
    }
}

fn shape(image: &Image) -> Vec<usize> {
    image.data.shape().to_vec()
}

fn refused(path: &Path) -> Fallible<String> {
    match read_image(path) {
        Ok(_) => Err("it was read, expected a refusal".into()),
        Err(e)
            if e.to_string()
                .contains(&*path.file_name().unwrap_or_default().to_string_lossy()) =>
        {
            Ok(format!("refused: {e}"))
        }
        Err(e) => Err(format!("the message does not name the file: {e}").into()),
    }
}

fn has_right_angles(affine: &Value) -> Fallible<bool> {
    let rows: Vec<Vec<f64>> = affine
        .as_array()
        .ok_or("no affine")?
        .iter()
        .map(reals)
        .collect::<Fallible<_>>()?;
    let column = |c: usize| [rows[0][c], rows[1][c], rows[2][c]];
    let dot = |a: [f64; 3], b: [f64; 3]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
    let pairs = [(0, 1), (0, 2), (1, 2)];
    Ok(pairs.iter().all(|&(a, b)| {
        let (a, b) = (column(a), column(b));
        dot(a, b).abs() < 1e-3 * (dot(a, a) * dot(b, b)).sqrt()
    }))
}

fn as_simpleitk(image: &Image, sitk: &Value, name: &str, worst: &mut Worst) -> Fallible<()> {
    // Spacing, origin and direction of up to three axes; a fourth is the channels.
    let all = reals(&sitk["size_xyz"])?.len();
    let dims = all.min(3);
    let geometry = &image.geometry;
    let spacing = reals(&sitk["spacing"])?;
    let origin = reals(&sitk["origin"])?;
    let direction = reals(&sitk["direction"])?;
    worst.same("axes", &geometry.spacing.len(), &dims);
    let tolerance = if name.contains(".nii") {
        SINGLE
    } else {
        DOUBLE
    };
    for row in 0..dims {
        let at = |what: &str| format!("{what}[{row}]");
        // What the plans are made from has to be the same number.
        worst.number(
            &at("spacing"),
            geometry.spacing[dims - 1 - row],
            spacing[row],
            0.0,
        );
        worst.number(&at("origin"), geometry.origin[row], origin[row], 0.0);
        for column in 0..dims {
            let ours = geometry.direction[row * dims + column];
            worst.number(
                &at("direction"),
                ours,
                direction[row * all + column],
                tolerance,
            );
        }
    }
    let sum: f64 = image.data.iter().map(|&v| f64::from(v)).sum();
    let expected = sitk["sum_f64"].as_f64().ok_or("no sum")?;
    // The sum of float64 voxels differs by their rounding to float32.
    let rounding: f64 = image.data.iter().map(|&v| f64::from(v.abs())).sum::<f64>() * 6e-8;
    worst.number("sum", sum, expected, rounding.max(1e-9));
    Ok(())
}

fn as_nibabel(image: &Image, nibabel: &Value, worst: &mut Worst) -> Fallible<()> {
    let size = reals(&nibabel["shape"])?;
    let spatial: Vec<usize> = size.iter().rev().map(|&s| s as usize).collect();
    worst.same("shape", &with_channel(&spatial), &shape(image));
    let zooms = reals(&nibabel["zooms"])?;
    let rows: Vec<Vec<f64>> = nibabel["affine"]
        .as_array()
        .ok_or("no affine")?
        .iter()
        .map(reals)
        .collect::<Fallible<_>>()?;
    let geometry = &image.geometry;
    let dims = geometry.spacing.len();
    for row in 0..dims {
        let sign = if row < 2 { -1.0 } else { 1.0 };
        worst.number(
            "spacing",
            geometry.spacing[dims - 1 - row],
            zooms[row],
            DOUBLE,
        );
        worst.number("origin", geometry.origin[row], sign * rows[row][3], DOUBLE);
        for (column, cosine) in rows[row].iter().enumerate().take(dims) {
            let step =
                geometry.direction[row * dims + column] * geometry.spacing[dims - 1 - column];
            worst.number("affine", step, sign * cosine, DOUBLE);
        }
    }
    let sum: f64 = image.data.iter().map(|&v| f64::from(v)).sum();
    worst.number(
        "sum",
        sum,
        nibabel["sum_f64"].as_f64().ok_or("no sum")?,
        1e-6,
    );
    Ok(())
}

/// Written as values and as labels in every format that has a geometry, and read again.
fn there_and_back(image: &Image, worst: &mut Worst) -> Fallible<()> {
    let folder = tempfile::tempdir()?;
    let labels = LabelMap {
        data: image
            .data
            .index_axis(ndarray::Axis(0), 0)
            .mapv(|v| (v.abs() as i64 % 400) as i16),
        geometry: image.geometry.clone(),
    };
    for ending in [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"] {
        let path = folder.path().join(format!("values{ending}"));
        write_image(&path, image)?;
        let back = read_image(&path)?;
        // Pictures of several channels have no axis between in NIfTI: they come back as one slice.
        worst.same(
            &format!("{ending} voxels"),
            &back.data.as_slice(),
            &image.data.as_slice(),
        );
        if image.geometry.spacing.len() == back.geometry.spacing.len() {
            same_place(ending, &back.geometry, &image.geometry, worst);
        }
        let path = folder.path().join(format!("labels{ending}"));
        write_labels(&path, &labels)?;
        let back = read_labels(&path)?;
        worst.same(&format!("{ending} labels"), &back.data, &labels.data);
        same_place(ending, &back.geometry, &labels.geometry, worst);
    }
    Ok(())
}

fn same_place(ending: &str, ours: &Geometry, source: &Geometry, worst: &mut Worst) {
    let tolerance = if ending.starts_with(".nii") {
        1e-5
    } else {
        DOUBLE
    };
    for (what, ours, source) in [
        ("spacing", &ours.spacing, &source.spacing),
        ("origin", &ours.origin, &source.origin),
        ("direction", &ours.direction, &source.direction),
    ] {
        worst.same(
            &format!("{ending} {what} count"),
            &ours.len(),
            &source.len(),
        );
        for (a, b) in ours.iter().zip(source) {
            worst.number(
                &format!("{ending} {what}"),
                *a,
                *b,
                tolerance * b.abs().max(1.0),
            );
        }
    }
}

/// `png/` by nnU-Net's arrays (C, 1, H, W).
fn pictures(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let bytes = std::fs::read(folder.join("png_expected.safetensors"))?;
    let arrays = SafeTensors::deserialize(&bytes)?;
    for name in arrays.names() {
        checks.run(name, || {
            let expected = values(&arrays, name)?;
            let image = read_image(&folder.join("png").join(name))?;
            let mut worst = Worst::default();
            let (ours, theirs) = (shape(&image), expected.shape());
            worst.same(
                "shape",
                &vec![ours[0], 1, ours[1], ours[2]],
                &theirs.to_vec(),
            );
            for (at, (ours, theirs)) in image.data.iter().zip(&expected).enumerate() {
                worst.number(&format!("pixel {at}"), (*ours).into(), *theirs, 0.0);
            }
            worst.verdict()
        });
    }
    Ok(())
}

fn values(arrays: &SafeTensors, name: &str) -> Fallible<ArrayD<f64>> {
    use safetensors::Dtype;
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes
            .chunks_exact(N)
            .filter_map(|b| b.try_into().ok())
            .map(value)
            .collect()
    }
    let tensor = arrays.tensor(name)?;
    let data = tensor.data();
    let numbers = match tensor.dtype() {
        Dtype::U8 => each(data, |[b]: [u8; 1]| b.into()),
        Dtype::I8 => each(data, |[b]: [u8; 1]| (b as i8).into()),
        Dtype::I16 => each(data, |b| i16::from_le_bytes(b).into()),
        Dtype::U16 => each(data, |b| u16::from_le_bytes(b).into()),
        Dtype::I32 => each(data, |b| i32::from_le_bytes(b).into()),
        Dtype::U32 => each(data, |b| u32::from_le_bytes(b).into()),
        Dtype::I64 => each(data, |b| i64::from_le_bytes(b) as f64),
        Dtype::U64 => each(data, |b| u64::from_le_bytes(b) as f64),
        Dtype::F32 => each(data, |b| f32::from_le_bytes(b).into()),
        Dtype::F64 => each(data, f64::from_le_bytes),
        other => return Err(format!("{name} is of type {other:?}").into()),
    };
    Ok(ArrayD::from_shape_vec(tensor.shape().to_vec(), numbers)?)
}
