//! What can be wrong with a data set, as data.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::DataError;

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The data set, or a case of it, cannot be used.
    Error,
    /// It can be used, but probably not with the result that is meant.
    Warning,
    /// Worth knowing.
    Note,
}

/// What sort of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The folder, or its `dataset.json`, says something that cannot be.
    DatasetJson,
    /// A list of names, such as `splits_final.json`, does.
    List,
    /// Another number of training cases than `numTraining`.
    NumTraining,
    /// No case at all.
    Empty,
    /// An image that is listed is not there.
    MissingImage,
    /// A case without one of its channels.
    MissingChannel,
    /// A file that makes more channels than there are.
    ExtraChannel,
    /// A case without label map.
    MissingLabel,
    /// A label map without image.
    OrphanLabel,
    /// A file whose name keeps it from being used.
    IgnoredFile,
    /// Files of several formats where one is expected.
    MixedEndings,
    /// One case twice.
    DuplicateCase,
    /// A file that cannot be read to its end.
    Unreadable,
    /// Channels or label map of another size.
    ShapeMismatch,
    /// 2-D among 3-D images.
    DimensionMismatch,
    /// Channels or label map of another spacing.
    SpacingMismatch,
    /// At another place.
    OriginMismatch,
    /// Turned another way.
    DirectionMismatch,
    /// NaN or infinite voxels.
    NotFinite,
    /// A label that is no whole number from 0.
    NonIntegerLabel,
    /// A label that is not named.
    UnexpectedLabel,
    /// A label map of several channels.
    ColourLabel,
    /// Grey values that cannot be told for classes.
    MaskValues,
    /// A label that no training case has.
    UnusedLabel,
    /// A label map of background alone.
    EmptyLabel,
    /// A complete download has more, fewer or other cases.
    Incomplete,
    /// Another data set than the one named.
    OtherDataset,
    /// A picture without its partner.
    Unpaired,
}

/// One thing that is wrong with a data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// The case concerned.
    pub case: Option<String>,
    /// The file concerned.
    pub file: Option<PathBuf>,
    /// What sort of problem.
    pub kind: Kind,
    /// What was found and what was expected.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// An error without case or file.
    pub fn error(kind: Kind, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            case: None,
            file: None,
            kind,
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// A warning without case or file.
    pub fn warning(kind: Kind, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(kind, problem, remedy)
        }
    }

    /// A note without case or file.
    pub fn note(kind: Kind, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Note,
            ..Self::error(kind, problem, remedy)
        }
    }

    /// The same about a file.
    #[must_use]
    pub fn at(mut self, file: &Path) -> Self {
        self.file = Some(file.into());
        self
    }

    /// The same about a case.
    #[must_use]
    pub fn of(mut self, case: &str) -> Self {
        self.case = Some(case.into());
        self
    }

    /// An error of reading, told apart by its kind.
    pub fn from_error(error: &DataError) -> Self {
        let (kind, file) = match error {
            DataError::Missing { path, .. } => (Kind::MissingImage, Some(path)),
            DataError::Io { path, .. }
            | DataError::Damaged { path, .. }
            | DataError::NotSupported { path, .. } => (Kind::Unreadable, Some(path)),
            DataError::Json { path, .. } => match path.ends_with("dataset.json") {
                true => (Kind::DatasetJson, Some(path)),
                false => (Kind::List, Some(path)),
            },
            DataError::Empty { folder, .. } => (Kind::Empty, Some(folder)),
            DataError::NoDataset { path, .. } | DataError::SeveralDatasets { path, .. } => {
                (Kind::Empty, Some(path))
            }
            DataError::MissingChannel { path, .. } => (Kind::MissingChannel, Some(path)),
            DataError::ChannelCount { path, .. } => (Kind::ExtraChannel, Some(path)),
            DataError::SizesDiffer { path, .. } => (Kind::ShapeMismatch, Some(path)),
            DataError::UnknownLabel { path, .. } => (Kind::UnexpectedLabel, Some(path)),
            DataError::LabelNotInteger { path, .. } => (Kind::NonIntegerLabel, Some(path)),
            DataError::LabelInColour { path, .. } => (Kind::ColourLabel, Some(path)),
            DataError::MaskValues { path, .. } => (Kind::MaskValues, Some(path)),
            DataError::NotFinite { path, .. } => (Kind::NotFinite, Some(path)),
            _ => (Kind::Unreadable, None),
        };
        // Messages end with what to do, after a semicolon.
        let text = error.to_string();
        let (problem, remedy) = text.rsplit_once("; ").unwrap_or((&text, ""));
        let problem = match file.map(|f| f.display().to_string()) {
            Some(name) => problem
                .strip_prefix(&format!("{name}: "))
                .unwrap_or(problem)
                .to_owned(),
            None => problem.to_owned(),
        };
        Self {
            file: file.cloned(),
            ..Self::error(kind, problem, remedy)
        }
    }
}
