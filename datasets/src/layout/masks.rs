//! Grey values of masks and the labels they stand for, for data sets that come without a list of classes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, Axis};

use crate::io::{read_image, read_label_values, read_labels};
use crate::parallel::for_each_in_order;
use crate::{DataError, Geometry, LabelMap, Result};

/// How the label maps of a data set are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoredLabels {
    /// As class numbers.
    AsWritten,
    /// As grey values, each with its label.
    Grey(BTreeMap<i32, i16>),
}

/// What is stored in a label map before it is told for classes.
pub(super) struct StoredValues {
    /// (H, W) or (Z, Y, X).
    pub values: ArrayD<f32>,
    pub geometry: Geometry,
}

impl StoredLabels {
    /// Reads a label map as class numbers.
    pub(super) fn read(&self, path: &Path) -> Result<LabelMap> {
        let Self::Grey(_) = self else {
            return read_labels(path);
        };
        let StoredValues { values, geometry } = self.values(path)?;
        let mut strange = None;
        let data = values.mapv(|v| {
            self.label(v).unwrap_or_else(|| {
                strange.get_or_insert(v);
                0
            })
        });
        match strange {
            None => Ok(LabelMap { data, geometry }),
            Some(value) => Err(DataError::MaskValues {
                path: path.into(),
                problem: format!(
                    "holds the grey value {value}, but the masks of this data set hold {}",
                    self.expected()
                ),
            }),
        }
    }

    /// What a label map holds, whether allowed or not.
    pub(super) fn values(&self, path: &Path) -> Result<StoredValues> {
        match self {
            Self::AsWritten => {
                let image = read_label_values(path)?;
                single_channel(path, image.data, image.geometry)
            }
            Self::Grey(_) => grey(path),
        }
    }

    /// The label of a stored value; nothing if it stands for none.
    pub(super) fn label(&self, value: f32) -> Option<i16> {
        match self {
            Self::AsWritten => whole(value).and_then(|v| i16::try_from(v).ok()),
            Self::Grey(labels) => labels.get(&whole(value)?).copied(),
        }
    }

    /// The allowed grey values, for messages.
    pub(super) fn expected(&self) -> String {
        match self {
            Self::AsWritten => "class numbers".into(),
            Self::Grey(labels) => list(labels.keys()),
        }
    }

    /// Empty where files say all.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::AsWritten => String::new(),
            Self::Grey(labels) => labels
                .iter()
                .map(|(grey, label)| format!("{grey}={label} "))
                .collect(),
        }
    }

    /// Whether stored values are labels already.
    pub(super) fn is_identity(&self) -> bool {
        match self {
            Self::AsWritten => true,
            Self::Grey(labels) => labels
                .iter()
                .all(|(grey, label)| *grey == i32::from(*label)),
        }
    }
}

/// A whole number from 0, as label maps hold.
pub(super) fn whole(value: f32) -> Option<i32> {
    // Beyond 2^24, float32 does not tell whole numbers apart.
    let fits = value.fract() == 0.0 && (0.0..=16_777_216.0).contains(&value);
    fits.then_some(value as i32)
}

fn list<'a, T: std::fmt::Display + 'a>(values: impl IntoIterator<Item = &'a T>) -> String {
    let values: Vec<String> = values.into_iter().map(ToString::to_string).collect();
    values.join(", ")
}

fn single_channel(path: &Path, data: ArrayD<f32>, geometry: Geometry) -> Result<StoredValues> {
    let channels = data.shape()[0];
    if channels != 1 {
        return Err(DataError::LabelInColour {
            path: path.into(),
            channels,
        });
    }
    let values = data.index_axis_move(Axis(0), 0);
    Ok(StoredValues { values, geometry })
}

/// The ending of a format that does not keep grey values.
fn is_lossy(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    ending == "jpg" || ending == "jpeg"
}

/// One channel of grey values. A picture whose colours are all grey counts; alpha does not.
fn grey(path: &Path) -> Result<StoredValues> {
    if is_lossy(path) {
        return Err(DataError::MaskValues {
            path: path.into(),
            problem: "is a JPEG, which blurs class numbers".into(),
        });
    }
    let image = read_image(path)?;
    let (data, geometry) = (image.data, image.geometry);
    let planes =
        |n: usize| (1..n).all(|c| data.index_axis(Axis(0), c) == data.index_axis(Axis(0), 0));
    let natural = geometry.spacing.len() == 2;
    match data.shape()[0] {
        2 if natural => {}
        3 | 4 if natural && planes(3) => {}
        _ => return single_channel(path, data, geometry),
    }
    let values = data.index_axis_move(Axis(0), 0);
    Ok(StoredValues { values, geometry })
}

/// A mask of more grey values than this holds no classes: it was blurred, or it numbers objects.
const MOST_VALUES: usize = 64;
/// Masks looked at first. Where nearly all of them are black and white, the rest is not needed to know what they mean.
const SAMPLE: usize = 64;
/// Of so many masks on, a few that are not black and white are taken for faulty.
const ENOUGH: usize = 10;
const WHITE: i32 = 255;

/// The classes that masks hold.
pub(super) struct Classes {
    pub stored: StoredLabels,
    pub labels: Vec<(String, i16)>,
    pub ignore: Option<i16>,
    pub note: Option<String>,
}

/// Finds out what the grey values of masks stand for. Faulty masks are passed over, for reading them will tell; if all of them are, the first
/// one's fault is the error.
pub(super) fn classes_of(masks: &[PathBuf], threads: usize) -> Result<Classes> {
    let step = masks.len().div_ceil(SAMPLE).max(1);
    let (sample, rest): (Vec<_>, Vec<_>) =
        masks.iter().enumerate().partition(|(i, _)| i % step == 0);
    let mut found = Vec::new();
    let mut fault = None;
    let mut look = |masks: Vec<(usize, &PathBuf)>| {
        for_each_in_order(
            &masks,
            threads,
            |(_, path)| values_of(path),
            |_, seen| match seen {
                Ok(values) => found.push(values),
                Err(error) => {
                    fault.get_or_insert(error);
                }
            },
        );
        black_and_white(&found)
    };
    if look(sample) || look(rest) {
        return Ok(binary(None));
    }
    if found.is_empty() {
        if let Some(error) = fault {
            return Err(error);
        }
    }
    let mut union: Vec<i32> = found.into_iter().flatten().collect();
    union.sort_unstable();
    union.dedup();
    Ok(classes(union))
}

/// Whether masks hold 0 and 255, but for at most one in ten.
fn black_and_white(masks: &[Vec<i32>]) -> bool {
    let holds = |mask: &&Vec<i32>| mask.iter().all(|v| *v == 0 || *v == WHITE);
    let binary = masks.iter().filter(holds).count();
    let white = masks.iter().any(|m| m.contains(&WHITE));
    white && (binary == masks.len() || masks.len() >= ENOUGH && binary * 10 >= masks.len() * 9)
}

/// The distinct grey values of a mask, sorted.
fn values_of(path: &Path) -> Result<Vec<i32>> {
    let wrong = |problem: String| DataError::MaskValues {
        path: path.into(),
        problem,
    };
    let mut values: Vec<i32> = Vec::new();
    for &value in &grey(path)?.values {
        let Some(value) = whole(value) else {
            return Err(wrong(format!("holds the value {value}")));
        };
        if let Err(at) = values.binary_search(&value) {
            if values.len() == MOST_VALUES {
                return Err(wrong(format!("holds more than {MOST_VALUES} grey values")));
            }
            values.insert(at, value);
        }
    }
    Ok(values)
}

fn binary(note: Option<String>) -> Classes {
    Classes {
        stored: StoredLabels::Grey(BTreeMap::from([(0, 0), (WHITE, 1)])),
        labels: vec![("background".into(), 0), ("foreground".into(), 1)],
        ignore: None,
        note,
    }
}

/// The labels of these grey values: the values themselves where they count from 0 or 1; 255 beside such is what nobody annotated; otherwise
/// in order of value.
fn classes(mut values: Vec<i32>) -> Classes {
    if values.is_empty() || values == [0] {
        return binary(Some("no mask has a foreground".into()));
    }
    if values[0] == 1 || values.len() == 1 {
        values.insert(0, 0);
    }
    let counts = |values: &[i32]| values.iter().copied().eq(0..values.len() as i32);
    let (last, before) = values.split_last().unwrap_or((&0, &[]));
    let ignores = *last == WHITE && before.len() > 1 && counts(before);
    let classes = match ignores {
        true => before,
        false => &values,
    };
    let name = |label: usize| match (label, classes.len()) {
        (0, _) => "background".to_owned(),
        (1, 2) => "foreground".to_owned(),
        _ => format!("class_{label}"),
    };
    let note = (!counts(&values)).then(|| {
        let rest = match ignores {
            true => " (255 is taken for pixels that are not annotated)",
            false => "",
        };
        format!(
            "the grey values {} of the masks become the labels 0 to {}{rest}",
            list(&values),
            values.len() - 1
        )
    });
    // At most 64 values a mask, yet many masks may have more than there are labels; those are left without.
    let numbered = values.iter().zip(0..i16::MAX);
    Classes {
        stored: StoredLabels::Grey(numbered.map(|(grey, label)| (*grey, label)).collect()),
        labels: (0..classes.len()).map(|l| (name(l), l as i16)).collect(),
        ignore: ignores.then_some(before.len() as i16),
        note,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(values: &[i32]) -> (Vec<(i32, i16)>, usize, Option<i16>) {
        let found = classes(values.to_vec());
        let StoredLabels::Grey(map) = found.stored else {
            unreachable!()
        };
        (map.into_iter().collect(), found.labels.len(), found.ignore)
    }

    #[test]
    fn grey_values_become_labels() {
        assert_eq!(mapping(&[0]), (vec![(0, 0), (255, 1)], 2, None));
        assert_eq!(mapping(&[0, 1]), (vec![(0, 0), (1, 1)], 2, None));
        assert_eq!(
            mapping(&[1, 2, 3]),
            (vec![(0, 0), (1, 1), (2, 2), (3, 3)], 4, None)
        );
        assert_eq!(
            mapping(&[0, 128, 255]),
            (vec![(0, 0), (128, 1), (255, 2)], 3, None)
        );
        assert_eq!(
            mapping(&[0, 1, 2, 255]),
            (vec![(0, 0), (1, 1), (2, 2), (255, 3)], 3, Some(3))
        );
        assert_eq!(mapping(&[0, 255]), (vec![(0, 0), (255, 1)], 2, None));
    }

    #[test]
    fn a_few_grey_masks_among_many_do_not_add_classes() {
        let mut masks = vec![vec![0, WHITE]; 9];
        assert!(black_and_white(&masks));
        masks.push(vec![0, 7, WHITE]);
        assert!(black_and_white(&masks), "one in ten");
        masks.push(vec![0, 7, WHITE]);
        assert!(!black_and_white(&masks));
        assert!(!black_and_white(&[vec![0, 128, WHITE], vec![0, WHITE]]));
        assert!(!black_and_white(&[vec![0], vec![0]]), "no white at all");
    }
}
