//! Measures of restored pictures against scikit-image's, OpenCV's and UVM-Net's numbers.

use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;
use vision_mamba::metrics::restoration::{psnr, ssim, Channels, Window};

use crate::checks::{Checks, Fallible, Worst};

/// Float64 on both sides.
const EXACT: f64 = 1e-9;
/// The helper works in float32, where its variances are small differences of large numbers: on these pictures it is up to
/// 7.2e-5 from itself in float64.
const SINGLE: f64 = 1e-4;

/// `values.json`, and the pictures it names below `clean`, `hazy` and `restored`.
pub fn check(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let values: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("values.json"))?)?;
    for (name, kinds) in values.as_object().ok_or("values.json is no object")? {
        if name == "_degenerate" {
            checks.run(name, || {
                let expected = kinds["constant_off_by_one_psnr"]
                    .as_f64()
                    .ok_or("no number")?;
                let grey = |v| RgbImage::from_pixel(32, 32, Rgb([v; 3]));
                let mut worst = Worst::default();
                let found = psnr(&grey(100), &grey(101), Channels::Rgb, 0)?;
                worst.number("constant_off_by_one_psnr", found, expected, EXACT);
                worst.verdict()
            });
        } else if !name.starts_with('_') {
            for (kind, expected) in kinds.as_object().ok_or("a picture's entry is no object")? {
                if folder.join(kind).is_dir() {
                    checks.run(&format!("{name}/{kind}"), || {
                        picture(folder, name, kind, expected)
                    });
                }
            }
        }
    }
    Ok(())
}

fn picture(folder: &Path, name: &str, kind: &str, expected: &Value) -> Fallible<String> {
    use {Channels::*, Window::*};
    let open = |kind: &str| -> Fallible<RgbImage> {
        Ok(image::open(folder.join(kind).join(format!("{name}.png")))?.to_rgb8())
    };
    let (image, clean) = (open(kind)?, open("clean")?);
    let decibels = |channels| psnr(&image, &clean, channels, 0);
    let likeness = |channels, window| ssim(&image, &clean, channels, window, 0);
    let mut worst = Worst::default();
    for (key, found, tolerance) in [
        ("psnr_data_range_255", decibels(Rgb)?, EXACT),
        ("y_studio_psnr_255", decibels(YStudio)?, EXACT),
        (
            "y_studio_rounded_psnr_255",
            decibels(YStudioRounded)?,
            EXACT,
        ),
        ("y_fullrange_cv2_psnr_255", decibels(YFull)?, EXACT),
        ("ssim_default_win7_255", likeness(Rgb, Uniform(7))?, EXACT),
        ("ssim_default_win11_255", likeness(Rgb, Uniform(11))?, EXACT),
        ("ssim_gaussian_255", likeness(Rgb, Gaussian)?, EXACT),
        (
            "ssim_gaussian_sample_cov_255",
            likeness(Rgb, GaussianSample)?,
            EXACT,
        ),
        ("ssim_valid_gaussian11_255", likeness(Rgb, Gaussian)?, EXACT),
        (
            "y_studio_ssim_gaussian_255",
            likeness(YStudio, Gaussian)?,
            EXACT,
        ),
        (
            "y_fullrange_cv2_ssim_gaussian_255",
            likeness(YFull, Gaussian)?,
            EXACT,
        ),
        (
            "ssim_uvm_helper_zero_padded_gaussian11_unit",
            likeness(Rgb, GaussianZeroPadded)?,
            SINGLE,
        ),
    ] {
        let theirs = expected[key].as_f64().ok_or_else(|| format!("no {key}"))?;
        worst.number(key, found, theirs, tolerance);
    }
    worst.verdict()
}
