//! NRRD and MetaImage headers by hand; what is expected was read off SimpleITK 2.5.7 on the same bytes.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use vision_mamba_datasets::io::spatial_size;
use vision_mamba_datasets::{read_image, write_image, Geometry, Image, Result};

fn read(name: &str, header: &str, voxels: &[u8]) -> Result<Image> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(voxels);
    std::fs::write(&path, bytes).unwrap();
    let image = read_image(&path)?;
    assert_eq!(spatial_size(&path).unwrap(), image.spatial_size());
    Ok(image)
}

/// An NRRD file of bytes 0, 1, 2, ...
fn nrrd(fields: &str, voxels: u8) -> Result<Image> {
    let header = format!("NRRD0005\ntype: uchar\n{fields}encoding: raw\n\n");
    read("a.nrrd", &header, &(0..voxels).collect::<Vec<u8>>())
}

const CUBE: &str = "dimension: 3\nsizes: 2 2 2\n";

#[test]
fn nrrd_frames() {
    let oblong = "space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (10,20,30)\n";
    for (space, signs) in [
        ("left-anterior-superior", [1.0, -1.0, 1.0]),
        ("right-anterior-superior", [-1.0, -1.0, 1.0]),
        ("RAS", [-1.0, -1.0, 1.0]),
        ("LPS", [1.0, 1.0, 1.0]),
        ("scanner-xyz", [1.0, 1.0, 1.0]),
    ] {
        let Geometry {
            spacing,
            origin,
            direction,
            ..
        } = nrrd(&format!("{CUBE}space: {space}\n{oblong}"), 8)
            .unwrap()
            .geometry;
        assert_eq!(spacing, [3.0, 2.0, 1.0], "{space}");
        assert_eq!(origin, [signs[0] * 10.0, signs[1] * 20.0, 30.0], "{space}");
        let expected = [signs[0], 0.0, 0.0, 0.0, signs[1], 0.0, 0.0, 0.0, 1.0];
        assert_eq!(direction, expected, "{space}");
    }
}

#[test]
fn nrrd_without_a_frame() {
    let place = |fields: &str| nrrd(&format!("{CUBE}{fields}"), 8).unwrap().geometry;
    let turned = place("spacings: 1.5 2.5 -3.5\n");
    assert_eq!(turned.spacing, [3.5, 2.5, 1.5]);
    assert_eq!(turned.direction[8], -1.0);
    let unknown = place("spacings: nan 1 2\naxis mins: 5 6 7\n");
    assert_eq!(
        (unknown.spacing, unknown.origin),
        (vec![2.0, 1.0, 1.0], vec![0.0; 3])
    );
    let minima = "axis mins: 5 6 7\nspacings: 1 2 3\n";
    assert_eq!(place(minima).origin, [5.5, 7.0, 8.5]);
    assert_eq!(
        place(&format!("{minima}centerings: node node node\n")).origin,
        [5.0, 6.0, 7.0]
    );
}

#[test]
fn nrrd_channels() {
    let first = |fields: &str| {
        let image = nrrd(fields, 24).unwrap();
        (
            image.data.shape().to_vec(),
            image.data.iter().take(3).copied().collect::<Vec<f32>>(),
        )
    };
    let frame = "space: LPS\nspace directions:";
    let fast = "dimension: 4\nsizes: 3 2 2 2\nkinds: RGB-color domain domain domain\n";
    assert_eq!(first(fast), (vec![3, 2, 2, 2], vec![0.0, 3.0, 6.0]));
    let slow = format!("dimension: 4\nsizes: 2 2 2 3\n{frame} (1,0,0) (0,1,0) (0,0,1) none\nkinds: domain domain domain list\n");
    assert_eq!(first(&slow), (vec![3, 2, 2, 2], vec![0.0, 1.0, 2.0]));
    let middle = format!("dimension: 4\nsizes: 2 3 2 2\n{frame} (1, 0, 0) none (0, 1, 0) (0, 0, 1)\nkinds: domain vector domain domain\n");
    assert_eq!(first(&middle), (vec![3, 2, 2, 2], vec![0.0, 1.0, 6.0]));
    assert_eq!(first("dimension: 4\nsizes: 2 2 2 3\n").0, [3, 2, 2, 2]);
}

#[test]
fn nrrd_encodings_and_detached_files() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let fields = "NRRD0004\ntype: short\nendian: big\ndimension: 3\nsizes: 2 1 2\n";
    let expected = [1.0, -2.0, 300.0, 4.0];
    let raw: Vec<u8> = [1i16, -2, 300, 4]
        .iter()
        .flat_map(|v| v.to_be_bytes())
        .collect();
    put(
        "text.nrrd",
        format!("{fields}encoding: ascii\n\n1 -2\n300, 4\n").as_bytes(),
    );
    put(
        "hex.nrrd",
        format!("{fields}encoding: hex\n\n0001fffe\n012c0004").as_bytes(),
    );
    put("other.raw", &[&[9; 5], &raw[..]].concat());
    put(
        "skip.nhdr",
        format!("{fields}encoding: raw\nbyte skip: 5\ndata file: other.raw\n").as_bytes(),
    );
    put(
        "end.nhdr",
        format!("{fields}encoding: raw\nbyte skip: -1\ndatafile: other.raw\n\n").as_bytes(),
    );
    put("s07.raw", &raw[..4]);
    put("s08.raw", &raw[4..]);
    put(
        "list.nhdr",
        format!("{fields}encoding: raw\ndata file: LIST\ns07.raw\ns08.raw\n").as_bytes(),
    );
    put(
        "pattern.nhdr",
        format!("{fields}encoding: raw\ndata file: s%02d.raw 7 8 1\n").as_bytes(),
    );
    put(
        "lines.nrrd",
        &[
            format!("{fields}encoding: raw\nline skip: 1\n\na line\n").as_bytes(),
            &raw,
        ]
        .concat(),
    );
    put(
        "crlf.nrrd",
        &[
            format!("{fields}encoding: raw\n\n")
                .replace('\n', "\r\n")
                .as_bytes(),
            &raw,
        ]
        .concat(),
    );
    for name in [
        "text.nrrd",
        "hex.nrrd",
        "skip.nhdr",
        "end.nhdr",
        "list.nhdr",
        "pattern.nhdr",
        "lines.nrrd",
        "crlf.nrrd",
    ] {
        let image = read_image(&folder.path().join(name)).unwrap();
        assert_eq!(image.data.as_slice().unwrap(), expected, "{name}");
    }
}

#[test]
fn what_is_wrong_with_an_nrrd_is_said() {
    for (fields, fault) in [
        ("sizes: 2 2 2\n", "`dimension`"),
        (
            "dimension: 3\nsizes: 2 2\n",
            "sizes is `2 2`, expected 3 numbers",
        ),
        ("dimension: 3\nsizes: 2 0 2\n", "axis 1 has size 0"),
        (
            "dimension: 3\nsizes: 2 2 2\nspace: LPS\nspace directions: (1,0,0) (1,0,0) (0,0,1)\n",
            "do not span space",
        ),
        (
            "dimension: 3\nsizes: 4000000000 4000000000 4000000000\n",
            "more voxels than the file can hold",
        ),
        (
            "dimension: 3\nsizes: 9000 9000 9000\n",
            "more voxels than the file can hold",
        ),
        (
            "dimension: 3\nsizes: 2 2 2\nspace directions: (1,0,0) (0,1,0)\n",
            "2 space directions for 3 axes",
        ),
        ("dimension: 5\nsizes: 2 2 2 2 2\n", "axes of space"),
    ] {
        let message = nrrd(fields, 8).unwrap_err().to_string();
        assert!(
            message.contains(fault) && message.contains("a.nrrd"),
            "{message}"
        );
    }
    let missing = read(
        "a.nhdr",
        "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 2 2\nencoding: raw\ndata file: gone.raw\n",
        &[],
    );
    assert!(missing.unwrap_err().to_string().contains("gone.raw"));
}

#[test]
fn metaimage_fields() {
    let head = "ObjectType = Image\nNDims = 3\nDimSize = 2 1 2\n";
    let raw: Vec<u8> = [1i16, -2, 300, 4]
        .iter()
        .flat_map(|v| v.to_be_bytes())
        .collect();
    let big = format!("{head}ElementByteOrderMSB = True\nElementSize = 1 2 3\nPosition = 4 5 6\nElementType = MET_SHORT\nElementDataFile = LOCAL\n");
    let image = read("a.mha", &big, &raw).unwrap();
    assert_eq!(image.data.as_slice().unwrap(), [1.0, -2.0, 300.0, 4.0]);
    assert_eq!(image.geometry.spacing, [3.0, 2.0, 1.0]);
    assert_eq!(image.geometry.origin, [4.0, 5.0, 6.0]);
    let channels = format!(
        "{head}ElementNumberOfChannels = 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    );
    let image = read("a.mha", &channels, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    assert_eq!(image.data.shape(), [2, 2, 1, 2]);
    assert_eq!(
        image.data.as_slice().unwrap(),
        [1.0, 3.0, 5.0, 7.0, 2.0, 4.0, 6.0, 8.0]
    );
    let four = "NDims = 4\nDimSize = 2 1 1 3\nElementSpacing = 1 2 3 9\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n";
    let image = read("a.mha", four, &[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!(
        (image.data.shape(), image.geometry.spacing),
        (&[3, 1, 1, 2][..], vec![3.0, 2.0, 1.0])
    );
    let text = format!("{head}BinaryData = False\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n1.5 2 -3e2 4\n");
    assert_eq!(
        read("a.mha", &text, &[]).unwrap().data.as_slice().unwrap(),
        [1.5, 2.0, -300.0, 4.0]
    );
    for (header, fault) in [
        ("NDims = 3\nElementDataFile = LOCAL\n", "DimSize"),
        ("NDims = 2\nDimSize = 90000 90000\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n", "more voxels"),
        ("NDims = 2\nDimSize = 2 2\nElementSpacing = 0 1\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n", "spacing"),
        ("NDims = 2\nDimSize = 2 2\nElementType = MET_STRING\nElementDataFile = LOCAL\n", "MET_STRING"),
    ] {
        let message = read("a.mha", header, &[0; 4]).unwrap_err().to_string();
        assert!(message.contains(fault), "{message}");
    }
}

#[test]
fn values_of_several_channels_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    for shape in [vec![3, 2, 4, 5], vec![2, 4, 5]] {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|i| i as f32 / 7.0 - 2.0).collect();
        let image = Image {
            data: ArrayD::from_shape_vec(IxDyn(&shape), values).unwrap(),
            geometry: Geometry::unit(shape.len() - 1),
        };
        for ending in ["nrrd", "nhdr", "mha", "mhd", "nii.gz"] {
            let path = folder.path().join(format!("a.{ending}"));
            write_image(&path, &image).unwrap();
            let back = read_image(&path).unwrap();
            assert_eq!(back.data.as_slice(), image.data.as_slice(), "{ending}");
            assert_eq!(back.channels(), image.channels(), "{ending}");
        }
    }
    let error = write_image(
        Path::new("nowhere/a.png"),
        &Image {
            data: ArrayD::zeros(IxDyn(&[1, 2, 2])),
            geometry: Geometry::unit(2),
        },
    );
    assert!(error.unwrap_err().to_string().contains("use .nii.gz"));
}

#[test]
fn metaimage_with_a_list_of_slices() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    put("b.raw", &[1, 2]);
    put("a.raw", &[3, 4]);
    let head = "NDims = 3\nDimSize = 2 1 2\nElementType = MET_UCHAR\nElementDataFile = LIST";
    let path = folder.path().join("list.mhd");
    for (list, expected) in [
        ("\nb.raw\na.raw\n", [1.0, 2.0, 3.0, 4.0]),
        (" 2D\na.raw\nb.raw", [3.0, 4.0, 1.0, 2.0]),
    ] {
        put("list.mhd", format!("{head}{list}").as_bytes());
        let image = read_image(&path).unwrap();
        assert_eq!(image.data.as_slice().unwrap(), expected);
        assert_eq!(image.data.shape(), [1, 2, 1, 2]);
    }
    for (list, fault) in [
        ("\n", "no file is listed"),
        ("\na.raw\nb.raw\na.raw\n", "cannot be shared by 3 files"),
        ("\na.raw\nc.raw\n", "c.raw"),
    ] {
        put("list.mhd", format!("{head}{list}").as_bytes());
        let error = read_image(&path).unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn numpy_arrays_of_half_precision() {
    for (kind, order) in [("<f2", false), (">f2", true)] {
        let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': (1, 3), }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        // 1, -2.5 and the least number above 0.
        for number in [0x3c00u16, 0xc100, 0x0001] {
            let two = number.to_le_bytes();
            bytes.extend(if order { [two[1], two[0]] } else { two });
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        std::fs::write(&path, bytes).unwrap();
        let image = read_image(&path).unwrap();
        assert_eq!(image.data.as_slice().unwrap(), [1.0, -2.5, 2f32.powi(-24)]);
    }
}
