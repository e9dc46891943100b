//! What can go wrong with data, each with the file, what was found, what was expected and the remedy, in one line.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, DataError>;

/// An error about a data set, an image file or a setting.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder is not there.
    #[error("{what} {} does not exist; {remedy}", path.display())]
    Missing {
        /// What the path should have been, e.g. `folder`.
        what: &'static str,
        /// The path looked for.
        path: PathBuf,
        /// What to do about it.
        remedy: String,
    },
    /// The operating system refused a read or a write.
    #[error("cannot {action} {}: {source}; {remedy}", path.display())]
    Io {
        /// `read`, `write` or `list`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A file is damaged or not of the format its name says.
    #[error("cannot read {} as {format}: {problem}; replace the file or leave the case out", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The format expected.
        format: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A file is fine, but of a kind this version does not handle.
    #[error("{}: {what} is not supported; {remedy}", path.display())]
    NotSupported {
        /// The file.
        path: PathBuf,
        /// The kind that is not handled.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// `dataset.json`, `plans.json` or `splits_final.json` says something that cannot be.
    #[error("{}: field `{field}`: {problem}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The field, or `(whole file)`.
        field: String,
        /// What was found, expected, and the remedy.
        problem: String,
    },
    /// A folder is no data set of a known convention.
    #[error("{} is no data set: it holds nothing of {known}; check the folder, or lay it out in one of these ways", path.display())]
    NoDataset {
        /// The folder.
        path: PathBuf,
        /// The known conventions.
        known: String,
    },
    /// A folder holds several data sets.
    #[error("{} holds several data sets: {found}; give the folder of one of them", path.display())]
    SeveralDatasets {
        /// The folder.
        path: PathBuf,
        /// Theirs.
        found: String,
    },
    /// The grey values of a mask cannot be told for classes.
    #[error("{} {problem}; save the mask as a PNG of class numbers (0, 1, 2, ...) or of black and white", path.display())]
    MaskValues {
        /// The mask.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A folder holds no case.
    #[error("{} holds no image whose name ends in `_0000{file_ending}`; add images or correct `file_ending` in dataset.json", folder.display())]
    Empty {
        /// The folder searched.
        folder: PathBuf,
        /// The ending looked for.
        file_ending: String,
    },
    /// A case lacks a channel.
    #[error("case `{case}` lacks channel {channel} (`{name}`): {} does not exist; add the file or correct `channel_names` in dataset.json", path.display())]
    MissingChannel {
        /// The case.
        case: String,
        /// The channel's number.
        channel: usize,
        /// The channel's name in dataset.json.
        name: String,
        /// The file looked for.
        path: PathBuf,
    },
    /// The files of a case hold more or fewer channels than dataset.json names.
    #[error("{} makes {found} channels for its case, but dataset.json names {expected}; convert the image or correct `channel_names`", path.display())]
    ChannelCount {
        /// The file with which the count stops being right.
        path: PathBuf,
        /// Channels found.
        found: usize,
        /// Channels named.
        expected: usize,
    },
    /// Two files that belong together differ in size.
    #[error("{} is of size {found:?}, but {} is of size {expected:?}; both must be on the same grid", path.display(), other.display())]
    SizesDiffer {
        /// The file that differs.
        path: PathBuf,
        /// Its size in array order.
        found: Vec<usize>,
        /// The file compared with.
        other: PathBuf,
        /// That file's size.
        expected: Vec<usize>,
    },
    /// A label map holds a value that dataset.json does not name.
    #[error("{} holds the label {value} at {count} voxels, but dataset.json allows only {allowed:?}; correct the label map or add the label", path.display())]
    UnknownLabel {
        /// The label map.
        path: PathBuf,
        /// The first value that is not allowed.
        value: i16,
        /// How often it occurs.
        count: usize,
        /// The values dataset.json names.
        allowed: Vec<i16>,
    },
    /// A label map holds something that is no whole number in range.
    #[error("{} holds the value {value}, but labels are whole numbers from 0 to 32767; save the label map with an integer type", path.display())]
    LabelNotInteger {
        /// The label map.
        path: PathBuf,
        /// The first such value.
        value: f32,
    },
    /// A label map has several channels.
    #[error("{} has {channels} channels, but a label map has one (the class number of each pixel); save it as a greyscale image of class numbers, not as colours", path.display())]
    LabelInColour {
        /// The label map.
        path: PathBuf,
        /// Channels found.
        channels: usize,
    },
    /// Pixels that are NaN or infinite.
    #[error("{} holds {nan} NaN and {infinite} infinite pixels; replace them (for example by 0) before training", path.display())]
    NotFinite {
        /// The image.
        path: PathBuf,
        /// Number of NaN.
        nan: usize,
        /// Number of infinities.
        infinite: usize,
    },
    /// A number given by the user is out of range.
    #[error("{field} is {found}, but {expected}")]
    Setting {
        /// The setting's name.
        field: String,
        /// Its value.
        found: String,
        /// What it has to be, and the remedy.
        expected: String,
    },
    /// An image does not fit the plan.
    #[error("case `{case}`: {problem}")]
    Case {
        /// The case.
        case: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Several cases are broken; each is named.
    #[error("{} case(s) cannot be used: {}", .0.len(), listed(.0))]
    Several(Vec<DataError>),
    /// A worker thread panicked.
    #[error("a data loading thread failed at batch {batch}: {message}; this is a fault of the program, please report it")]
    Worker {
        /// The batch being made.
        batch: u64,
        /// The panic's message.
        message: String,
    },
}

/// How many of several errors are told; a folder of the wrong kind has as many as pictures.
const TOLD: usize = 20;

fn listed(errors: &[DataError]) -> String {
    let mut told: Vec<String> = errors.iter().take(TOLD).map(DataError::to_string).collect();
    if errors.len() > TOLD {
        told.push(format!("and {} more", errors.len() - TOLD));
    }
    told.join("; ")
}

impl DataError {
    /// Nothing, the one error, or all of them.
    pub(crate) fn all(mut errors: Vec<Self>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// A failed read, told apart by whether the file exists.
    pub(crate) fn reading(path: &Path, source: std::io::Error) -> Self {
        if source.kind() == std::io::ErrorKind::NotFound {
            return Self::Missing {
                what: "file",
                path: path.into(),
                remedy: "check the path".into(),
            };
        }
        Self::Io {
            action: "read",
            path: path.into(),
            source,
            remedy: "check that it is a file, not a folder, and that you may read it",
        }
    }

    pub(crate) fn listing(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action: "list",
            path: path.into(),
            source,
            remedy: "check that it is a folder and that you may read it",
        }
    }

    pub(crate) fn writing(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action: "write",
            path: path.into(),
            source,
            remedy: "nothing was changed; check that the folder exists, may be written to and has space left",
        }
    }

    /// Whether the disk is full or may not be written to, which no other case changes.
    pub fn cannot_write(&self) -> bool {
        matches!(
            self,
            Self::Io {
                action: "write",
                ..
            }
        )
    }

    /// The problem may quote the file: what a terminal would not print as one line is replaced, and it ends before it fills a page.
    pub(crate) fn damaged(path: &Path, format: &'static str, problem: impl ToString) -> Self {
        const LONGEST: usize = 600;
        let printable = |c: char| if c.is_control() { '?' } else { c };
        let problem = problem.to_string();
        Self::Damaged {
            path: path.into(),
            format,
            problem: problem.chars().map(printable).take(LONGEST).collect(),
        }
    }

    pub(crate) fn json(path: &Path, field: &str, problem: impl Into<String>) -> Self {
        Self::Json {
            path: path.into(),
            field: field.into(),
            problem: problem.into(),
        }
    }
}
