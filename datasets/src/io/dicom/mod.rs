//! DICOM: a folder of slices is a volume, as is one file of several frames. Read, never written.
//!
//! Geometry follows SimpleITK's reader of series: slices are ordered along the normal of the first one's plane, the third axis goes from the
//! first slice to the last, and its spacing is their distance by the number of gaps. Unlike it, a folder of several series and a series with
//! slices missing are refused. The pixels are the stored ones after the rescaling of each slice; display windows and inverted grey stay out.

mod file;
mod jpeg2000;
mod jpegls;
mod parse;
mod pixels;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::io::stored::{Numbers, Stored};
use crate::{DataError, Geometry, Result};
use file::{DicomFile, Place, FORMAT};

/// Slices may be this much nearer or farther than most of the series.
const LARGEST_IRREGULARITY: f64 = 0.1;

/// A frame of a file and where it lies.
struct Slice {
    path: PathBuf,
    frame: usize,
    number: i64,
    place: Place,
}

/// The slices of a folder or file in order, and what they have in common.
struct Series {
    slices: Vec<Slice>,
    channels: usize,
    rows: usize,
    columns: usize,
}

/// Whether a folder holds a file that begins as DICOM files do.
pub(super) fn is_series(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let mut start = Vec::new();
        let file = std::fs::File::open(entry.path());
        let read = file
            .and_then(|f| std::io::Read::read_to_end(&mut std::io::Read::take(f, 132), &mut start));
        read.is_ok() && start.get(128..) == Some(b"DICM")
    })
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| DataError::listing(path, e))? {
        let file = entry.map_err(|e| DataError::listing(path, e))?.path();
        let hidden = file
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if !hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// What a folder of several series is told apart by, for the message: up to a few of them.
fn several(path: &Path, found: &BTreeMap<String, (String, usize, PathBuf)>) -> DataError {
    const MOST: usize = 6;
    let name = |(id, (description, files, first)): (&String, &(String, usize, PathBuf))| {
        let description = match description.as_str() {
            "" => String::new(),
            text => format!("`{text}`, "),
        };
        let first = first.file_name().unwrap_or_default().to_string_lossy();
        format!("{id} ({description}{files} files, the first is {first})")
    };
    let mut names: Vec<String> = found.iter().take(MOST).map(name).collect();
    if found.len() > MOST {
        names.push(format!("{} more", found.len() - MOST));
    }
    let printable = |c: char| if c.is_control() { '?' } else { c };
    DataError::NotSupported {
        path: path.into(),
        what: format!(
            "a folder of {} DICOM series, {},",
            found.len(),
            names.join("; ").chars().map(printable).collect::<String>()
        ),
        remedy: "give each series a folder of its own".into(),
    }
}

fn series(path: &Path) -> Result<Series> {
    // Number of files, the first of them and the description of each series, by its name.
    let mut all: BTreeMap<String, (String, usize, PathBuf)> = BTreeMap::new();
    let mut found: Option<(Series, PathBuf)> = None;
    for file_path in files(path)? {
        let Some(file) = DicomFile::open(&file_path)? else {
            continue;
        };
        let entry = all
            .entry(file.series.clone())
            .or_insert_with(|| (file.description.clone(), 0, file_path.clone()));
        entry.1 += 1;
        if all.len() > 1 {
            // Only to be counted.
            continue;
        }
        let slices = (0..file.frames).map(|frame| Slice {
            path: file_path.clone(),
            frame,
            number: file.number,
            place: file.place(frame),
        });
        let layout = &file.layout;
        let (series, first) = found.get_or_insert_with(|| {
            let series = Series {
                slices: Vec::new(),
                channels: layout.samples,
                rows: layout.rows,
                columns: layout.columns,
            };
            (series, file_path.clone())
        });
        if (series.rows, series.columns) != (layout.rows, layout.columns) {
            return Err(DataError::SizesDiffer {
                path: file_path,
                found: vec![layout.rows, layout.columns],
                other: first.clone(),
                expected: vec![series.rows, series.columns],
            });
        }
        if series.channels != layout.samples {
            return Err(DataError::ChannelCount {
                path: file_path,
                found: layout.samples,
                expected: series.channels,
            });
        }
        series.slices.extend(slices);
    }
    if all.len() > 1 {
        return Err(several(path, &all));
    }
    match found {
        Some((mut series, _)) => {
            sort(&mut series.slices);
            Ok(series)
        }
        None => Err(DataError::damaged(path, FORMAT, "it holds no DICOM image")),
    }
}

fn cross([a, b]: [[f64; 3]; 2]) -> [f64; 3] {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Along the normal of the first slice; by their numbers where positions are missing.
fn sort(slices: &mut [Slice]) {
    let normal = slices.first().and_then(|s| s.place.axes).map(cross);
    let along = |slice: &Slice| Some(dot(slice.place.position?, normal?));
    if slices.iter().all(|s| along(s).is_some()) {
        slices.sort_by(|a, b| along(a).unwrap_or(0.0).total_cmp(&along(b).unwrap_or(0.0)));
    } else {
        slices.sort_by_key(|s| (s.number, s.frame));
    }
}

impl Series {
    /// A single frame that says nothing of a place is a picture.
    fn is_picture(&self) -> bool {
        matches!(&self.slices[..], [slice] if slice.place.position.is_none())
    }

    fn size(&self) -> Vec<usize> {
        match self.is_picture() {
            true => vec![self.rows, self.columns],
            false => vec![self.slices.len(), self.rows, self.columns],
        }
    }

    fn geometry(&self, path: &Path) -> Result<Geometry> {
        let damaged = |problem: String| DataError::damaged(path, FORMAT, problem);
        let (Some(first), Some(last)) = (self.slices.first(), self.slices.last()) else {
            return Err(damaged("it holds no slice".into()));
        };
        let [row, column] = first.place.spacing.unwrap_or([1.0, 1.0]);
        if self.is_picture() {
            let unit = Geometry::unit(2);
            return Geometry::new(vec![row, column], unit.origin, unit.direction).map_err(damaged);
        }
        let between = first
            .place
            .between
            .map(f64::abs)
            .filter(|b| *b > 0.0)
            .unwrap_or(1.0);
        let axes = first
            .place
            .axes
            .unwrap_or([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]);
        let positions: Option<Vec<[f64; 3]>> =
            self.slices.iter().map(|s| s.place.position).collect();
        let (mut spacing, mut third) = (between, cross(axes));
        if let (Some(positions), Some(end), Some(begin)) =
            (&positions, last.place.position, first.place.position)
        {
            let way = [0, 1, 2].map(|i| end[i] - begin[i]);
            let length = dot(way, way).sqrt();
            if positions.len() > 1 {
                spacing = length / (positions.len() - 1) as f64;
                third = way.map(|v| v / length);
                self.check_gaps(path, positions)?;
            }
        }
        if self
            .slices
            .iter()
            .any(|s| s.place.axes != first.place.axes && far(s.place.axes, first.place.axes))
        {
            return Err(damaged("its slices are not parallel".into()));
        }
        let [x, y] = axes;
        let direction = (0..3)
            .flat_map(|world| [x[world], y[world], third[world]])
            .collect();
        let origin = first.place.position.unwrap_or([0.0; 3]).to_vec();
        Geometry::new(vec![spacing, row, column], origin, direction).map_err(damaged)
    }

    /// Slices missing, twice there, or of several volumes.
    fn check_gaps(&self, path: &Path, positions: &[[f64; 3]]) -> Result<()> {
        let gaps: Vec<f64> = positions
            .windows(2)
            .map(|pair| [0, 1, 2].map(|k| pair[1][k] - pair[0][k]))
            .map(|way| dot(way, way).sqrt())
            .collect();
        let mut sorted = gaps.clone();
        sorted.sort_by(f64::total_cmp);
        let usual = sorted[sorted.len() / 2];
        for (slices, gap) in self.slices.windows(2).zip(gaps) {
            if (gap - usual).abs() > LARGEST_IRREGULARITY * usual || gap.is_nan() || gap == 0.0 {
                let problem = format!(
                    "{} and {} are {gap:.3} mm apart, most slices of the series {usual:.3} mm: slices are missing or there are several volumes",
                    slices[0].path.display(),
                    slices[1].path.display()
                );
                return Err(DataError::damaged(path, FORMAT, problem));
            }
        }
        Ok(())
    }
}

/// Whether two planes differ by more than rounding.
fn far(a: Option<[[f64; 3]; 2]>, b: Option<[[f64; 3]; 2]>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a
            .iter()
            .flatten()
            .zip(b.iter().flatten())
            .any(|(a, b)| (a - b).abs() > 1e-3),
        _ => true,
    }
}

pub(super) fn size(path: &Path) -> Result<Vec<usize>> {
    Ok(series(path)?.size())
}

pub(super) fn read(path: &Path) -> Result<Stored> {
    let series = series(path)?;
    let geometry = series.geometry(path)?;
    let mut values: Vec<f32> = Vec::new();
    let mut open: Option<(PathBuf, DicomFile)> = None;
    for slice in &series.slices {
        if open.as_ref().is_none_or(|(path, _)| *path != slice.path) {
            let file = DicomFile::open(&slice.path)?;
            open = file.map(|file| (slice.path.clone(), file));
        }
        let (_, file) = open.as_ref().ok_or_else(|| {
            DataError::damaged(&slice.path, FORMAT, "it changed while it was read")
        })?;
        let frame = file
            .frame(slice.frame)
            .map_err(|e| DataError::damaged(&slice.path, FORMAT, e))?;
        values.extend(frame);
    }
    let mut shape = vec![series.channels, series.rows, series.columns];
    if !series.is_picture() {
        shape.insert(0, series.slices.len());
    }
    Ok(Stored {
        numbers: Numbers::Real(values),
        channel_axis: Some(shape.len() - 3),
        shape,
        geometry,
    })
}
