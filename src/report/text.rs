//! Text in pictures: one font (DejaVu Sans, compiled in), measuring and drawing.

use std::sync::OnceLock;

use image::{Rgb, RgbImage};
use plotters::backend::BitMapBackend;
use plotters::drawing::IntoDrawingArea;
use plotters::style::{register_font, FontStyle, IntoFont, RGBColor, TextStyle, BLACK};

/// The name under which plotters knows the font, and its bold kind (plotters finds a registered font by its name alone).
pub(super) const FAMILY: &str = "report";
const BOLD: &str = "report bold";

/// Almost black: the colour of all text.
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);

/// Text is drawn this many times larger and reduced: plotters places letters on whole pixels, which shows in small text.
const OVERSAMPLE: u32 = 3;

/// Makes the font known to plotters, which looks fonts up by name. True when it could be read.
pub(super) fn register() -> bool {
    static DONE: OnceLock<bool> = OnceLock::new();
    *DONE.get_or_init(|| {
        register_font(FAMILY, FontStyle::Normal, dejavu::sans::regular()).is_ok()
            && register_font(BOLD, FontStyle::Normal, dejavu::sans::bold()).is_ok()
    })
}

fn style(size: u32, bold: bool) -> TextStyle<'static> {
    register();
    TextStyle::from((if bold { BOLD } else { FAMILY }, size).into_font()).color(&BLACK)
}

/// Width of `text` in pixels.
pub(super) fn width(text: &str, size: u32, bold: bool) -> u32 {
    style(size * OVERSAMPLE, bold)
        .font
        .box_size(text)
        .map_or(0, |(w, _)| w.div_ceil(OVERSAMPLE))
}

/// `text`, cut at the end and marked with an ellipsis where it is wider than `limit` pixels.
pub(super) fn fitted(text: &str, size: u32, bold: bool, limit: u32) -> String {
    if width(text, size, bold) <= limit {
        return text.to_string();
    }
    let mut kept: Vec<char> = text.chars().collect();
    while kept.pop().is_some() {
        let cut: String = kept.iter().chain(['…'].iter()).collect();
        if width(&cut, size, bold) <= limit {
            return cut;
        }
    }
    String::new()
}

/// Draws `text` with its upper left corner at (`x`, `y`); what does not fit into the picture is cut off.
pub(super) fn draw(picture: &mut RgbImage, text: &str, x: u32, y: u32, size: u32, bold: bool) {
    // Letters reach above and below their box and a little past the measured width.
    let above = size / 2;
    let (columns, rows) = (width(text, size, bold) + size, 2 * size);
    let mut large = blank(columns * OVERSAMPLE, rows * OVERSAMPLE);
    {
        let area =
            BitMapBackend::with_buffer(&mut large, (columns * OVERSAMPLE, rows * OVERSAMPLE))
                .into_drawing_area();
        // A picture without its caption is better than none, so a failure is not passed on; the tests see that text appears.
        let _ = area.draw_text(
            text,
            &style(size * OVERSAMPLE, bold),
            (0, (above * OVERSAMPLE) as i32),
        );
    }
    let coverage = image::imageops::thumbnail(&large, columns, rows);
    for (dx, dy, shade) in coverage.enumerate_pixels() {
        let Some(row) = (y + dy).checked_sub(above) else {
            continue;
        };
        if let Some(pixel) = picture.get_pixel_mut_checked(x + dx, row) {
            let share = 1.0 - f32::from(shade.0[0]) / 255.0;
            for (value, ink) in pixel.0.iter_mut().zip([INK.0, INK.1, INK.2]) {
                *value = (f32::from(*value) * (1.0 - share) + f32::from(ink) * share).round() as u8;
            }
        }
    }
}

/// The share of a rectangle's pixels that differ from `background`: how tests see that something was drawn there.
#[cfg(test)]
pub(super) fn inked(
    picture: &RgbImage,
    x: u32,
    y: u32,
    width: u32,
    height: u32,
    background: Rgb<u8>,
) -> f64 {
    let part = image::imageops::crop_imm(picture, x, y, width, height).to_image();
    part.pixels().filter(|&&p| p != background).count() as f64 / f64::from(width * height)
}

/// A white picture.
pub(super) fn blank(width: u32, height: u32) -> RgbImage {
    RgbImage::from_pixel(width, height, Rgb([255, 255, 255]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_is_built_in_and_draws() {
        assert!(register());
        let mut picture = blank(100, 30);
        draw(&mut picture, "Dice", 2, 2, 20, false);
        let share = inked(&picture, 0, 0, 60, 30, Rgb([255; 3]));
        assert!((0.05..0.6).contains(&share), "{share}");
        assert_eq!(inked(&picture, 70, 0, 30, 30, Rgb([255; 3])), 0.0);
        // Nothing of the letters is lost above: the topmost rows of the box hold ink as they do a box further down.
        let mut lower = blank(100, 60);
        draw(&mut lower, "Dice", 2, 22, 20, false);
        assert_eq!(
            image::imageops::crop_imm(&lower, 0, 20, 100, 30).to_image(),
            picture
        );
        assert_eq!(inked(&lower, 0, 0, 100, 18, Rgb([255; 3])), 0.0);
        draw(
            &mut picture,
            "cut off at the right and below",
            80,
            25,
            20,
            false,
        );
        let mut bold = blank(100, 30);
        draw(&mut bold, "Dice", 2, 2, 20, true);
        assert!(inked(&bold, 0, 0, 60, 30, Rgb([255; 3])) > share);
    }

    #[test]
    fn long_text_is_cut_to_the_width() {
        let long = "a very long name of a case that nobody can read at once";
        let cut = fitted(long, 16, true, 120);
        assert!(
            cut.ends_with('…') && long.starts_with(cut.trim_end_matches('…')),
            "{cut}"
        );
        assert!(width(&cut, 16, true) <= 120);
        assert!(width(&cut, 16, true) > 90, "cut too much: {cut}");
        assert_eq!(fitted("short", 16, true, 120), "short");
        assert_eq!(fitted(long, 16, true, 3), "");
    }
}
