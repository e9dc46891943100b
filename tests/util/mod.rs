//! What the integration tests share: small data sets made on the spot, and the program as a person would start it.

#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{GrayImage, Luma};

/// The built program, with few threads so that tests can run side by side.
pub fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vision-mamba"));
    command
        .args(args)
        .args(["--threads", "1", "--device", "cpu"]);
    command
}

/// What a finished program left behind.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Outcome {
    pub fn expect_success(self) -> Self {
        assert_eq!(
            self.code,
            Some(0),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Fails with `code`, and the line that starts with `error:` holds every one of `words`.
    pub fn expect_failure(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        let errors: Vec<&str> = self
            .stderr
            .lines()
            .filter(|l| l.starts_with("error:"))
            .collect();
        assert_eq!(
            errors.len(),
            1,
            "one error line expected in:\n{}",
            self.stderr
        );
        for word in words {
            assert!(
                errors[0].contains(word),
                "'{word}' is not in: {}",
                errors[0]
            );
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// What a JSON file holds.
pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

pub fn run(args: &[&str]) -> Outcome {
    program(args).output().unwrap().into()
}

/// An nnU-Net data set of small PNGs: a bright disc (label 1) with a dark core (label 2) on noise.
pub fn png_dataset(root: &Path, cases: usize) -> PathBuf {
    let dir = root.join("Dataset900_Discs");
    for sub in ["imagesTr", "labelsTr", "imagesTs", "labelsTs"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    let json = serde_json::json!({
        "name": "Dataset900_Discs", "channel_names": {"0": "MR"},
        "labels": {"background": 0, "disc": 1, "core": 2},
        "file_ending": ".png", "numTraining": cases,
    });
    fs::write(
        dir.join("dataset.json"),
        serde_json::to_string_pretty(&json).unwrap(),
    )
    .unwrap();
    for case in 0..cases + 2 {
        let (image, label) = disc(case as u32, 44, 38);
        let part = if case < cases { "Tr" } else { "Ts" };
        image
            .save(dir.join(format!("images{part}/disc_{case:03}_0000.png")))
            .unwrap();
        label
            .save(dir.join(format!("labels{part}/disc_{case:03}.png")))
            .unwrap();
    }
    dir
}

fn disc(seed: u32, width: u32, height: u32) -> (GrayImage, GrayImage) {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let mut noise = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as f32 / 255.0
    };
    let (cx, cy) = (14.0 + 16.0 * noise(), 12.0 + 14.0 * noise());
    let mut image = GrayImage::new(width, height);
    let mut label = GrayImage::new(width, height);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let r = (x as f32 - cx).hypot(y as f32 - cy);
        let (value, class) = match r {
            r if r < 4.0 => (20.0, 2),
            r if r < 9.0 => (200.0, 1),
            _ => (90.0, 0),
        };
        *pixel = Luma([(value + 30.0 * noise()) as u8]);
        label.put_pixel(x, y, Luma([class]));
    }
    (image, label)
}

/// A NIfTI-1 header for float32 or uint8 data of `size` (x, y, z), with an oblique sform and a matching qform code.
pub fn oblique_header(size: [i16; 3], datatype: i16, bitpix: i16) -> Vec<u8> {
    let mut h = vec![0u8; 352];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    for (i, d) in [3, size[0], size[1], size[2], 1, 1, 1, 1]
        .iter()
        .enumerate()
    {
        put(40 + 2 * i, &d.to_le_bytes());
    }
    put(70, &datatype.to_le_bytes());
    put(72, &bitpix.to_le_bytes());
    for (i, p) in [1.0f32, 0.8, 0.9, 2.5, 1.0, 1.0, 1.0, 1.0]
        .iter()
        .enumerate()
    {
        put(76 + 4 * i, &p.to_le_bytes());
    }
    put(108, &352f32.to_le_bytes());
    put(112, &1f32.to_le_bytes());
    put(123, &[10]); // millimetres, seconds
    put(252, &1i16.to_le_bytes());
    put(254, &1i16.to_le_bytes());
    // A rotation of 20 degrees about the first axis.
    let (s, c) = 20f32.to_radians().sin_cos();
    put(256, &(10f32.to_radians()).sin().to_le_bytes());
    put(
        268,
        &[12.5f32, -7.25, 30.125]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect::<Vec<_>>(),
    );
    let rows = [
        [0.8, 0.0, 0.0, 12.5],
        [0.0, 0.9 * c, -2.5 * s, -7.25],
        [0.0, 0.9 * s, 2.5 * c, 30.125],
    ];
    put(
        280,
        &rows
            .iter()
            .flatten()
            .flat_map(|v: &f32| v.to_le_bytes())
            .collect::<Vec<_>>(),
    );
    put(344, b"n+1\0");
    h
}

/// A 3-D data set of oblique NIfTI volumes holding a bright box (label 1).
pub fn nifti_dataset(root: &Path, cases: usize) -> PathBuf {
    let dir = root.join("Dataset901_Boxes");
    for sub in ["imagesTr", "labelsTr", "imagesTs"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    let json = serde_json::json!({
        "channel_names": {"0": "MR"}, "labels": {"background": 0, "box": 1},
        "file_ending": ".nii", "numTraining": cases,
    });
    fs::write(dir.join("dataset.json"), json.to_string()).unwrap();
    let size = [18i16, 17, 9];
    for case in 0..cases + 1 {
        let mut image = oblique_header(size, 16, 32);
        let mut label = oblique_header(size, 2, 8);
        for z in 0..size[2] {
            for y in 0..size[1] {
                for x in 0..size[0] {
                    let inside =
                        (4..12).contains(&x) && (3..11).contains(&y) && (2..7).contains(&z);
                    let value = if inside { 5.0f32 } else { 0.0 }
                        + ((x * 7 + y * 3 + z + case as i16) % 5) as f32 * 0.2;
                    image.extend(value.to_le_bytes());
                    label.push(u8::from(inside));
                }
            }
        }
        let part = if case < cases { "Tr" } else { "Ts" };
        fs::write(dir.join(format!("images{part}/box_{case}_0000.nii")), image).unwrap();
        if case < cases {
            fs::write(dir.join(format!("labels{part}/box_{case}.nii")), label).unwrap();
        }
    }
    dir
}

/// Paths as the arguments the program takes.
pub fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Options of a training run that ends in seconds.
pub const QUICK: [&str; 10] = [
    "--model",
    "umamba_bot_tiny_2d",
    "--epochs",
    "2",
    "--batch-size",
    "2",
    "--validation-steps",
    "1",
    "--patch-size",
    "32x32",
];

/// Steps an epoch that go with [`QUICK`].
pub const FEW_STEPS: [&str; 2] = ["--steps-per-epoch", "6"];
