//! Every NIfTI and PNG fixture against what SimpleITK and nnU-Net's reader give, damaged files, and the way there and back.
#![allow(clippy::unwrap_used)]

mod util;

use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use serde_json::Value;
use util::{fixtures, tensors};
use vision_mamba_datasets::io::{
    known_endings, spatial_size, writable_image_endings, writable_label_endings,
};
use vision_mamba_datasets::{
    atomically, read_image, read_labels, write_labels, DataError, Geometry, LabelMap, SourceHeader,
};

fn file(name: &str) -> PathBuf {
    fixtures().join("formats").join(name)
}

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(file("expected.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (f, e) in found.iter().zip(expected) {
        assert!(
            (f - e).abs() <= tolerance,
            "{what}: {found:?} is not {expected:?}"
        );
    }
}

#[test]
fn nifti_voxels_and_geometry_are_simpleitks() {
    let report = expected();
    let mut checked = 0;
    for (name, array) in tensors(&file("expected_arrays.safetensors")) {
        if !name.contains(".nii") || array.ndim() > 3 {
            continue;
        }
        let image = read_image(&file(&name)).unwrap();
        assert_eq!(image.channels(), 1, "{name}");
        assert_eq!(image.spatial_size(), array.shape(), "{name}");
        assert_eq!(spatial_size(&file(&name)).unwrap(), array.shape(), "{name}");
        for (found, expected) in image.data.iter().zip(&array) {
            assert_eq!(*found, *expected as f32, "{name}");
        }
        let sitk = &report[&name]["sitk"];
        let mut spacing = numbers(&sitk["spacing"]);
        spacing.reverse();
        assert_eq!(image.geometry.spacing, spacing, "{name}");
        assert_eq!(image.geometry.origin, numbers(&sitk["origin"]), "{name}");
        // SimpleITK makes the columns of a float32 sform orthonormal, here they are only divided by their lengths.
        assert_near(
            &image.geometry.direction,
            &numbers(&sitk["direction"]),
            1e-6,
            &name,
        );
        checked += 1;
    }
    assert_eq!(checked, 16, "NIfTI fixtures with an expected array");
}

#[test]
fn natural_images_are_nnunets() {
    let mut checked = 0;
    for (name, array) in tensors(&file("png_expected.safetensors")) {
        if name.ends_with(".tif") {
            continue;
        }
        let image = read_image(&file(&name)).unwrap();
        // (C, 1, H, W) there, (C, H, W) here.
        let shape = [array.shape()[0], array.shape()[2], array.shape()[3]];
        assert_eq!(image.data.shape(), shape, "{name}");
        assert_eq!(spatial_size(&file(&name)).unwrap(), shape[1..], "{name}");
        assert!(
            image
                .data
                .iter()
                .zip(&array)
                .all(|(f, e)| f64::from(*f) == *e),
            "{name}"
        );
        checked += 1;
    }
    assert_eq!(checked, 7);
}

/// Each of these is refused with a message that names the file and the fault.
#[test]
fn damaged_and_unsupported_nifti() {
    let faults = [
        ("bad_truncated.nii", "more than the file can hold"),
        ("bad_truncated.nii.gz", ""),
        ("bad_header_only.nii", "ends inside the header"),
        ("bad_crc.nii.gz", ""),
        ("bad_magic.nii", "magic"),
        ("bad_datatype.nii", "datatype is"),
        ("bad_negative_dim.nii", "dim[1] is -5"),
        ("bad_huge_dim.nii", "more than the file can hold"),
        ("bad_empty.nii", "empty"),
        ("sform_shear.nii", "sheared"),
    ];
    for (name, fault) in faults {
        let message = read_image(&file(name)).expect_err(name).to_string();
        assert!(
            message.contains(name) && message.contains(fault) && !message.contains('\n'),
            "{name}: {message}"
        );
    }
    let bad = std::fs::read_dir(fixtures().join("formats"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    for name in bad.filter(|n| n.starts_with("bad_")) {
        assert!(
            faults.iter().any(|f| f.0 == name),
            "{name} is not in the list"
        );
    }
}

/// A file cut anywhere, or with any header byte changed, is read or refused, without a panic and without memory that the file does not back.
#[test]
fn hostile_headers() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "int16_intslope.nii",
        "uint16_big_endian.nii",
        "int32_ext.nii.gz",
        "gray16.png",
        "rgb8.bmp",
    ] {
        let whole = std::fs::read(file(name)).unwrap();
        let path = folder.path().join(name);
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_image(&path).map(|image| image.data.len())
        };
        let voxels = read(&whole).unwrap();
        let header = if name.contains(".nii") { 352 } else { 64 };
        let end = if name.ends_with(".gz") {
            whole.len() - 1
        } else {
            whole.len()
        };
        for length in (0..end).step_by(3) {
            let result = read(&whole[..length]);
            // The last chunk of a PNG and the padding of a BMP carry no pixels.
            let complete = name.ends_with("png") || name.ends_with("bmp");
            assert!(
                result.is_err() || (complete && length + 16 > whole.len()),
                "{name} cut to {length} was accepted"
            );
        }
        for at in 0..whole.len().min(header) {
            for flip in [0x80, 0x01] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                if let Ok(found) = read(&bytes) {
                    assert!(
                        found <= 64 * voxels,
                        "{name}: byte {at} made {found} voxels of {voxels}"
                    );
                }
            }
        }
    }
}

fn label_like(path: &Path, largest: i16) -> LabelMap {
    let image = read_image(path).unwrap();
    let n = image.spatial_size().iter().product::<usize>() as i16;
    let values = (0..n)
        .map(|i| if i == 5 { largest } else { i % 3 })
        .collect();
    LabelMap {
        data: ArrayD::from_shape_vec(IxDyn(image.spatial_size()), values).unwrap(),
        geometry: image.geometry,
    }
}

/// pixdim, units, qform and sform: all that places voxels.
const PLACING_BYTES: [std::ops::Range<usize>; 3] = [76..108, 123..124, 252..328];

#[test]
fn label_maps_keep_the_sources_geometry_bit_by_bit() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [
        "uint8_qform_oblique.nii.gz",
        "float32_sform_ne_qform.nii.gz",
        "uint16_big_endian.nii",
        "int16_slope.nii.gz",
        "int32_ext.nii.gz",
        "float64.nii",
        "no_forms.nii",
        "uint8_2d.nii",
    ];
    for name in sources {
        for (ending, largest, datatype) in [(".nii", 2, 2u8), (".nii.gz", 700, 4)] {
            let source = label_like(&file(name), largest);
            let path = folder.path().join(format!("label{ending}"));
            write_labels(&path, &source).unwrap();
            let back = read_labels(&path).unwrap();
            assert_eq!(back.data, source.data, "{name}");
            let (SourceHeader::Nifti(before), SourceHeader::Nifti(after)) =
                (&source.geometry.source, &back.geometry.source)
            else {
                panic!("{name}: no header");
            };
            for range in PLACING_BYTES {
                assert_eq!(
                    before.as_bytes()[range.clone()],
                    after.as_bytes()[range],
                    "{name}"
                );
            }
            assert_eq!(
                (&back.geometry.spacing, &back.geometry.origin),
                (&source.geometry.spacing, &source.geometry.origin),
                "{name}"
            );
            assert_eq!(back.geometry.direction, source.geometry.direction, "{name}");
            let code = &after.as_bytes()[70..72];
            assert_eq!(code.iter().copied().max(), Some(datatype), "{name}");
        }
    }
}

/// A fourth axis of one volume, which many tools write, is no axis.
#[test]
fn one_volume_in_four_axes() {
    let mut bytes = std::fs::read(file("forms_s1_q1.nii")).unwrap();
    bytes[40] = 4;
    bytes[48] = 1;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("four.nii");
    std::fs::write(&path, bytes).unwrap();
    let (found, plain) = (
        read_image(&path).unwrap(),
        read_image(&file("forms_s1_q1.nii")).unwrap(),
    );
    assert_eq!(found.data, plain.data);
    assert_eq!(found.geometry.direction, plain.geometry.direction);
}

#[test]
fn geometry_without_a_header_makes_one() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["uint8_qform_oblique.nii.gz", "uint8_2d.nii"] {
        let mut label = label_like(&file(name), 1);
        label.geometry.source = SourceHeader::None;
        let path = folder.path().join("made.nii.gz");
        write_labels(&path, &label).unwrap();
        let back = read_labels(&path).unwrap();
        assert_eq!(back.data, label.data);
        // float32 in the file.
        assert_near(
            &back.geometry.spacing,
            &label.geometry.spacing,
            1e-6,
            "spacing",
        );
        assert_near(
            &back.geometry.origin,
            &label.geometry.origin,
            1e-5,
            "origin",
        );
        assert_near(
            &back.geometry.direction,
            &label.geometry.direction,
            1e-6,
            "direction",
        );
    }
}

#[test]
fn png_labels_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    for largest in [9, 255, 256, i16::MAX] {
        let mut label = util::square(12, 10, largest);
        label.data[[0, 0]] = 1;
        let path = folder.path().join("label.png");
        write_labels(&path, &label).unwrap();
        assert_eq!(read_labels(&path).unwrap(), label);
    }
    // A mask of one bit a pixel is 0 and 1.
    let bits = read_labels(&file("bit1.png")).unwrap();
    assert!(bits.data.iter().all(|v| (0..=1).contains(v)) && bits.data.iter().any(|v| *v == 1));
    let grey = read_labels(&file("gray16.png")).unwrap_err();
    assert!(
        matches!(grey, DataError::LabelNotInteger { value, .. } if value > 32767.0),
        "{grey}"
    );
}

#[test]
fn a_jpeg_whole_and_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photo.jpg");
    let picture =
        image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 5, y as u8 * 7, 90]));
    picture.save(&path).unwrap();
    let found = read_image(&path).unwrap();
    assert_eq!(found.data.shape(), [3, 30, 40]);
    // Lossy: blue is constant, so it stays near.
    let blue = found.data.index_axis(ndarray::Axis(0), 2);
    assert!(blue.iter().all(|v| (v - 90.0).abs() < 20.0));
    let bytes = std::fs::read(&path).unwrap();
    for length in [bytes.len() - 2, bytes.len() * 3 / 4, 100, 3] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let message = read_image(&path).unwrap_err().to_string();
        assert!(message.contains("photo.jpg"), "{message}");
    }
}

#[test]
fn what_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let volume = LabelMap {
        data: ArrayD::zeros(IxDyn(&[2, 3, 4])),
        geometry: Geometry::unit(3),
    };
    let error = write_labels(&folder.path().join("a.png"), &volume)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a.png") && error.contains(".nii.gz"),
        "{error}"
    );
    let error = write_labels(&folder.path().join("a.jpg"), &util::square(9, 9, 1))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("use .nii.gz") && error.contains(".png"),
        "{error}"
    );
    let error = write_labels(&folder.path().join("a.png"), &util::square(9, 9, -1))
        .unwrap_err()
        .to_string();
    assert!(error.contains("-1"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A writer that fails half-way, as a full disk makes it: the earlier file stays whole, no temporary is left.
#[test]
fn a_failing_write_leaves_the_earlier_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("label.png");
    let label = util::square(12, 10, 3);
    write_labels(&path, &label).unwrap();
    let error = atomically(&path, |out| {
        out.write_all(&[7; 100_000])?;
        Err(std::io::ErrorKind::StorageFull.into())
    })
    .unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("label.png")
            && message.contains("space left")
            && message.contains("nothing was changed"),
        "{message}"
    );
    assert_eq!(read_labels(&path).unwrap(), label);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_unwritable_folder() {
    let folder = tempfile::tempdir().unwrap();
    let blocker = folder.path().join("file");
    std::fs::write(&blocker, "x").unwrap();
    for parent in [blocker, folder.path().join("nowhere")] {
        let error =
            write_labels(&parent.join("label.nii.gz"), &util::square(12, 10, 1)).unwrap_err();
        assert!(
            matches!(
                error,
                DataError::Io {
                    action: "write",
                    ..
                }
            ),
            "{error}"
        );
        let message = error.to_string();
        assert!(
            message.contains("label.nii.gz") && !message.contains(".writing-"),
            "{message}"
        );
    }
}

/// A header and voxels in two files are read by the name of either; what is written from them is a single file again.
#[test]
fn a_pair_of_header_and_voxels() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["int16_intslope.nii", "uint16_big_endian.nii"] {
        let whole = std::fs::read(file(name)).unwrap();
        let expected = read_image(&file(name)).unwrap();
        let mut header = whole[..348].to_vec();
        header[345] = b'i';
        header[108..112].fill(0);
        let (head, voxels) = (folder.path().join("a.hdr"), folder.path().join("a.img"));
        std::fs::write(&head, &header).unwrap();
        std::fs::write(&voxels, &whole[352..]).unwrap();
        for path in [&head, &voxels] {
            let found = read_image(path).unwrap();
            assert_eq!(found.data, expected.data);
            assert_eq!(found.geometry.spacing, expected.geometry.spacing);
            assert_eq!(found.geometry.direction, expected.geometry.direction);
            assert_eq!(spatial_size(path).unwrap(), expected.spatial_size());
        }
        let labels = LabelMap {
            data: ArrayD::zeros(IxDyn(expected.spatial_size())),
            geometry: read_image(&head).unwrap().geometry,
        };
        let written = folder.path().join("a.nii");
        write_labels(&written, &labels).unwrap();
        assert_eq!(read_labels(&written).unwrap().data, labels.data);
        // Renamed, a header is no single file.
        std::fs::copy(&head, folder.path().join("b.nii")).unwrap();
        let error = read_image(&folder.path().join("b.nii")).unwrap_err();
        assert!(error.to_string().contains("header of a pair"), "{error}");
        std::fs::write(&voxels, &whole[352..whole.len() - 1]).unwrap();
        let error = read_image(&head).unwrap_err().to_string();
        assert!(error.contains("more than the file can hold"), "{error}");
        std::fs::remove_file(&voxels).unwrap();
        let error = read_image(&head).unwrap_err().to_string();
        assert!(error.contains("a.img does not exist"), "{error}");
        let error = write_labels(&head, &labels).unwrap_err().to_string();
        assert!(error.contains("use .nii.gz"), "{error}");
    }
}

#[test]
fn voxels_that_are_no_real_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.nii");
    let mut bytes = std::fs::read(file("float64.nii")).unwrap();
    for (code, name) in [
        (32i16, "complex64"),
        (1792, "complex128"),
        (1536, "float128"),
        (2048, "complex256"),
        (1, "binary"),
    ] {
        bytes[70..72].copy_from_slice(&code.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let error = read_image(&path).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("convert it to float32"),
            "{error}"
        );
    }
}

#[test]
fn endings() {
    let known = known_endings();
    assert_eq!(known.split("case_1.nii.gz"), Some(("case_1", ".nii.gz")));
    assert_eq!(known.split("Case.1.NRRD"), Some(("Case.1", ".nrrd")));
    assert_eq!(known.split("a.txt"), None);
    assert_eq!(known.split("\u{e9}.gz"), None);
    let labels = writable_label_endings();
    for ending in [
        ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff", ".png",
    ] {
        assert!(labels.contains(&ending), "{ending}");
    }
    assert_eq!(labels.len(), 9);
    assert!(!writable_image_endings().contains(&".png"));
    assert!(labels.to_string().starts_with(".nii.gz, .nii, "));
}

/// Every format that label maps are written in keeps them and their place.
#[test]
fn label_maps_there_and_back_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let volume = label_like(&file("uint8_qform_oblique.nii.gz"), 300);
    let picture = util::square(12, 10, 300);
    for ending in writable_label_endings().iter() {
        let label = if *ending == ".png" { &picture } else { &volume };
        let path = folder.path().join(format!("case{ending}"));
        write_labels(&path, label).unwrap();
        let back = read_labels(&path).unwrap();
        assert_eq!(back.data, label.data, "{ending}");
        let (ours, theirs) = (&back.geometry, &label.geometry);
        assert_near(&ours.spacing, &theirs.spacing, 1e-6, ending);
        // A TIFF has no place for the rest.
        if !ending.starts_with(".tif") {
            assert_near(&ours.origin, &theirs.origin, 1e-5, ending);
            assert_near(&ours.direction, &theirs.direction, 1e-6, ending);
        }
    }
}

/// A pipe would be waited for and a device read for ever.
#[cfg(unix)]
#[test]
fn a_device_in_place_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "a.nii", "a.nrrd", "a.png", "a.npy", "a.tif", "a.h5", "a.dcm",
    ] {
        let path = folder.path().join(name);
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = read_image(&path).unwrap_err().to_string();
        assert!(error.contains("a pipe or a device"), "{name}: {error}");
    }
}
