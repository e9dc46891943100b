//! All that is wrong with a data set, in one go: `nnUNetv2_plan_and_preprocess --verify_dataset_integrity` and more, without stopping at the
//! first fault.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::dataset::{Case, Dataset, Split};
use super::input::numbered;
use super::masks::whole;
use super::problem::{Kind, Problem, Severity};
use super::Survey;
use crate::catalog::{names_in, Entry, Part};
use crate::io::read_image;
use crate::parallel::for_each_in_order;
use crate::{split, DataError, Geometry, Image, Result};

/// What [`verify`] found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The folder.
    pub dataset: PathBuf,
    /// Its convention.
    pub layout: &'static str,
    /// Training and test cases.
    pub cases: usize,
    /// Training cases, validation cases among them.
    pub training: usize,
    /// Test cases.
    pub test: usize,
    /// Errors first; within those by case.
    pub problems: Vec<Problem>,
    /// What was decided in opening the data set.
    pub notes: Vec<String>,
}

impl Report {
    /// Number of problems of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        let of = |p: &&Problem| p.severity == severity;
        self.problems.iter().filter(of).count()
    }
}

/// A folder to be verified: its cases are known, their files are not read yet.
pub struct Verification {
    survey: Survey,
    entry: Option<&'static Entry>,
}

impl Verification {
    /// Finds out the convention of a folder and its cases. The error is of a folder that is not there or of no known convention.
    pub fn start(root: &Path) -> Result<Self> {
        let survey = super::survey(root)?;
        let entry = super::catalogued::of(&survey.dataset);
        Ok(Self { survey, entry })
    }

    /// Compares it with this entry of the catalogue; a folder in the form of a download is compared with its own.
    #[must_use]
    pub fn against(mut self, entry: &'static Entry) -> Self {
        self.entry = Some(entry);
        self
    }

    /// Number of cases to read.
    pub fn cases(&self) -> usize {
        let dataset = &self.survey.dataset;
        dataset.cases(Split::Training).len() + dataset.cases(Split::Test).len()
    }

    /// Reads every case, on `threads` threads with one case in memory each. `progress` hears of each.
    pub fn run(self, threads: usize, progress: &(dyn Fn(&str) + Sync)) -> Report {
        let entry = self.entry;
        let Survey {
            dataset,
            fatal,
            mut problems,
        } = self.survey;
        problems.extend(fatal.iter().map(Problem::from_error));
        // Labels of test cases are asked for only where some of them have one.
        let test_labels = dataset.test.iter().any(|c| c.label.is_file());
        let cases: Vec<(Split, &Case)> = [Split::Training, Split::Test]
            .into_iter()
            .flat_map(|split| dataset.cases(split).iter().map(move |c| (split, c)))
            .collect();
        let mut tally = Tally::default();
        for_each_in_order(
            &cases,
            threads,
            |(split, case)| {
                let labelled = *split == Split::Training || test_labels;
                look_at(&dataset, case, *split, labelled)
            },
            |(split, case), mut seen| {
                problems.append(&mut seen.problems);
                tally.add(case, *split, &seen, &mut problems, &dataset);
                progress(&case.id);
            },
        );
        tally.finish(&dataset, &mut problems);
        problems.extend(lists(&dataset));
        problems.extend(trained_and_tested(&dataset));
        if let Some(entry) = entry {
            problems.extend(compared(&dataset, entry));
        }
        problems.sort_by(|a, b| {
            (a.severity, &a.case, a.kind, &a.file).cmp(&(b.severity, &b.case, b.kind, &b.file))
        });
        Report {
            dataset: dataset.root.clone(),
            layout: dataset.layout,
            cases: cases.len(),
            training: dataset.training.len(),
            test: dataset.test.len(),
            problems,
            notes: dataset.notes,
        }
    }
}

/// What differs from a complete download.
pub fn compared(dataset: &Dataset, entry: &Entry) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut other = |what: &str, found: String, expected: String| {
        if found != expected {
            let problem = format!(
                "its {what} are {found}, but those of {} are {expected}",
                entry.title
            );
            let remedy = format!(
                "see `datasets show {}`; is it another data set, or a part of it?",
                entry.name
            );
            problems.push(Problem::warning(Kind::OtherDataset, problem, remedy));
        }
    };
    let values = |v: Vec<i16>| v.iter().map(i16::to_string).collect::<Vec<_>>().join(", ");
    other(
        "label values",
        values(dataset.info.label_values()),
        values(entry.labels.iter().map(|l| l.value).collect()),
    );
    other(
        "numbers of channels",
        dataset.info.channel_names.len().to_string(),
        entry.channels.len().to_string(),
    );
    let named = |cases: &[Case]| -> Vec<(String, String)> {
        cases
            .iter()
            .map(|c| (c.id.clone(), c.group.clone()))
            .collect()
    };
    let held = dataset.official.as_ref().map_or(0, |f| f.validation.len());
    let (training, test) = (named(&dataset.training), named(&dataset.test));
    // slices of a set that is also there as downloaded are divided otherwise
    let divided = dataset.of_slices && !entry.layouts.is_empty();
    let of = |part| match part {
        Part::Training => Some((training.len() - held, &training[..])),
        Part::Validation => (held > 0).then_some((held, &training[..])),
        Part::Test => (!test.is_empty()).then_some((test.len(), &test[..])),
    };
    problems.extend(missing(entry, !divided, of));
    problems
}

/// Parts of another size than a complete download's, with the names that are missing. `found` counts the cases of a part and names all that may
/// be of it, with what they belong to; nothing where the part is not there at all, as one may do without it. Without `by_name` numbers alone count.
pub(crate) fn missing<'a>(
    entry: &Entry,
    by_name: bool,
    found: impl Fn(Part) -> Option<(usize, &'a [(String, String)])>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for count in &entry.cases {
        let Some((number, cases)) = found(count.part) else {
            continue;
        };
        let is_there = |name: &str| {
            let name = name.to_lowercase();
            let name = name.as_str();
            let own = |c: &&(String, String)| {
                let (id, group) = (c.0.to_lowercase(), c.1.to_lowercase());
                let longer = id
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('_'));
                id == name || group == name || longer
            };
            cases.iter().any(|c| own(&c))
        };
        let known = count.names.iter().filter(|_| by_name);
        let names: Vec<String> = known.flat_map(|n| names_in(n)).collect();
        let lacking: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|n| !is_there(n))
            .collect();
        if count.numbers.contains(&number) && lacking.is_empty() {
            continue;
        }
        let numbers: Vec<String> = count.numbers.iter().map(usize::to_string).collect();
        let part = format!("{:?}", count.part).to_lowercase();
        let mut problem = format!(
            "{number} {part} cases, but a complete download has {} ({})",
            numbers.join(" or "),
            count.of
        );
        if !lacking.is_empty() {
            problem += &format!(
                "; missing: {}",
                lacking[..lacking.len().min(SHOWN)].join(", ")
            );
            if lacking.len() > SHOWN {
                problem += &format!(" and {} more", lacking.len() - SHOWN);
            }
        }
        let remedy = format!("fetch what is missing, see `datasets show {}`", entry.name);
        problems.push(Problem::warning(Kind::Incomplete, problem, remedy));
    }
    problems
}

/// What is remembered of a case.
#[derive(Default)]
struct Seen {
    problems: Vec<Problem>,
    /// Axes of its image.
    dims: Option<usize>,
    /// How often each label occurs.
    labels: BTreeMap<i16, usize>,
    /// Of all voxels.
    fingerprint: Option<u64>,
}

/// One file's place in space, to compare others with.
struct Place {
    path: PathBuf,
    size: Vec<usize>,
    geometry: Geometry,
}

fn look_at(dataset: &Dataset, case: &Case, split: Split, labelled: bool) -> Seen {
    let mut seen = Seen::default();
    let first = look_at_images(dataset, case, &mut seen);
    if case.label.is_file() {
        look_at_label(dataset, case, first.as_ref(), &mut seen);
    } else if labelled {
        let problem = "it has no label map";
        let missing = match split {
            Split::Training => Problem::error(
                Kind::MissingLabel,
                problem,
                "add the label map or take the case away",
            ),
            Split::Test => Problem::warning(
                Kind::MissingLabel,
                problem,
                "other test cases have one: without it this one is not scored",
            ),
        };
        seen.problems.push(missing.at(&case.label));
    }
    for problem in &mut seen.problems {
        problem.case = Some(case.id.clone());
    }
    seen
}

fn look_at_images(dataset: &Dataset, case: &Case, seen: &mut Seen) -> Option<Place> {
    let names = &dataset.info.channel_names;
    let mut first: Option<Place> = None;
    let mut hasher = DefaultHasher::new();
    let (mut found, mut whole) = (0, true);
    for path in &case.images {
        let image = match read_image(path) {
            Ok(image) => image,
            Err(error) => {
                let mut problem = Problem::from_error(&error);
                if !path.exists() {
                    problem.problem = "the image is not there".into();
                    problem.remedy = "add the file or take the case away".into();
                }
                seen.problems.push(problem);
                whole = false;
                continue;
            }
        };
        found += image.channels();
        if found > names.len() {
            let problem = format!(
                "with it the case has {found} channels, but {} are expected: {}",
                names.len(),
                names.join(", ")
            );
            let remedy = "convert the image or correct channel_names";
            seen.problems
                .push(Problem::error(Kind::ExtraChannel, problem, remedy).at(path));
        }
        not_finite(path, &image, seen);
        for value in &image.data {
            value.to_bits().hash(&mut hasher);
        }
        let place = Place {
            path: path.clone(),
            size: image.spatial_size().to_vec(),
            geometry: image.geometry,
        };
        match &first {
            None => first = Some(place),
            Some(first) => compare(first, &place, seen),
        }
    }
    if whole {
        missing_channels(dataset, case, found, seen);
        seen.fingerprint = first.as_ref().map(|_| hasher.finish());
    }
    seen.dims = first.as_ref().map(|f| f.size.len());
    first
}

/// Which channels lack of a case whose files could be read.
fn missing_channels(dataset: &Dataset, case: &Case, found: usize, seen: &mut Seen) {
    let names = &dataset.info.channel_names;
    let input = case.input();
    let by_number = numbered(&input).filter(|_| !dataset.listed);
    if let Some(file) = by_number {
        // One file may hold them all, as RGB pictures do.
        if found >= names.len() && case.images.first() == Some(&file(0)) {
            return;
        }
        for (number, name) in names.iter().enumerate() {
            let path = file(number);
            if !case.images.contains(&path) {
                let problem = format!("channel {number} (`{name}`) is missing");
                let remedy = "add the file or correct channel_names";
                seen.problems
                    .push(Problem::error(Kind::MissingChannel, problem, remedy).at(&path));
            }
        }
    } else if found < names.len() {
        let problem = format!(
            "the case has {found} of {} channels: {}",
            names.len(),
            names.join(", ")
        );
        let problem = Problem::error(
            Kind::MissingChannel,
            problem,
            "convert the image so that it has all of them, or correct the channels",
        );
        seen.problems.push(match case.images.last() {
            Some(path) => problem.at(path),
            None => problem,
        });
    }
}

fn not_finite(path: &Path, image: &Image, seen: &mut Seen) {
    let nan = image.data.iter().filter(|v| v.is_nan()).count();
    let infinite = image.data.iter().filter(|v| v.is_infinite()).count();
    if nan + infinite > 0 {
        seen.problems
            .push(Problem::from_error(&DataError::NotFinite {
                path: path.into(),
                nan,
                infinite,
            }));
    }
}

fn look_at_label(dataset: &Dataset, case: &Case, image: Option<&Place>, seen: &mut Seen) {
    let path = &case.label;
    let stored = match dataset.stored.values(path) {
        Ok(stored) => stored,
        Err(error) => {
            seen.problems.push(Problem::from_error(&error));
            return;
        }
    };
    let place = Place {
        path: path.clone(),
        size: stored.values.shape().to_vec(),
        geometry: stored.geometry,
    };
    if let Some(image) = image {
        compare(image, &place, seen);
    }
    // Without a list of labels nothing is known to be allowed.
    let known = (!dataset.info.labels.is_empty()).then(|| dataset.info.label_values());
    let mut strange: BTreeMap<i32, usize> = BTreeMap::new();
    let (mut broken, mut example) = (0, 0.0);
    let mut last = None;
    for &value in &stored.values {
        // Label maps are mostly runs of one value.
        let (label, number) = match last {
            Some((v, known)) if v == value => known,
            _ => (dataset.stored.label(value), whole(value)),
        };
        last = Some((value, (label, number)));
        match (label, number) {
            (Some(label), _) if known.as_ref().is_none_or(|k| k.contains(&label)) => {
                *seen.labels.entry(label).or_default() += 1;
            }
            (_, Some(number)) => *strange.entry(number).or_default() += 1,
            (_, None) => {
                if broken == 0 {
                    example = value;
                }
                broken += 1;
            }
        }
    }
    if broken > 0 {
        let problem =
            format!("{broken} of its voxels are no whole numbers from 0 (the first is {example})");
        let remedy = "save the label map with an integer type";
        seen.problems
            .push(Problem::error(Kind::NonIntegerLabel, problem, remedy).at(path));
    }
    if !strange.is_empty() {
        seen.problems.push(unexpected(dataset, path, &strange));
    }
    if broken == 0 && strange.is_empty() && seen.labels.keys().all(|l| *l == 0) {
        let problem = "its label map is background alone";
        let remedy = "nothing need be done if the case really has nothing to segment";
        seen.problems
            .push(Problem::note(Kind::EmptyLabel, problem, remedy).at(path));
    }
}

/// Values shown of a label map that has many strange ones.
const SHOWN: usize = 8;

fn unexpected(dataset: &Dataset, path: &Path, strange: &BTreeMap<i32, usize>) -> Problem {
    let mut shown: Vec<String> = strange
        .iter()
        .take(SHOWN)
        .map(|(value, count)| format!("{value} ({count} voxels)"))
        .collect();
    if strange.len() > SHOWN {
        shown.push(format!("{} more", strange.len() - SHOWN));
    }
    let allowed = match dataset.stored.is_identity() {
        true => format!("{:?}", dataset.info.label_values()),
        false => format!("the grey values {}", dataset.stored.expected()),
    };
    let kind = match dataset.stored.is_identity() {
        true => Kind::UnexpectedLabel,
        false => Kind::MaskValues,
    };
    let problem = format!("it holds {}, expected {allowed}", shown.join(", "));
    Problem::error(
        kind,
        problem,
        "correct the label map, or the list of labels",
    )
    .at(path)
}

/// NumPy's `allclose`, by which nnU-Net compares.
fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| (a - b).abs() <= 1e-8 + 1e-5 * b.abs())
}

/// Whether a file lies where the first image of its case does. nnU-Net refuses another spacing and warns of another origin or direction.
fn compare(first: &Place, other: &Place, seen: &mut Seen) {
    let name = first.path.file_name().unwrap_or_default().to_string_lossy();
    if first.size != other.size {
        let problem = format!(
            "it is of size {:?}, but {name} is of size {:?} (slowest axis first)",
            other.size, first.size
        );
        let remedy = "put both on one grid";
        seen.problems
            .push(Problem::error(Kind::ShapeMismatch, problem, remedy).at(&other.path));
    }
    if first.size.len() != other.size.len() {
        return;
    }
    let (a, b) = (&first.geometry, &other.geometry);
    let remedy = "see whether both lie over one another, and copy the image's header to the label map if they do";
    if !close(&b.spacing, &a.spacing) {
        let problem = format!(
            "its spacing is {:?}, that of {name} {:?} (slowest axis first)",
            b.spacing, a.spacing
        );
        seen.problems
            .push(Problem::error(Kind::SpacingMismatch, problem, remedy).at(&other.path));
    }
    for (kind, what, found, expected) in [
        (Kind::OriginMismatch, "origin", &b.origin, &a.origin),
        (
            Kind::DirectionMismatch,
            "direction",
            &b.direction,
            &a.direction,
        ),
    ] {
        if !close(found, expected) {
            let problem = format!("its {what} is {found:?}, that of {name} {expected:?}");
            seen.problems
                .push(Problem::warning(kind, problem, remedy).at(&other.path));
        }
    }
}

/// What is known after all cases.
#[derive(Default)]
struct Tally {
    labels: BTreeMap<i16, usize>,
    /// Image content, and the case that first had it.
    contents: HashMap<u64, (Split, String)>,
    /// Number of axes, and the case that first had it.
    dims: Option<(usize, String)>,
}

impl Tally {
    fn add(
        &mut self,
        case: &Case,
        split: Split,
        seen: &Seen,
        problems: &mut Vec<Problem>,
        dataset: &Dataset,
    ) {
        if split == Split::Training {
            for label in seen.labels.keys() {
                *self.labels.entry(*label).or_default() += 1;
            }
        }
        let file = case.images.first();
        let at = |problem: Problem| match file {
            Some(file) => problem.at(file).of(&case.id),
            None => problem.of(&case.id),
        };
        if let Some(content) = seen.fingerprint {
            match self.contents.get(&content) {
                Some((_, other)) if *other == case.id => {}
                // slices without anything in them are alike
                Some((part, other)) if case.slice_of.is_none() => {
                    let both = match *part == split {
                        true => "",
                        false => ", which trains: its score will say nothing about new cases",
                    };
                    let problem = format!("its image is that of case `{other}`{both}");
                    let remedy = "keep one of them";
                    problems.push(at(Problem::warning(Kind::DuplicateCase, problem, remedy)));
                }
                Some(_) => {}
                None => {
                    self.contents.insert(content, (split, case.id.clone()));
                }
            }
        }
        if let Some(dims) = seen.dims.filter(|_| !dataset.of_slices) {
            let (first, other) = self.dims.get_or_insert_with(|| (dims, case.id.clone()));
            if *first != dims {
                let problem = format!("it has {dims} axes, but case `{other}` has {first}");
                let remedy = "a data set is 2-D or 3-D throughout";
                problems.push(at(Problem::error(Kind::DimensionMismatch, problem, remedy)));
            }
        }
    }

    fn finish(self, dataset: &Dataset, problems: &mut Vec<Problem>) {
        let Dataset { info, training, .. } = dataset;
        if training.is_empty() || self.labels.is_empty() {
            return;
        }
        let mut classes: Vec<(String, Vec<i16>)> = info.foreground();
        classes.extend(
            info.labels
                .iter()
                .filter(|l| l.1 == 0)
                .map(|(n, v)| (n.clone(), vec![*v])),
        );
        for (name, values) in classes {
            if values.iter().all(|v| !self.labels.contains_key(v)) {
                let problem = format!("no training case has the label `{name}` ({values:?})");
                let remedy = "take the label out if it is never used: it cannot be learned";
                problems.push(Problem::note(Kind::UnusedLabel, problem, remedy));
            }
        }
    }
}

/// What is wrong with the folds.
fn lists(dataset: &Dataset) -> Vec<Problem> {
    let file = dataset.root.join(split::FILE);
    if !file.exists() {
        return Vec::new();
    }
    let ids = dataset.training_ids();
    split::faults(&file, &ids)
}

/// Cases that train and test.
fn trained_and_tested(dataset: &Dataset) -> Vec<Problem> {
    let both = dataset.training.iter().filter(|c| {
        let id = c.id.as_str();
        dataset
            .test
            .binary_search_by(|t| t.id.as_str().cmp(id))
            .is_ok()
    });
    let severity = |problem: &str, remedy: &str| match dataset.of_slices {
        true => Problem::note(Kind::DuplicateCase, problem, remedy),
        false => Problem::warning(Kind::DuplicateCase, problem, remedy),
    };
    both.map(|case| {
        severity(
            "it is a training or validation case and a test case",
            "its test score says little about new cases",
        )
        .of(&case.id)
    })
    .collect()
}
