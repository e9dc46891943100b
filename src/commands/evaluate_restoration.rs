//! `evaluate restoration`: likeness of two folders of pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use image::{DynamicImage, RgbImage};
use serde_json::{json, Map, Value};

use crate::cli::args::EvaluateRestorationArgs;
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::run_folder::write_json;
use crate::metrics::restoration::{
    ciede2000, haze_density, psnr, ssim, Channels, MetricError, Window,
};

const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "bmp"];

type Measure = fn(&RgbImage, &RgbImage, u32) -> Result<f64, MetricError>;

/// Column, its convention, how it is computed. The values of one column compare; two conventions do not.
const MEASURES: [(&str, &str, Measure); 8] = [
    (
        "psnr_rgb",
        "dB, RGB, range 255 (scikit-image)",
        |a, b, crop| psnr(a, b, Channels::Rgb, crop),
    ),
    (
        "psnr_y",
        "dB, Y of BT.601 in studio range, not rounded, range 255",
        |a, b, crop| psnr(a, b, Channels::YStudio, crop),
    ),
    (
        "psnr_y_full",
        "dB, Y over 0 to 255, rounded (OpenCV's grey)",
        |a, b, crop| psnr(a, b, Channels::YFull, crop),
    ),
    (
        "ssim_rgb",
        "RGB, Gaussian 11x11 with deviation 1.5, inside the picture (Wang et al. 2004)",
        |a, b, crop| ssim(a, b, Channels::Rgb, Window::Gaussian, crop),
    ),
    (
        "ssim_rgb_win7",
        "RGB, uniform 7x7, sample covariance (scikit-image's default, UVM-Net's report)",
        |a, b, crop| ssim(a, b, Channels::Rgb, Window::Uniform(7), crop),
    ),
    (
        "ssim_y",
        "as ssim_rgb on Y in studio range",
        |a, b, crop| ssim(a, b, Channels::YStudio, Window::Gaussian, crop),
    ),
    ("ciede2000", "mean colour difference, 0 is equal", ciede2000),
    (
        "haze",
        "of the prediction alone: mean dark channel 15x15 (He et al. 2009), 0 to 1, clear is near 0",
        |a, _, _| Ok(haze_density(a).map_or(f64::NAN, |h| h.dark_channel)),
    ),
];

/// Scores a folder and prints and writes what was asked for.
pub fn restoration(args: &EvaluateRestorationArgs, printer: &Printer) -> Result<()> {
    for (option, folder) in [("--pred", &args.pred), ("--ref", &args.reference)] {
        if !folder.is_dir() {
            let message = format!("{option} {}: no such folder", folder.display());
            return Err(Misuse::error(message));
        }
    }
    let (predictions, references) = (pictures(&args.pred)?, pictures(&args.reference)?);
    ensure!(
        !references.is_empty(),
        "{} holds no pictures ({})",
        args.reference.display(),
        ENDINGS.join(", ")
    );
    let mut bar = Progress::new(printer, "evaluating", references.len() as u64);
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for (name, reference) in &references {
        match score(args, name, predictions.get(name), reference) {
            Ok(values) => rows.push((name.clone(), values)),
            Err(error) => failures.push(format!("{error:#}")),
        }
        bar.step(String::new);
    }
    bar.finish();
    for (_, path) in predictions
        .iter()
        .filter(|(name, _)| !references.contains_key(*name))
    {
        failures.push(format!(
            "{} has no reference of that name in {}",
            path.display(),
            args.reference.display()
        ));
    }
    if !rows.is_empty() {
        let means = means(&rows);
        if let Some(path) = &args.json {
            write_json(path, &summary(args.crop_border, &rows, &means))?;
        }
        printer.data(&table(args.crop_border, &rows, &means));
    }
    if failures.is_empty() {
        return Ok(());
    }
    for failure in &failures {
        printer.warning(failure);
    }
    bail!(
        "{} picture(s) could not be scored: {}",
        failures.len(),
        failures[0]
    )
}

fn score(
    args: &EvaluateRestorationArgs,
    name: &str,
    prediction: Option<&PathBuf>,
    reference: &Path,
) -> Result<Vec<f64>> {
    let prediction = prediction.with_context(|| {
        format!(
            "{} is missing: no picture of that name ({}) in {}",
            name,
            ENDINGS.join(", "),
            args.pred.display()
        )
    })?;
    measures(&read(prediction)?, &read(reference)?, args.crop_border)
        .with_context(|| format!("{} against {}", prediction.display(), reference.display()))
}

/// A value for each column of [`table`].
pub(super) fn measures(a: &RgbImage, b: &RgbImage, crop: u32) -> Result<Vec<f64>, MetricError> {
    let values = MEASURES.iter().map(|(_, _, measure)| measure(a, b, crop));
    values.collect()
}

/// The mean of each column.
pub(super) fn means(rows: &[(String, Vec<f64>)]) -> Vec<f64> {
    (0..MEASURES.len())
        .map(|m| rows.iter().map(|(_, v)| v[m]).sum::<f64>() / rows.len() as f64)
        .collect()
}

/// 8-bit pictures alone: the conventions are made for them, and a silent reduction would change the numbers.
fn read(path: &Path) -> Result<RgbImage> {
    let image = image::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    match image {
        DynamicImage::ImageRgb8(image) => Ok(image),
        DynamicImage::ImageLuma8(_) => Ok(image.to_rgb8()),
        DynamicImage::ImageRgba8(ref rgba) if rgba.pixels().all(|p| p.0[3] == u8::MAX) => {
            Ok(image.to_rgb8())
        }
        other => bail!(
            "{} holds {:?}, expected 8 bits a channel, grey or RGB, nothing transparent",
            path.display(),
            other.color()
        ),
    }
}

/// Pictures of a folder by name without ending.
fn pictures(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let cannot = || format!("cannot read {}", folder.display());
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        let known = ending.is_some_and(|e| ENDINGS.contains(&e.as_str()));
        let Some(stem) = path.file_stem().filter(|_| known && path.is_file()) else {
            continue;
        };
        let name = stem.to_string_lossy().into_owned();
        if let Some(first) = found.insert(name, path.clone()) {
            bail!(
                "{} and {} differ only in their endings; leave one",
                first.display(),
                path.display()
            );
        }
    }
    Ok(found)
}

/// The scores as text, with their conventions.
pub(super) fn table(crop: u32, rows: &[(String, Vec<f64>)], means: &[f64]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count());
    let width = width.max().unwrap_or(0).max("picture".len());
    let line = |name: &str, cells: Vec<String>| {
        let cells = cells.iter().zip(&MEASURES);
        let cells =
            cells.map(|(cell, (column, _, _))| format!("  {cell:>w$}", w = column.len().max(7)));
        format!("{name:width$}{}", cells.collect::<String>())
    };
    let numbers = |values: &[f64]| values.iter().map(|v| format!("{v:.4}")).collect();
    let mut lines: Vec<String> = MEASURES
        .iter()
        .map(|(column, convention, _)| format!("{column:13}  {convention}"))
        .collect();
    lines.push(format!(
        "8-bit pictures, {crop} pixel(s) left out on each side\n"
    ));
    lines.push(line(
        "picture",
        MEASURES.iter().map(|(c, _, _)| c.to_string()).collect(),
    ));
    lines.extend(
        rows.iter()
            .map(|(name, values)| line(name, numbers(values))),
    );
    lines.push(line("mean", numbers(means)));
    lines.join("\n")
}

/// The scores as JSON, with their conventions.
pub(super) fn summary(crop: u32, rows: &[(String, Vec<f64>)], means: &[f64]) -> Value {
    // JSON has no infinity, which equal pictures have for PSNR
    let number = |v: f64| match v.is_finite() {
        true => json!(v),
        false if v > 0.0 => json!("Infinity"),
        false => Value::Null,
    };
    let named = |values: &[f64]| -> Map<String, Value> {
        let pairs = MEASURES.iter().zip(values);
        pairs
            .map(|((c, _, _), v)| (c.to_string(), number(*v)))
            .collect()
    };
    let conventions = MEASURES
        .iter()
        .map(|(c, text, _)| (c.to_string(), json!(text)));
    let pictures = rows
        .iter()
        .map(|(name, v)| (name.clone(), Value::Object(named(v))));
    json!({
        "conventions": conventions.collect::<Map<_, _>>(),
        "crop_border": crop,
        "pictures": pictures.collect::<Map<_, _>>(),
        "mean": named(means),
    })
}
