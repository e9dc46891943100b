//! `progress.png`: loss, metric, learning rate and seconds an epoch of a training run.

use std::ops::Range;

use image::RgbImage;
use plotters::chart::{ChartBuilder, LabelAreaPosition};
use plotters::coord::Shift;
use plotters::element::{Circle, PathElement};
use plotters::prelude::{BitMapBackend, DrawingArea, IntoDrawingArea, LineSeries};
use plotters::style::{Color, IntoFont, RGBColor, ShapeStyle};

use super::text::{self, FAMILY, INK};
use super::ReportError;

/// What one epoch contributes. Values that are missing or not finite leave a gap in their curve.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochRow {
    /// Number of the epoch.
    pub epoch: u64,
    /// Mean training loss.
    pub train_loss: f64,
    /// Mean validation loss.
    pub val_loss: Option<f64>,
    /// Validation scores, one or two.
    pub scores: Vec<Option<f64>>,
    /// Learning rate.
    pub lr: f64,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Size of the finished picture.
const SIZE: (u32, u32) = (1200, 820);
/// It is drawn this many times larger and reduced: plotters draws lines without smoothing.
const OVERSAMPLE: u32 = 2;
/// Height of the picture's title and of a panel's line of title and legend.
const HEADING: u32 = 40;

const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(213, 94, 0);
const PALE: RGBColor = RGBColor(150, 190, 215);
const GREEN: RGBColor = RGBColor(0, 135, 98);
const GREY: RGBColor = RGBColor(90, 90, 90);

/// One curve of a panel.
struct Curve {
    name: &'static str,
    colour: RGBColor,
    value: fn(&EpochRow) -> Option<f64>,
}

/// One of the four charts.
struct Panel {
    title: &'static str,
    /// The axis starts at 0, since the distance from it means something.
    from_zero: bool,
    curves: Vec<Curve>,
}

/// The four charts. A single score is drawn like the average of two: it is what counts.
fn panels(score: &'static str, curves: &[&'static str]) -> [Panel; 4] {
    let curve = |name, colour, value| Curve {
        name,
        colour,
        value,
    };
    let values: [fn(&EpochRow) -> Option<f64>; 2] = [
        |row| row.scores.first().copied().flatten(),
        |row| row.scores.get(1).copied().flatten(),
    ];
    let colours = match curves {
        [_] => vec![BLUE],
        _ => vec![PALE, BLUE],
    };
    let scores = curves.iter().zip(colours).zip(values);
    [
        Panel {
            title: "loss",
            from_zero: false,
            curves: vec![
                curve("training", BLUE, |row| Some(row.train_loss)),
                curve("validation", ORANGE, |row| row.val_loss),
            ],
        },
        Panel {
            title: score,
            from_zero: false,
            curves: scores
                .map(|((name, colour), value)| curve(name, colour, value))
                .collect(),
        },
        Panel {
            title: "learning rate",
            from_zero: true,
            curves: vec![curve("learning rate", GREEN, |row| Some(row.lr))],
        },
        Panel {
            title: "seconds an epoch",
            from_zero: true,
            curves: vec![curve("seconds", GREY, |row| Some(row.seconds))],
        },
    ]
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws the four charts of a run with `title` above them; `score` is the title of the second, `curves` its one or two curves.
pub fn progress_png(
    rows: &[EpochRow],
    title: &str,
    score: &'static str,
    curves: &[&'static str],
) -> Result<RgbImage, ReportError> {
    text::register();
    let (width, height) = (SIZE.0 * OVERSAMPLE, SIZE.1 * OVERSAMPLE);
    let mut large = text::blank(width, height);
    {
        let whole = BitMapBackend::with_buffer(&mut large, (width, height)).into_drawing_area();
        let (_, charts) = whole.split_vertically(HEADING * OVERSAMPLE);
        for (panel, area) in panels(score, curves)
            .iter()
            .zip(charts.split_evenly((2, 2)))
        {
            draw_panel(panel, rows, &area).map_err(|reason| ReportError::Draw {
                what: format!("chart of the {}", panel.title),
                reason,
            })?;
        }
    }
    let mut picture = image::imageops::thumbnail(&large, SIZE.0, SIZE.1);
    text::draw(
        &mut picture,
        &text::fitted(title, 18, true, SIZE.0 - 40),
        20,
        12,
        18,
        true,
    );
    Ok(picture)
}

fn draw_panel(panel: &Panel, rows: &[EpochRow], area: &Area) -> Result<(), String> {
    let scale = OVERSAMPLE as i32;
    let epochs = epoch_range(rows);
    let values = value_range(panel, rows);
    let (head, body) = area.split_vertically(HEADING * OVERSAMPLE);
    draw_head(panel, rows, &head).map_err(|e| e.to_string())?;
    // Room for the longest number beside the axis.
    let longest = ticks(&values)
        .map(|v| number(v, &values).len())
        .max()
        .unwrap_or(1) as i32;
    let mut chart = ChartBuilder::on(&body)
        .margin_left(12 * scale)
        .margin_right(20 * scale)
        .margin_bottom(6 * scale)
        .set_label_area_size(LabelAreaPosition::Left, (14 + 8 * longest) * scale)
        .set_label_area_size(LabelAreaPosition::Bottom, 40 * scale)
        .build_cartesian_2d(epochs.clone(), values.clone())
        .map_err(|e| e.to_string())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(RGBColor(255, 255, 255))
        .bold_line_style(ShapeStyle::from(&RGBColor(225, 225, 225)).stroke_width(OVERSAMPLE))
        .axis_style(ShapeStyle::from(&RGBColor(120, 120, 120)).stroke_width(OVERSAMPLE))
        .set_all_tick_mark_size(4 * scale)
        .label_style((FAMILY, 13 * scale).into_font().color(&INK))
        .axis_desc_style((FAMILY, 13 * scale).into_font().color(&INK))
        .x_desc("epoch")
        .x_labels(rows.len().clamp(1, 9))
        .y_labels(8)
        .x_label_formatter(&|v| {
            if (v - v.round()).abs() < 1e-6 {
                format!("{v:.0}")
            } else {
                String::new()
            }
        })
        .y_label_formatter(&|v| number(*v, &values))
        .draw()
        .map_err(|e| e.to_string())?;
    for curve in &panel.curves {
        let style = curve.colour.stroke_width(2 * OVERSAMPLE);
        let runs = unbroken(rows, curve.value);
        // Points too: few epochs would hardly show, and a single one has no line at all.
        let marked = rows.len() <= 40;
        for run in &runs {
            chart
                .draw_series(LineSeries::new(run.iter().copied(), style))
                .map_err(|e| e.to_string())?;
            if marked || run.len() == 1 {
                let points = run
                    .iter()
                    .map(|&point| Circle::new(point, 3 * scale, curve.colour.filled()));
                chart.draw_series(points).map_err(|e| e.to_string())?;
            }
        }
    }
    Ok(())
}

/// The line above a chart: its title on the left; where it has several curves, their names on the right, clear of the curves.
fn draw_head(
    panel: &Panel,
    rows: &[EpochRow],
    head: &Area,
) -> Result<(), Box<dyn std::error::Error>> {
    let scale = OVERSAMPLE as i32;
    let title = (FAMILY, 15 * scale).into_font().color(&INK);
    head.draw_text(&caption(panel, rows), &title, (20 * scale, 14 * scale))?;
    if panel.curves.len() < 2 {
        return Ok(());
    }
    let style = (FAMILY, 13 * scale).into_font().color(&INK);
    let mut right = head.dim_in_pixel().0 as i32 - 20 * scale;
    for curve in panel.curves.iter().rev() {
        right -= style.font.box_size(curve.name)?.0 as i32;
        head.draw_text(curve.name, &style, (right, 15 * scale))?;
        let line = [
            (right - 26 * scale, 21 * scale),
            (right - 6 * scale, 21 * scale),
        ];
        head.draw(&PathElement::new(
            line,
            curve.colour.stroke_width(3 * OVERSAMPLE),
        ))?;
        right -= 44 * scale;
    }
    Ok(())
}

/// The panel's title; says when there is nothing to show, and how many epochs had a value that is not finite.
fn caption(panel: &Panel, rows: &[EpochRow]) -> String {
    let given = |row: &EpochRow| {
        panel
            .curves
            .iter()
            .filter_map(|c| (c.value)(row))
            .collect::<Vec<f64>>()
    };
    let broken = rows
        .iter()
        .filter(|row| given(row).iter().any(|v| !drawable(v)))
        .count();
    match (rows.iter().any(|row| !given(row).is_empty()), broken) {
        (false, _) => format!("{} (no value yet)", panel.title),
        (true, 0) => panel.title.to_string(),
        (true, 1) => format!("{} (1 epoch not finite)", panel.title),
        (true, n) => format!("{} ({n} epochs not finite)", panel.title),
    }
}

/// Neither infinite nor so large that differences overflow; not so for what is no number.
fn drawable(value: &f64) -> bool {
    value.abs() <= 1e300
}

/// The finite points of a curve, split where a value is missing.
fn unbroken(rows: &[EpochRow], value: fn(&EpochRow) -> Option<f64>) -> Vec<Vec<(f64, f64)>> {
    let mut runs: Vec<Vec<(f64, f64)>> = vec![Vec::new()];
    for row in rows {
        match (value(row).filter(drawable), runs.last_mut()) {
            (Some(v), Some(run)) => run.push((row.epoch as f64, v)),
            _ => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

fn finite_values<'a>(panel: &'a Panel, rows: &'a [EpochRow]) -> impl Iterator<Item = f64> + 'a {
    panel
        .curves
        .iter()
        .flat_map(move |c| rows.iter().filter_map(c.value))
        .filter(drawable)
}

fn epoch_range(rows: &[EpochRow]) -> Range<f64> {
    let low = rows.iter().map(|r| r.epoch).min().unwrap_or(0) as f64;
    let high = rows.iter().map(|r| r.epoch).max().unwrap_or(1) as f64;
    let room = if high > low { (high - low) * 0.02 } else { 0.5 };
    low - room..high + room
}

/// The smallest range with all values and a little room, never empty.
fn value_range(panel: &Panel, rows: &[EpochRow]) -> Range<f64> {
    let (mut low, high) = finite_values(panel, rows)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
            (low.min(v), high.max(v))
        });
    if low > high {
        return 0.0..1.0;
    }
    if panel.from_zero {
        low = low.min(0.0);
    }
    // Relative to the size of the numbers, so that a constant curve gets a range too.
    let room = ((high - low) * 0.06)
        .max(low.abs().max(high.abs()) * 0.05)
        .max(1e-12);
    let floor = if panel.from_zero && low == 0.0 {
        0.0
    } else {
        low - room
    };
    floor..high + room
}

/// Values as they may stand beside the axis, to know how wide they get.
fn ticks(range: &Range<f64>) -> impl Iterator<Item = f64> + '_ {
    (0..=5).map(|i| range.start + (range.end - range.start) / 5.0 * f64::from(i))
}

/// A number for the axis: as many decimals as the range needs, powers of ten where that would be long.
fn number(value: f64, range: &Range<f64>) -> String {
    let largest = range.start.abs().max(range.end.abs());
    let step = (range.end - range.start) / 6.0;
    if value.abs() < step * 1e-3 {
        return "0".into(); // also for a sum that missed it by a rounding
    }
    let digits = |of: f64| of.log10().ceil().clamp(0.0, 8.0) as usize;
    if !(1e-2..1e5).contains(&largest) {
        let decimals = digits(largest / step);
        return format!("{value:.decimals$e}");
    }
    let decimals = digits(1.0 / step);
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use image::Rgb;

    fn row(epoch: u64, loss: f64) -> EpochRow {
        EpochRow {
            epoch,
            train_loss: loss,
            val_loss: Some(loss + 0.1),
            scores: vec![Some(0.5), None],
            lr: 1e-3,
            seconds: 2.0,
        }
    }

    const CURVES: [&str; 2] = ["epoch", "moving average"];

    fn dice() -> [Panel; 4] {
        panels("validation Dice", &CURVES)
    }

    fn drawn(rows: &[EpochRow], title: &str) -> Result<RgbImage, ReportError> {
        progress_png(rows, title, "validation Dice", &CURVES)
    }

    fn count(picture: &RgbImage, colour: RGBColor) -> usize {
        let close = |p: &Rgb<u8>| {
            p.0.iter()
                .zip([colour.0, colour.1, colour.2])
                .all(|(a, b)| a.abs_diff(b) < 12)
        };
        picture.pixels().filter(|p| close(p)).count()
    }

    #[test]
    fn every_curve_is_drawn_in_its_colour_and_panel() {
        let rows: Vec<EpochRow> = (0..50).map(|e| row(e, 1.0 / (e + 1) as f64)).collect();
        let picture = drawn(&rows, "a run").unwrap();
        assert_eq!(picture.dimensions(), SIZE);
        let quarter = |x: u32, y: u32| {
            image::imageops::crop_imm(&picture, x * 600, 40 + y * 390, 600, 390).to_image()
        };
        for (colour, x, y) in [
            (BLUE, 0, 0),
            (ORANGE, 0, 0),
            (PALE, 1, 0),
            (GREEN, 0, 1),
            (GREY, 1, 1),
        ] {
            let inside = count(&quarter(x, y), colour);
            assert!(inside > 200, "{colour:?} in panel {x},{y}: {inside} pixels");
        }
        assert_eq!(
            count(&quarter(1, 0), ORANGE) + count(&quarter(0, 1), BLUE),
            0
        );
    }

    #[test]
    fn one_epoch_is_a_point() {
        let picture = drawn(&[row(0, 0.7)], "one").unwrap();
        assert!(count(&picture, GREEN) > 10 && count(&picture, ORANGE) > 10);
    }

    #[test]
    fn no_epoch_and_values_that_are_not_finite_still_give_a_picture() {
        drawn(&[], "").unwrap();
        let mut rows: Vec<EpochRow> = (0..5).map(|e| row(e, 0.5)).collect();
        rows[1].train_loss = f64::NAN;
        rows[2].train_loss = f64::INFINITY;
        rows[3].scores[0] = Some(f64::NEG_INFINITY);
        rows[4].lr = f64::MAX;
        drawn(&rows, "with gaps").unwrap();
        assert_eq!(caption(&dice()[0], &rows), "loss (2 epochs not finite)");
        assert_eq!(
            caption(&dice()[1], &rows),
            "validation Dice (1 epoch not finite)"
        );
        assert_eq!(caption(&dice()[2], &[]), "learning rate (no value yet)");
    }

    #[test]
    fn gaps_split_a_curve() {
        let mut rows: Vec<EpochRow> = (0..6).map(|e| row(e, e as f64)).collect();
        rows[0].val_loss = None;
        rows[3].val_loss = Some(f64::NAN);
        let runs = unbroken(&rows, |r| r.val_loss);
        assert_eq!(
            runs,
            [vec![(1.0, 1.1), (2.0, 2.1)], vec![(4.0, 4.1), (5.0, 5.1)]]
        );
    }

    #[test]
    fn ranges_hold_all_values_and_are_never_empty() {
        let rows: Vec<EpochRow> = [3.0, -1.0, 2.0]
            .iter()
            .zip(4..)
            .map(|(&v, e)| row(e, v))
            .collect();
        let range = value_range(&dice()[0], &rows);
        assert!(
            range.start < -1.0 && range.start > -2.0 && range.end > 3.1 && range.end < 4.0,
            "{range:?}"
        );
        assert_eq!(value_range(&dice()[3], &rows).start, 0.0);
        for v in [0.0, 1e-9, 0.5, -1e300, f64::MAX] {
            let range = value_range(
                &dice()[0],
                &[EpochRow {
                    val_loss: None,
                    ..row(0, v)
                }],
            );
            assert!(
                range.start < range.end && (range.end - range.start).is_finite(),
                "{v}: {range:?}"
            );
        }
        assert_eq!(epoch_range(&rows[..1]), 3.5..4.5);
    }

    #[test]
    fn numbers_are_as_long_as_needed() {
        assert_eq!(number(0.25, &(0.0..1.0)), "0.2");
        assert_eq!(number(0.925, &(0.92..0.93)), "0.925");
        assert_eq!(number(0.0005, &(0.0..0.001)), "5.0e-4");
        assert_eq!(number(1500.0, &(0.0..9000.0)), "1500");
        assert_eq!(number(0.0015, &(0.0014..0.0016)), "1.50e-3");
        assert_eq!(number(-1e-17, &(-1.0..1.0)), "0");
    }

    #[test]
    fn thousands_of_epochs_take_no_long_time() {
        let rows: Vec<EpochRow> = (0..5000).map(|e| row(e, (e as f64 * 0.37).sin())).collect();
        let begin = std::time::Instant::now();
        drawn(&rows, "long").unwrap();
        assert!(begin.elapsed().as_secs() < 30, "{:?}", begin.elapsed());
    }
}
