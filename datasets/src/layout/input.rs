//! The files of a case: finding them in a folder and reading them as the channels of one image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{concatenate, Axis};

use crate::io::read_image;
use crate::{DataError, Image, Result};

/// A case and the files that make its channels, in order. One file may hold several channels (an RGB image).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputCase {
    /// The name without channel number and ending.
    pub id: String,
    /// Files `ID_0000`, `ID_0001`, ... or one file called just `ID`.
    pub paths: Vec<PathBuf>,
}

/// Cases of a file or a folder, sorted by name: groups `CASE_0000.ext`, `CASE_0001.ext`. A file without channel number is a case of its own
/// if there is one channel or it holds them all. A single file `CASE_0000.ext` brings its other channels along.
pub fn images_in(path: &Path, file_ending: &str, n_channels: usize) -> Result<Vec<InputCase>> {
    let about = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => DataError::Missing {
            what: "file or folder",
            path: path.into(),
            remedy: format!("give an image or a folder of `{file_ending}` images"),
        },
        _ => DataError::reading(path, e),
    })?;
    if about.is_dir() {
        let cases = group(path, file_ending, n_channels, true)?;
        return if cases.is_empty() {
            Err(DataError::Empty {
                folder: path.into(),
                file_ending: file_ending.into(),
            })
        } else {
            Ok(cases)
        };
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(stem) = strip_ending(&name, file_ending) else {
        return Err(DataError::NotSupported {
            path: path.into(),
            what: "this file ending".into(),
            remedy: format!("the model was trained on `{file_ending}` images; convert the file"),
        });
    };
    let (id, channel) = split_channel(stem);
    if channel.is_none_or(|c| c >= n_channels) {
        return Ok(vec![InputCase {
            id: stem.into(),
            paths: vec![path.into()],
        }]);
    }
    let paths = (0..n_channels)
        .map(|c| path.with_file_name(format!("{id}_{c:04}{file_ending}")))
        .filter(|p| p.exists())
        .collect();
    Ok(vec![InputCase {
        id: id.into(),
        paths,
    }])
}

/// The cases of a folder. `bare` also takes files without a channel number.
pub(crate) fn group(
    folder: &Path,
    file_ending: &str,
    n_channels: usize,
    bare: bool,
) -> Result<Vec<InputCase>> {
    let mut cases: BTreeMap<String, BTreeMap<usize, PathBuf>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|e| DataError::listing(folder, e))? {
        let path = entry.map_err(|e| DataError::listing(folder, e))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // Hidden files are other programs' business: the index files of a Mac, half-written images.
        let Some(stem) = strip_ending(&name, file_ending).filter(|s| !s.starts_with('.')) else {
            continue;
        };
        match split_channel(stem) {
            // `holiday_2021.png` is no channel 2021.
            (_, channel) if bare && channel.is_none_or(|c| c >= n_channels) => {
                cases.entry(stem.into()).or_default().insert(0, path)
            }
            (id, Some(channel)) => cases.entry(id.into()).or_default().insert(channel, path),
            _ => None,
        };
    }
    Ok(cases
        .into_iter()
        .map(|(id, files)| InputCase {
            id,
            paths: files.into_values().collect(),
        })
        .collect())
}

pub(super) fn strip_ending<'a>(name: &'a str, ending: &str) -> Option<&'a str> {
    name.strip_suffix(ending).filter(|stem| !stem.is_empty())
}

/// `liver_001_0000` -> (`liver_001`, 0).
pub(super) fn split_channel(stem: &str) -> (&str, Option<usize>) {
    let split = stem
        .rsplit_once('_')
        .filter(|(id, number)| !id.is_empty() && number.len() == 4);
    match split.and_then(|(id, number)| Some((id, number.parse::<u16>().ok()?))) {
        Some((id, number)) => (id, Some(number.into())),
        None => (stem, None),
    }
}

/// Reads the files of a case as one image with as many channels as there are names, all on one grid and finite. Numbers in the files' names
/// leave no channel out.
pub fn load_channels(case: &InputCase, channel_names: &[String]) -> Result<Image> {
    match gap(case, channel_names) {
        Some(error) => Err(error),
        None => read_channels(case, channel_names),
    }
}

/// The same for files of any name.
pub(super) fn read_channels(case: &InputCase, channel_names: &[String]) -> Result<Image> {
    let mut parts: Vec<Image> = Vec::new();
    let mut found = 0;
    for path in &case.paths {
        let part = read_image(path)?;
        check_finite(path, &part)?;
        if let Some(first) = parts.first() {
            if part.spatial_size() != first.spatial_size() {
                return Err(DataError::SizesDiffer {
                    path: path.clone(),
                    found: part.spatial_size().to_vec(),
                    other: case.paths[0].clone(),
                    expected: first.spatial_size().to_vec(),
                });
            }
        }
        found += part.channels();
        if found > channel_names.len() {
            return Err(DataError::ChannelCount {
                path: path.clone(),
                found,
                expected: channel_names.len(),
            });
        }
        parts.push(part);
    }
    if found < channel_names.len() {
        return Err(missing_channel(case, found, channel_names));
    }
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let views: Vec<_> = parts.iter().map(|p| p.data.view()).collect();
    let data = concatenate(Axis(0), &views).map_err(|e| DataError::Case {
        case: case.id.clone(),
        problem: format!("its channels do not fit together: {e}"),
    })?;
    let geometry = parts.remove(0).geometry;
    Ok(Image { data, geometry })
}

/// The files a case ought to have, if the first that it has carries a channel number: `ID_0003.nii.gz` -> `ID_0000.nii.gz`, ...
pub(super) fn numbered(case: &InputCase) -> Option<impl Fn(usize) -> PathBuf + '_> {
    let first = case.paths.first()?;
    let name = first.file_name()?.to_str()?;
    let (number, ending) = name
        .strip_prefix(&case.id)?
        .strip_prefix('_')?
        .split_at_checked(4)?;
    let ending = ending.to_owned();
    number.parse::<u16>().ok()?;
    Some(move |channel: usize| first.with_file_name(format!("{}_{channel:04}{ending}", case.id)))
}

/// A channel that lacks although a later one is there.
fn gap(case: &InputCase, channel_names: &[String]) -> Option<DataError> {
    let file = numbered(case)?;
    let channel = (0..case.paths.len()).find(|&c| case.paths[c] != file(c))?;
    let name = channel_names.get(channel).cloned().unwrap_or_default();
    Some(DataError::MissingChannel {
        case: case.id.clone(),
        channel,
        name,
        path: file(channel),
    })
}

/// The files end before the channels do.
fn missing_channel(case: &InputCase, found: usize, channel_names: &[String]) -> DataError {
    let channel = case.paths.len();
    match (numbered(case), case.paths.last()) {
        (_, None) => DataError::Case {
            case: case.id.clone(),
            problem: "no image file found; check the file names".into(),
        },
        (Some(file), _) if found == channel => DataError::MissingChannel {
            case: case.id.clone(),
            channel,
            name: channel_names[channel].clone(),
            path: file(channel),
        },
        (_, Some(last)) => DataError::ChannelCount {
            path: last.clone(),
            found,
            expected: channel_names.len(),
        },
    }
}

fn check_finite(path: &Path, image: &Image) -> Result<()> {
    let (mut nan, mut infinite) = (0, 0);
    for v in &image.data {
        if !v.is_finite() {
            if v.is_nan() {
                nan += 1;
            } else {
                infinite += 1;
            }
        }
    }
    if nan + infinite > 0 {
        return Err(DataError::NotFinite {
            path: path.into(),
            nan,
            infinite,
        });
    }
    Ok(())
}
