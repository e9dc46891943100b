//! All that is wrong with a folder of hazy and clear pictures, in one go.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use super::pairs::{Pair, Pairing, Part};
use super::pictures::border;
use crate::catalog::{self, Entry};
use crate::layout::problem::{Kind, Problem};
use crate::layout::verify::{missing, Report};
use crate::parallel::for_each_in_order;
use crate::{read_image, Result};

/// What a folder of pictures is called in reports.
pub const LAYOUT: &str = "hazy and clear pictures";

/// A folder of pictures to be verified.
pub struct Verification {
    found: Pairing,
    entry: Option<&'static Entry>,
}

impl Verification {
    /// Finds out which pictures belong together.
    pub fn start(root: &Path) -> Result<Self> {
        Ok(Self {
            found: Pairing::find(root)?,
            entry: None,
        })
    }

    /// Whether a hazy picture has a clear one.
    pub fn has_pairs(&self) -> bool {
        self.found.pairs.iter().any(|p| p.hazy.is_some())
    }

    /// Whether a name below `root` says that its picture is hazy: the other words that pairs go by are used for images and masks too.
    pub fn speaks_of_haze(&self, root: &Path) -> bool {
        let mut hazy = self.found.pairs.iter().filter_map(|p| p.hazy.as_deref());
        hazy.any(|path| {
            let below = path.strip_prefix(root).unwrap_or(path);
            let name = below.to_string_lossy().to_lowercase();
            name.contains("haz") || name.contains("fog")
        })
    }

    /// Compares it with this entry of the catalogue, whose pictures alone count where the folder holds other data sets too.
    pub fn against(mut self, root: &Path, entry: &'static Entry) -> Result<Self> {
        if entry.within.is_some() {
            self.found = Pairing::of_entry(root, entry)?;
        }
        self.entry = Some(entry);
        Ok(self)
    }

    /// Number of pairs to read.
    pub fn cases(&self) -> usize {
        self.found.pairs.len()
    }

    /// Reads every pair, on `threads` threads. `progress` hears of each.
    pub fn run(self, root: &Path, threads: usize, progress: &(dyn Fn(&str) + Sync)) -> Report {
        let mut problems: Vec<Problem> = (self.found.unmatched.iter())
            .map(|(path, why)| {
                let remedy = "add its partner, rename it, or take it away";
                Problem::warning(Kind::Unpaired, why.as_str(), remedy).at(path)
            })
            .collect();
        let pairs = &self.found.pairs;
        let mut contents: HashMap<u64, String> = HashMap::new();
        for_each_in_order(pairs, threads, look_at, |pair, (found, content)| {
            let found: Vec<Problem> = found;
            problems.extend(found.into_iter().map(|p| p.of(&pair.id)));
            if let (Some(content), Some(hazy)) = (content, &pair.hazy) {
                match contents.get(&content) {
                    Some(other) => {
                        let problem = format!("its hazy picture is that of `{other}`");
                        let twice =
                            Problem::warning(Kind::DuplicateCase, problem, "keep one of them");
                        problems.push(twice.at(hazy).of(&pair.id));
                    }
                    None => drop(contents.insert(content, pair.id.clone())),
                }
            }
            progress(&pair.id);
        });
        if pairs.is_empty() {
            let problem = "no pair of a hazy and a clear picture";
            let remedy = "give the folder that holds both, as hazy/ and clear/";
            problems.push(Problem::error(Kind::Empty, problem, remedy).at(root));
        }
        let test = pairs.iter().filter(|p| p.part == Part::Test).count();
        if let Some(entry) = self.entry {
            let names: Vec<(String, String)> = (pairs.iter())
                .map(|p| (plain(&p.id), plain(&p.scene)))
                .collect();
            let of = |part| {
                let counted = pairs.iter().filter(|p| p.part == part);
                let number = counted.count();
                (number > 0).then_some((number, &names[..]))
            };
            // sets that name no parts are for whatever the catalogue says of them
            let unstated = pairs.iter().all(|p| p.part == Part::Unstated);
            let single = entry.cases.len() == 1 || unstated;
            problems.extend(missing(entry, true, |part| match (single, part) {
                (true, part) => {
                    let first = entry.cases.first().is_some_and(|c| c.part == part);
                    first.then_some((pairs.len(), &names[..]))
                }
                (false, catalog::Part::Training) => of(Part::Train),
                (false, catalog::Part::Validation) => of(Part::Validation),
                (false, catalog::Part::Test) => of(Part::Test),
            }));
        }
        problems.sort_by(|a, b| {
            (a.severity, &a.case, a.kind, &a.file).cmp(&(b.severity, &b.case, b.kind, &b.file))
        });
        let mut notes = Vec::new();
        if !self.found.without_reference.is_empty() {
            let number = self.found.without_reference.len();
            notes.push(format!(
                "{number} hazy picture(s) in folders without clear ones"
            ));
        }
        Report {
            dataset: root.into(),
            layout: LAYOUT,
            cases: pairs.len(),
            training: pairs.len() - test,
            test,
            problems,
            notes,
        }
    }
}

/// The last part of a name that is a path.
fn plain(id: &str) -> String {
    id.rsplit('/').next().unwrap_or(id).to_owned()
}

/// What is wrong with a pair, and its hazy picture's content as a number.
fn look_at(pair: &Pair) -> (Vec<Problem>, Option<u64>) {
    let mut problems = Vec::new();
    let mut look = |path: &Path| match read_image(path) {
        Ok(image) => {
            let mut hasher = DefaultHasher::new();
            image
                .data
                .iter()
                .for_each(|v| v.to_bits().hash(&mut hasher));
            Some((image.spatial_size().to_vec(), hasher.finish()))
        }
        Err(error) => {
            problems.push(Problem::from_error(&error));
            None
        }
    };
    let clear = look(&pair.clear);
    let hazy = pair.hazy.as_deref().map(|path| (path, look(path)));
    let content = hazy.as_ref().and_then(|(_, found)| Some(found.as_ref()?.1));
    if let (Some((clear, _)), Some((path, Some((hazy, _))))) = (clear, hazy) {
        if border(path, &hazy, &pair.clear, &clear).is_err() {
            let problem = format!(
                "is {}x{} pixels, its clear picture {}x{}",
                hazy[1], hazy[0], clear[1], clear[0]
            );
            let remedy = "crop or scale one of them to the other, as the data set's page says";
            problems.push(Problem::error(Kind::ShapeMismatch, problem, remedy).at(path));
        }
    }
    (problems, content)
}
