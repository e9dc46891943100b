//! Overlays: an image, its reference and its prediction side by side, labels as translucent colours with an outline.

use image::imageops::{self, FilterType};
use image::{GrayImage, Luma, Rgb, RgbImage};
use ndarray::Array2;

use super::palette::PALETTE;
use super::text;

/// Panels are enlarged by a whole factor to at least this height ...
const SMALLEST_HEIGHT: u32 = 384;
/// ... but not beyond this width.
const LARGEST_WIDTH: u32 = 1280;
/// How much of a label's colour covers the image.
const FILL: f32 = 0.45;
/// Shares of the grey values that the window leaves out at either end: a few bright pixels would darken all others.
const CLIPPED: f64 = 0.005;
const GAP: u32 = 10;
const TITLE: u32 = 18;
const CAPTION: u32 = 15;
const LINE: u32 = 24;

/// The colours of the labels of one picture: named labels first, then those that only occur in the maps.
struct Legend(Vec<(i16, String)>);

impl Legend {
    fn new(names: &[(i16, String)], maps: &[&Array2<i16>]) -> Self {
        let mut entries: Vec<(i16, String)> = names
            .iter()
            .filter(|(label, _)| *label != 0)
            .cloned()
            .collect();
        let mut unnamed: Vec<i16> = maps
            .iter()
            .flat_map(|m| m.iter().copied())
            .filter(|&v| v != 0)
            .collect();
        unnamed.sort_unstable();
        unnamed.dedup();
        unnamed.retain(|v| entries.iter().all(|(label, _)| label != v));
        entries.extend(unnamed.into_iter().map(|v| (v, format!("label {v}"))));
        Self(entries)
    }

    /// None for the background. More labels than colours share colours.
    fn colour(&self, label: i16) -> Option<Rgb<u8>> {
        let place = self.0.iter().position(|(l, _)| *l == label)?;
        Some(Rgb(PALETTE[place % PALETTE.len()]))
    }
}

/// The image, the reference (where there is one) and the prediction side by side, with captions, `title` above and a legend below.
/// `names` are the labels' names; label 0 is background and stays clear. Pixels that are not numbers are black. Where a label map is
/// smaller than the image, the rest of its panel shows the bare image.
pub fn triptych(
    image: &Array2<f32>,
    reference: Option<&Array2<i16>>,
    prediction: &Array2<i16>,
    names: &[(i16, String)],
    title: &str,
) -> RgbImage {
    let maps: Vec<&Array2<i16>> = reference.into_iter().chain([prediction]).collect();
    let legend = Legend::new(names, &maps);
    let factor = enlargement(image.dim());
    let grey = enlarged(&windowed(image), factor);

    let mut panels = vec![("image", to_rgb(&grey))];
    if let Some(reference) = reference {
        panels.push(("reference", overlaid(&grey, reference, &legend, factor)));
    }
    panels.push(("prediction", overlaid(&grey, prediction, &legend, factor)));
    arranged(&panels, &legend, title)
}

/// Several pictures in a grid of `columns`, each in the upper left corner of its cell, on white.
pub fn montage(pictures: &[RgbImage], columns: usize) -> RgbImage {
    let columns = columns.clamp(1, pictures.len().max(1));
    let rows: Vec<&[RgbImage]> = pictures.chunks(columns).collect();
    let cell = pictures.iter().map(RgbImage::width).max().unwrap_or(0);
    let heights: Vec<u32> = rows
        .iter()
        .map(|row| row.iter().map(RgbImage::height).max().unwrap_or(0))
        .collect();
    let gaps = |n: usize| GAP * (n.max(1) as u32 - 1);
    let width = cell * columns as u32 + gaps(columns);
    let mut page = text::blank(
        width.max(1),
        (heights.iter().sum::<u32>() + gaps(rows.len())).max(1),
    );
    let mut y = 0;
    for (row, height) in rows.iter().zip(&heights) {
        for (column, picture) in row.iter().enumerate() {
            imageops::replace(
                &mut page,
                picture,
                i64::from(column as u32 * (cell + GAP)),
                i64::from(y),
            );
        }
        y += height + GAP;
    }
    page
}

/// The whole factor by which a panel grows.
fn enlargement((rows, columns): (usize, usize)) -> u32 {
    let most = (LARGEST_WIDTH / (columns as u32).max(1)).max(1);
    SMALLEST_HEIGHT
        .div_ceil((rows as u32).max(1))
        .clamp(1, most)
}

/// Grey values between two percentiles of the finite values; what is not a number is black.
fn windowed(image: &Array2<f32>) -> GrayImage {
    let mut values: Vec<f32> = image.iter().copied().filter(|v| v.is_finite()).collect();
    values.sort_unstable_by(f32::total_cmp);
    let at = |share: f64| {
        values
            .get(((values.len().max(1) - 1) as f64 * share).round() as usize)
            .copied()
            .unwrap_or(0.0)
    };
    let (mut low, mut high) = (f64::from(at(CLIPPED)), f64::from(at(1.0 - CLIPPED)));
    if high <= low {
        // Nearly all pixels have one value: the few others are what there is to see.
        (low, high) = (f64::from(at(0.0)), f64::from(at(1.0)));
    }
    let span = if high > low { high - low } else { 1.0 };
    let (rows, columns) = image.dim();
    GrayImage::from_fn(columns as u32, rows as u32, |x, y| {
        match image[[y as usize, x as usize]] {
            v if v.is_nan() => Luma([0]),
            v => Luma([((f64::from(v) - low) / span * 255.0)
                .round()
                .clamp(0.0, 255.0) as u8]),
        }
    })
}

fn enlarged(grey: &GrayImage, factor: u32) -> GrayImage {
    imageops::resize(
        grey,
        grey.width() * factor,
        grey.height() * factor,
        FilterType::Triangle,
    )
}

fn to_rgb(grey: &GrayImage) -> RgbImage {
    RgbImage::from_fn(grey.width(), grey.height(), |x, y| {
        Rgb([grey.get_pixel(x, y).0[0]; 3])
    })
}

/// The grey image under the colours of `labels`, each region outlined inside its border.
fn overlaid(grey: &GrayImage, labels: &Array2<i16>, legend: &Legend, factor: u32) -> RgbImage {
    let label = |x: i64, y: i64| {
        let place = (
            usize::try_from(y).ok()? / factor as usize,
            usize::try_from(x).ok()? / factor as usize,
        );
        labels.get(place).copied()
    };
    let pen = i64::from(factor.div_ceil(3).min(2));
    let mut panel = to_rgb(grey);
    for (x, y, pixel) in panel.enumerate_pixels_mut() {
        let (x, y) = (i64::from(x), i64::from(y));
        let Some(own) = label(x, y) else { continue };
        let Some(colour) = legend.colour(own) else {
            continue;
        };
        // The border of the map itself is no outline.
        let differs = |dx: i64, dy: i64| label(x + dx, y + dy).is_some_and(|other| other != own);
        let edge = differs(pen, 0) || differs(-pen, 0) || differs(0, pen) || differs(0, -pen);
        let share = if edge { 1.0 } else { FILL };
        for (value, target) in pixel.0.iter_mut().zip(colour.0) {
            *value = (f32::from(*value) * (1.0 - share) + f32::from(target) * share).round() as u8;
        }
    }
    panel
}

/// Title, captioned panels in a row, legend.
fn arranged(panels: &[(&str, RgbImage)], legend: &Legend, title: &str) -> RgbImage {
    let (width, height) = panels.first().map_or((1, 1), |(_, p)| p.dimensions());
    let count = panels.len() as u32;
    let page_width = count * width + (count + 1) * GAP;
    let entries = placed(legend, page_width);
    let lines = entries.last().map_or(0, |e| e.line + 1);
    let top = GAP + LINE + LINE;
    let mut page = text::blank(
        page_width,
        top + height + GAP + lines * LINE + if lines > 0 { GAP / 2 } else { 0 },
    );

    text::draw(
        &mut page,
        &text::fitted(title, TITLE, true, page_width - 2 * GAP),
        GAP,
        GAP,
        TITLE,
        true,
    );
    for (i, (caption, panel)) in panels.iter().enumerate() {
        let x = GAP + i as u32 * (width + GAP);
        text::draw(
            &mut page,
            &text::fitted(caption, CAPTION, false, width),
            x,
            GAP + LINE + 2,
            CAPTION,
            false,
        );
        imageops::replace(&mut page, panel, i64::from(x), i64::from(top));
    }
    for entry in &entries {
        let y = top + height + GAP + entry.line * LINE;
        for (dx, dy) in (0..SWATCH).flat_map(|dx| (0..SWATCH).map(move |dy| (dx, dy))) {
            if let Some(pixel) = page.get_pixel_mut_checked(entry.x + dx, y + dy - 3) {
                *pixel = entry.colour;
            }
        }
        text::draw(
            &mut page,
            &entry.name,
            entry.x + SWATCH + 6,
            y,
            CAPTION,
            false,
        );
    }
    page
}

/// Side of a legend's colour square.
const SWATCH: u32 = 15;

struct Entry {
    x: u32,
    line: u32,
    colour: Rgb<u8>,
    name: String,
}

/// Places the legend's entries from left to right, in as many lines as needed.
fn placed(legend: &Legend, page_width: u32) -> Vec<Entry> {
    let (mut x, mut line) = (GAP, 0);
    let mut entries = Vec::new();
    for (label, name) in &legend.0 {
        let Some(colour) = legend.colour(*label) else {
            continue;
        };
        let name = text::fitted(
            name,
            CAPTION,
            false,
            page_width.saturating_sub(2 * GAP + SWATCH + 6),
        );
        let width = SWATCH + 6 + text::width(&name, CAPTION, false) + 18;
        if x > GAP && x + width > page_width {
            (x, line) = (GAP, line + 1);
        }
        entries.push(Entry {
            x,
            line,
            colour,
            name,
        });
        x += width;
    }
    entries
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ndarray::Array2;

    fn names(n: i16) -> Vec<(i16, String)> {
        (0..=n).map(|i| (i, format!("organ {i}"))).collect()
    }

    /// The pixel of a panel's position (row, column) in image coordinates, at the middle of the enlarged pixel.
    fn at(
        picture: &RgbImage,
        panel: u32,
        factor: u32,
        columns: u32,
        row: u32,
        column: u32,
    ) -> [u8; 3] {
        let x = GAP + panel * (columns * factor + GAP) + column * factor + factor / 2;
        picture
            .get_pixel(x, GAP + 2 * LINE + row * factor + factor / 2)
            .0
    }

    #[test]
    fn panels_show_image_reference_and_prediction() {
        let image = Array2::from_elem((16, 12), 0.0f32);
        let mut reference = Array2::zeros((16, 12));
        let mut prediction = Array2::zeros((16, 12));
        reference.slice_mut(ndarray::s![4..12, 3..9]).fill(2i16);
        prediction.slice_mut(ndarray::s![4..12, 3..9]).fill(1i16);
        let picture = triptych(&image, Some(&reference), &prediction, &names(2), "case_7");
        let factor = 24;
        assert_eq!(picture.width(), 3 * 12 * factor + 4 * GAP);
        assert!(picture.height() > 16 * factor);
        let pixel = |panel, row, column| at(&picture, panel, factor, 12, row, column);
        for panel in 0..3 {
            assert_eq!(pixel(panel, 1, 1), [0; 3], "background of panel {panel}");
        }
        assert_eq!(pixel(0, 7, 5), [0; 3]);
        let mixed = |c: [u8; 3]| c.map(|v| (f32::from(v) * FILL).round() as u8);
        assert_eq!(pixel(1, 7, 5), mixed(PALETTE[1]));
        assert_eq!(pixel(2, 7, 5), mixed(PALETTE[0]));
        // The outline lies inside the region and is opaque.
        let x = GAP + 2 * (12 * factor + GAP) + 3 * factor;
        let y = GAP + 2 * LINE + 7 * factor;
        assert_eq!(picture.get_pixel(x, y).0, PALETTE[0]);
        assert_eq!(picture.get_pixel(x - 1, y).0, [0; 3]);
    }

    #[test]
    fn title_captions_and_legend_are_there() {
        let image = Array2::from_elem((200, 200), 1.0f32);
        let labels = Array2::from_elem((200, 200), 3i16);
        let picture = triptych(&image, None, &labels, &names(3), "a title");
        let white = Rgb([255; 3]);
        assert_eq!(
            picture.width(),
            2 * 400 + 3 * GAP,
            "two panels without a reference"
        );
        assert!(
            text::inked(&picture, GAP, GAP, 60, LINE, white) > 0.05,
            "title"
        );
        assert!(
            text::inked(&picture, GAP, GAP + LINE, 40, LINE, white) > 0.05,
            "caption"
        );
        let legend = GAP + 2 * LINE + 400 + GAP;
        assert_eq!(picture.get_pixel(GAP + 5, legend + 5).0, PALETTE[0]);
        assert!(
            text::inked(&picture, GAP + SWATCH + 6, legend, 50, 18, white) > 0.05,
            "name of the first label"
        );
        for colour in &PALETTE[..3] {
            let below = imageops::crop_imm(&picture, 0, legend, picture.width(), LINE).to_image();
            assert!(
                below.pixels().any(|p| p.0 == *colour),
                "{colour:?} is missing in the legend"
            );
        }
    }

    #[test]
    fn a_window_ignores_outliers_and_what_is_no_number() {
        let mut image = Array2::from_shape_fn((20, 50), |(_, x)| x as f32);
        image[[0, 0]] = f32::NAN;
        image[[0, 1]] = f32::INFINITY;
        image[[0, 2]] = f32::NEG_INFINITY;
        image[[0, 3]] = 1e9;
        let grey = windowed(&image);
        assert_eq!(
            [0, 1, 2, 3].map(|x| grey.get_pixel(x, 0).0[0]),
            [0, 255, 0, 255]
        );
        assert_eq!(grey.get_pixel(0, 5).0[0], 0);
        assert_eq!(grey.get_pixel(49, 5).0[0], 255);
        assert!((120..136).contains(&grey.get_pixel(25, 5).0[0]));
        for constant in [f32::NAN, 0.0, 7.0, f32::MAX] {
            assert!(
                windowed(&Array2::from_elem((3, 3), constant))
                    .pixels()
                    .all(|p| p.0[0] == 0),
                "{constant}"
            );
        }
    }

    #[test]
    fn a_single_bright_pixel_is_seen() {
        let mut image = Array2::zeros((40, 40));
        image[[3, 4]] = 1.0f32;
        assert_eq!(windowed(&image).get_pixel(4, 3).0[0], 255);
    }

    #[test]
    fn small_images_grow_and_large_ones_stay() {
        assert_eq!(enlargement((101, 122)), 4);
        assert_eq!(enlargement((512, 512)), 1);
        assert_eq!(enlargement((20, 2000)), 1, "very wide");
        assert_eq!(enlargement((1, 1)), 384);
        assert_eq!(enlargement((0, 0)), 384);
    }

    #[test]
    fn awkward_input_gives_a_picture() {
        let image = Array2::from_elem((5, 7), 1.0f32);
        let small = Array2::from_elem((2, 3), -1i16);
        let picture = triptych(
            &image,
            Some(&small),
            &Array2::from_elem((9, 9), 400),
            &[],
            &"long title ".repeat(50),
        );
        assert_eq!(picture.width(), 3 * 7 * 77 + 4 * GAP);
        triptych(
            &Array2::zeros((1, 1)),
            None,
            &Array2::zeros((1, 1)),
            &names(40),
            "",
        );
        triptych(
            &Array2::zeros((0, 0)),
            None,
            &Array2::zeros((0, 0)),
            &[],
            "empty",
        );
    }

    #[test]
    fn labels_without_a_name_get_their_own_colour() {
        let legend = Legend::new(
            &names(2),
            &[&Array2::from_shape_vec((1, 3), vec![0, 9, 1]).unwrap()],
        );
        assert_eq!(legend.0.last().unwrap(), &(9, "label 9".to_string()));
        assert_eq!(legend.colour(9), Some(Rgb(PALETTE[2])));
        assert_eq!(legend.colour(0), None);
    }

    #[test]
    fn a_montage_keeps_every_picture_in_its_cell() {
        let picture = |w, h, v| RgbImage::from_pixel(w, h, Rgb([v; 3]));
        let page = montage(
            &[picture(30, 20, 1), picture(20, 40, 2), picture(30, 10, 3)],
            2,
        );
        assert_eq!(page.dimensions(), (60 + GAP, 40 + GAP + 10));
        assert_eq!(page.get_pixel(0, 0).0, [1; 3]);
        assert_eq!(page.get_pixel(30 + GAP, 39).0, [2; 3]);
        assert_eq!(page.get_pixel(29, 40 + GAP).0, [3; 3]);
        assert_eq!(page.get_pixel(0, 25).0, [255; 3]);
        assert_eq!(montage(&[], 3).dimensions(), (1, 1));
    }
}
