//! DICOM series against SimpleITK 2.5.7 (`fixtures/dicom`, written by it, pydicom 3.0.2, imagecodecs 2026.3.6 and pyjpegls 1.5.1), and files
//! by hand.
#![allow(clippy::unwrap_used)]

mod util;

use std::path::Path;

use serde_json::Value;
use vision_mamba_datasets::io::{is_dicom_series, spatial_size};
use vision_mamba_datasets::{read_image, write_labels, DataError};

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

#[test]
fn series_are_simpleitks() {
    let root = util::fixtures().join("dicom");
    let text = std::fs::read_to_string(root.join("expected.json")).unwrap();
    let expected: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert!(expected.len() >= 12);
    for (name, expected) in expected {
        let folder = root.join(&name);
        assert!(is_dicom_series(&folder), "{name}");
        let image = read_image(&folder).unwrap();
        let shape: Vec<usize> = numbers(&expected["shape"])
            .into_iter()
            .map(|s| s as usize)
            .collect();
        assert_eq!(image.spatial_size(), shape, "{name}");
        assert_eq!(spatial_size(&folder).unwrap(), shape, "{name}");
        let values = || image.data.iter().map(|&v| f64::from(v));
        assert_eq!(
            values().sum::<f64>(),
            expected["sum"].as_f64().unwrap(),
            "{name}"
        );
        let weighted: f64 = values().enumerate().map(|(i, v)| (i + 1) as f64 * v).sum();
        assert_eq!(
            weighted,
            expected["weighted_sum"].as_f64().unwrap(),
            "{name}"
        );
        let mut spacing = image.geometry.spacing.clone();
        spacing.reverse();
        for (what, ours) in [
            ("spacing", &spacing),
            ("origin", &image.geometry.origin),
            ("direction", &image.geometry.direction),
        ] {
            let theirs = numbers(&expected[what]);
            assert_eq!(ours.len(), theirs.len());
            for (a, b) in ours.iter().zip(theirs) {
                assert!((a - b).abs() < 1e-12, "{name} {what}: {ours:?}");
            }
        }
    }
}

/// An element in explicit little-endian encoding.
fn element(tag: u32, kind: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((tag >> 16) as u16).to_le_bytes());
    bytes.extend((tag as u16).to_le_bytes());
    bytes.extend(kind.as_bytes());
    let mut value = value.to_vec();
    if value.len() % 2 == 1 {
        value.push(b' ');
    }
    match kind {
        "OB" | "OW" | "SQ" | "UN" => {
            bytes.extend([0, 0]);
            bytes.extend((value.len() as u32).to_le_bytes());
        }
        _ => bytes.extend((value.len() as u16).to_le_bytes()),
    }
    bytes.extend(value);
    bytes
}

fn number(tag: u32, value: u16) -> Vec<u8> {
    element(tag, "US", &value.to_le_bytes())
}

fn text(tag: u32, value: &str) -> Vec<u8> {
    element(tag, "DS", value.as_bytes())
}

/// A file of 3 x 2 pixels of 16 bits; `more` comes before the pixels.
fn file(syntax: &str, bits: [u16; 4], samples: u16, more: &[Vec<u8>], pixels: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes.extend(b"DICM");
    bytes.extend(element(0x0002_0010, "UI", syntax.as_bytes()));
    let [allocated, stored, high, signed] = bits;
    let parts = [
        number(0x0028_0002, samples),
        number(0x0028_0010, 2),
        number(0x0028_0011, 3),
        number(0x0028_0100, allocated),
        number(0x0028_0101, stored),
        number(0x0028_0102, high),
        number(0x0028_0103, signed),
    ];
    for part in parts.iter().chain(more) {
        bytes.extend(part);
    }
    bytes.extend(pixels);
    bytes
}

const EXPLICIT: &str = "1.2.840.10008.1.2.1";

fn words(values: [u16; 6]) -> Vec<u8> {
    element(0x7fe0_0010, "OW", &values.map(u16::to_le_bytes).concat())
}

fn read(bytes: &[u8]) -> vision_mamba_datasets::Result<vision_mamba_datasets::Image> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.dcm");
    std::fs::write(&path, bytes).unwrap();
    read_image(&path)
}

#[test]
fn stored_bits_and_scaling() {
    // Twelve bits with an overlay in the others, their sign extended.
    let pixels = words([0xf001, 0x0fff, 0x1800, 0x2000, 0x07ff, 5]);
    let scaling = [text(0x0028_1052, "-10"), text(0x0028_1053, "2")];
    let image = read(&file(EXPLICIT, [16, 12, 11, 1], 1, &scaling, &pixels)).unwrap();
    assert_eq!(image.data.shape(), [1, 2, 3]);
    assert_eq!(
        image.data.as_slice().unwrap(),
        [-8.0, -12.0, -4106.0, -10.0, 4084.0, 0.0]
    );
    let unsigned = read(&file(EXPLICIT, [16, 12, 11, 0], 1, &[], &pixels)).unwrap();
    assert_eq!(
        unsigned.data.as_slice().unwrap(),
        [1.0, 4095.0, 2048.0, 0.0, 2047.0, 5.0]
    );
    // The stored bits at the top of the word.
    let high = read(&file(
        EXPLICIT,
        [16, 12, 15, 0],
        1,
        &[],
        &words([0x0010, 0xfff7, 0, 0, 0, 0]),
    ))
    .unwrap();
    assert_eq!(high.data.as_slice().unwrap()[..2], [1.0, 4095.0]);
}

#[test]
fn colours_and_frames() {
    let colours: Vec<u8> = (0..18).collect();
    let pixels = element(0x7fe0_0010, "OB", &colours);
    let rgb = element(0x0028_0004, "CS", b"RGB");
    let image = read(&file(
        EXPLICIT,
        [8, 8, 7, 0],
        3,
        std::slice::from_ref(&rgb),
        &pixels,
    ))
    .unwrap();
    assert_eq!(image.data.shape(), [3, 2, 3]);
    assert_eq!(
        image.data.as_slice().unwrap()[..7],
        [0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 1.0]
    );
    let planar = [rgb, number(0x0028_0006, 1)];
    let image = read(&file(EXPLICIT, [8, 8, 7, 0], 3, &planar, &pixels)).unwrap();
    assert_eq!(
        image.data.as_slice().unwrap()[..7],
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    );

    // Three frames whose places are in groups of their own; the second lies behind the third.
    let item = |content: Vec<u8>| {
        [
            &[0xfe, 0xff, 0x00, 0xe0][..],
            &(content.len() as u32).to_le_bytes(),
            &content,
        ]
        .concat()
    };
    let position = |z: &str| {
        let inner = item(text(0x0020_0032, &format!("1\\2\\{z}")));
        item(element(0x0020_9113, "SQ", &inner))
    };
    let frames = element(
        0x5200_9230,
        "SQ",
        &[position("0"), position("5"), position("2.5")].concat(),
    );
    let plane = item(text(0x0020_0037, "1\\0\\0\\0\\1\\0"));
    let measures = item(text(0x0028_0030, "0.5\\0.25"));
    let shared = [
        element(0x0020_9116, "SQ", &plane),
        element(0x0028_9110, "SQ", &measures),
    ]
    .concat();
    let more = [
        text(0x0028_0008, "3"),
        element(0x5200_9229, "SQ", &item(shared)),
        frames,
    ];
    let image = read(&file(EXPLICIT, [8, 8, 7, 0], 1, &more, &pixels)).unwrap();
    assert_eq!(image.data.shape(), [1, 3, 2, 3]);
    let starts: Vec<f32> = image.data.iter().step_by(6).copied().collect();
    assert_eq!(starts, [0.0, 12.0, 6.0]);
    assert_eq!(image.geometry.spacing, [2.5, 0.5, 0.25]);
    assert_eq!(image.geometry.origin, [1.0, 2.0, 0.0]);
}

/// Pixels as items: an empty table of offsets, then the fragments.
fn packed(fragments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![
        0xe0, 0x7f, 0x10, 0x00, b'O', b'B', 0, 0, 0xff, 0xff, 0xff, 0xff,
    ];
    for fragment in [&[][..]].iter().chain(fragments) {
        let padded = fragment.len().next_multiple_of(2);
        bytes.extend([0xfe, 0xff, 0x00, 0xe0]);
        bytes.extend((padded as u32).to_le_bytes());
        bytes.extend(*fragment);
        bytes.resize(bytes.len() + padded - fragment.len(), 0);
    }
    bytes.extend([0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
    bytes
}

#[test]
fn jpeg_and_run_lengths() {
    const JPEG: &str = "1.2.840.10008.1.2.4.50";
    let grey = image::GrayImage::from_pixel(3, 2, image::Luma([77]));
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut jpeg)
        .encode_image(&grey)
        .unwrap();
    let bytes = file(JPEG, [8, 8, 7, 0], 1, &[], &packed(&[&jpeg]));
    let image = read(&bytes).unwrap();
    assert_eq!(image.data.shape(), [1, 2, 3]);
    assert!(image.data.iter().all(|v| (v - 77.0).abs() <= 1.0));
    // In two fragments, and in two frames.
    let halves = jpeg.split_at(jpeg.len() / 2 / 2 * 2);
    let split = read(&file(
        JPEG,
        [8, 8, 7, 0],
        1,
        &[],
        &packed(&[halves.0, halves.1]),
    ))
    .unwrap();
    assert_eq!(split.data, image.data);
    let two = file(
        JPEG,
        [8, 8, 7, 0],
        1,
        &[text(0x0028_0008, "2")],
        &packed(&[&jpeg, &jpeg]),
    );
    assert_eq!(read(&two).unwrap().data.shape(), [1, 2, 2, 3]);
    // A picture of another size than the header says.
    let large = image::GrayImage::from_pixel(30, 20, image::Luma([77]));
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new(&mut jpeg)
        .encode_image(&large)
        .unwrap();
    let error = read(&file(JPEG, [8, 8, 7, 0], 1, &[], &packed(&[&jpeg]))).unwrap_err();
    assert!(matches!(error, DataError::Damaged { .. }), "{error}");

    // Two segments, high bytes first: a run of six and six literals; 0x80 means nothing.
    let mut runs = [2u32, 64, 67].map(u32::to_le_bytes).concat();
    runs.resize(64, 0);
    runs.extend([0xfb, 1, 0x80, 5, 10, 11, 12, 13, 14, 15]);
    let image = read(&file(
        "1.2.840.10008.1.2.5",
        [16, 16, 15, 0],
        1,
        &[],
        &packed(&[&runs]),
    ))
    .unwrap();
    assert_eq!(
        image.data.as_slice().unwrap(),
        [266.0, 267.0, 268.0, 269.0, 270.0, 271.0]
    );
}

#[test]
fn what_is_wrong_is_said() {
    let whole = file(
        EXPLICIT,
        [16, 16, 15, 0],
        1,
        &[],
        &words([1, 2, 3, 4, 5, 6]),
    );
    let says = |bytes: &[u8], fault: &str| {
        let message = read(bytes).unwrap_err().to_string();
        assert!(
            message.contains(fault) && message.contains("a.dcm"),
            "{message}"
        );
    };
    says(&whole[..whole.len() - 3], "ends inside an element");
    says(b"no DICOM", "holds no DICOM image");
    says(
        &file("1.2.840.10008.1.2.4.201", [16, 16, 15, 0], 1, &[], &[]),
        "transfer syntax 1.2.840.10008.1.2.4.201",
    );
    says(
        &file(
            EXPLICIT,
            [16, 16, 15, 0],
            1,
            &[text(0x0028_0008, "900000000")],
            &words([0; 6]),
        ),
        "more than the file can hold",
    );
    says(
        &file(EXPLICIT, [16, 20, 15, 0], 1, &[], &words([0; 6])),
        "20 bits",
    );
    let palette = element(0x0028_0004, "CS", b"PALETTE COLOR");
    says(
        &file(EXPLICIT, [16, 16, 15, 0], 1, &[palette], &words([0; 6])),
        "PALETTE",
    );
    // Sequences in sequences in sequences.
    let mut nest = Vec::new();
    for _ in 0..100_000 {
        nest.extend([
            0x08, 0x00, 0x40, 0x11, b'S', b'Q', 0, 0, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0x00,
            0xe0, 0xff, 0xff, 0xff, 0xff,
        ]);
    }
    says(
        &file(EXPLICIT, [16, 16, 15, 0], 1, &[nest], &words([0; 6])),
        "nest deeper",
    );
}

#[test]
fn folders_that_are_no_single_whole_series() {
    let copy = |skipped: &str| {
        let folder = tempfile::tempdir().unwrap();
        let source = util::fixtures().join("dicom/oblique");
        for entry in std::fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name != skipped {
                std::fs::copy(&path, folder.path().join(name)).unwrap();
            }
        }
        folder
    };
    // Other files beside the slices are passed over.
    let whole = copy("");
    std::fs::write(whole.path().join("notes.txt"), "scanned on a Monday").unwrap();
    assert_eq!(spatial_size(whole.path()).unwrap(), [6, 9, 11]);
    let error = read_image(copy("s003.dcm").path()).unwrap_err().to_string();
    assert!(
        error.contains("slices are missing") && error.contains("s002.dcm are 5.000 mm apart"),
        "{error}"
    );
    let two = copy("");
    let other = util::fixtures().join("dicom/rle/s001.dcm");
    std::fs::copy(other, two.path().join("other.dcm")).unwrap();
    let error = read_image(two.path()).unwrap_err().to_string();
    for word in [
        "2 DICOM series",
        "(6 files, the first is s001.dcm)",
        "other.dcm",
    ] {
        assert!(error.contains(word), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(!is_dicom_series(empty.path()));
    let error = read_image(empty.path()).unwrap_err().to_string();
    assert!(error.contains("no DICOM image"), "{error}");
}

/// A prediction for a series is written in a format that can hold it, on the series' grid.
#[test]
fn labels_on_the_grid_of_a_series() {
    let image = read_image(&util::fixtures().join("dicom/flip")).unwrap();
    let labels = vision_mamba_datasets::LabelMap {
        data: image
            .data
            .index_axis(ndarray::Axis(0), 0)
            .mapv(|v| i16::from(v > 0.0)),
        geometry: image.geometry.clone(),
    };
    let folder = tempfile::tempdir().unwrap();
    for ending in ["nii.gz", "nrrd", "mha"] {
        let path = folder.path().join(format!("a.{ending}"));
        write_labels(&path, &labels).unwrap();
        let back = vision_mamba_datasets::read_labels(&path).unwrap();
        assert_eq!(back.data, labels.data);
        for (a, b) in back
            .geometry
            .direction
            .iter()
            .zip(&labels.geometry.direction)
        {
            assert!((a - b).abs() < 1e-7, "{ending}");
        }
        for (a, b) in back.geometry.origin.iter().zip(&labels.geometry.origin) {
            assert!((a - b).abs() < 1e-5, "{ending}");
        }
    }
    assert!(write_labels(Path::new("nowhere.dcm"), &labels)
        .unwrap_err()
        .to_string()
        .contains("not supported"));
}

/// A frame of JPEG-LS or JPEG 2000 that is cut, or of another size than the header says, is refused.
#[test]
fn packed_frames_that_are_not_whole() {
    for (name, marker) in [("jpegls", [0xff, 0xd8]), ("jpeg2000", [0xff, 0x4f])] {
        let path = util::fixtures().join(format!("dicom/{name}/0.dcm"));
        let whole = std::fs::read(path).unwrap();
        assert!(read(&whole).is_ok());
        let frame = whole.windows(2).rposition(|w| w == marker).unwrap();
        // The length of the fragment stays; zeros take the place of what is cut.
        for kept in [20, 60, (whole.len() - frame) / 2] {
            let mut cut = whole.clone();
            let end = cut.len() - 8;
            cut[frame + kept..end].fill(0);
            let error = read(&cut).unwrap_err();
            assert!(matches!(error, DataError::Damaged { .. }), "{name} {error}");
        }
        let rows = [0x28, 0x00, 0x10, 0x00, b'U', b'S', 2, 0];
        let at = whole.windows(8).position(|w| w == rows).unwrap() + 8;
        for rows in [19, 21, 60_000u16] {
            let mut other = whole.clone();
            other[at..at + 2].copy_from_slice(&rows.to_le_bytes());
            let error = read(&other).unwrap_err().to_string();
            assert!(
                error.contains("expected 24 x") || error.contains("more"),
                "{error}"
            );
        }
    }
}
