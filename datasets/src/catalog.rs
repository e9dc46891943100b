//! The benchmark data sets known by name: where they are obtained, how they lie on disk, how they are scored, and what was published.
//!
//! One file a data set, `datasets/catalog/NAME.toml`, compiled into the program. `datasets/catalog/README.md` says what each field means.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use include_dir::{include_dir, Dir};
use serde::{Deserialize, Serialize};

use crate::layout::pattern::Pattern;

static FILES: Dir = include_dir!("$CARGO_MANIFEST_DIR/catalog");

/// A benchmark data set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What commands call it.
    pub name: String,
    /// Its full name.
    pub title: String,
    /// What is done with it.
    pub task: Task,
    /// How the images were made, as `cine MR` or `CT`.
    pub modality: String,
    /// Spatial axes of a case.
    pub dimensions: usize,
    /// Terms of use.
    pub licence: String,
    /// The page where it is obtained.
    pub page: String,
    /// Who to cite.
    pub citation: String,
    /// What to do to have it, step by step.
    pub obtain: Vec<String>,
    /// The folder as downloaded, drawn as a tree.
    pub tree: String,
    /// Of pictures: the folder that holds it where a download holds others beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// Names of the channels, in the order of the files; they choose the normalisation.
    #[serde(default)]
    pub channels: Vec<String>,
    /// Classes, background first.
    #[serde(default)]
    pub labels: Vec<Label>,
    /// Overlapping classes, each a name and the label values it joins.
    #[serde(default)]
    pub regions: Vec<Region>,
    /// The label painted for each region, later ones over earlier.
    #[serde(default)]
    pub regions_class_order: Vec<i16>,
    /// How many cases there are.
    pub cases: Vec<Count>,
    /// The published split.
    pub split: String,
    /// Folder layouts it is found in beside those that are recognised by themselves.
    #[serde(default)]
    pub layouts: Vec<FileLayout>,
    /// Names of layouts that are recognised by themselves and that it is distributed in, as `verify` prints them.
    #[serde(default)]
    pub known_layouts: Vec<String>,
    /// Ways of scoring; the first is what `benchmark` takes unless told.
    pub protocols: Vec<Protocol>,
    /// What else a user must know.
    #[serde(default)]
    pub caveats: Vec<String>,
}

/// What a data set is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Label maps.
    Segmentation,
    /// Pictures without haze.
    Restoration,
}

/// A class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Its name.
    pub name: String,
    /// Its value in label maps.
    pub value: i16,
    /// Its value in the files, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<i32>,
}

/// A class that overlaps others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// The label values it joins.
    pub values: Vec<i16>,
}

/// Cases of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// `training`, `validation` or `test`.
    pub part: Part,
    /// How many a complete download has, in each form that it is distributed in.
    pub numbers: Vec<usize>,
    /// What is counted, as `volumes`.
    pub of: String,
    /// Whether their reference is public.
    pub public: bool,
    /// Names of the cases, or of what several cases belong to, as `patient{001..100}`, for saying which are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// To train on.
    Training,
    /// To choose by.
    Validation,
    /// To score.
    Test,
}

/// Where files lie: paths below the folder with `{name}` for what differs between cases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileLayout {
    /// What it is called in messages.
    pub name: String,
    /// The part that these files are.
    pub part: Part,
    /// The image files, one a channel.
    pub images: Vec<Pattern>,
    /// The label map, or the clear picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Pattern>,
    /// The case's name, put together of what differs; none: all of it, joined by `_`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// What cases of one patient share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// A way of scoring, and what was published with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// What `benchmark --protocol` calls it.
    pub name: String,
    /// Where it is defined.
    pub source: String,
    /// What is done to images before.
    pub preprocessing: String,
    /// Resolution that networks see.
    pub resolution: String,
    /// What one score is of: `volume`, `slice` or `picture`.
    pub unit: Unit,
    /// What an empty mask counts.
    pub empty: String,
    /// What is averaged over what.
    pub averaged: String,
    /// How the metrics are defined.
    pub metric: String,
    /// How it is computed here.
    pub score: Score,
    /// The metrics of the table, in its order.
    pub columns: Vec<String>,
    /// Published numbers.
    #[serde(default)]
    pub rows: Vec<Row>,
    /// What to know before comparing.
    #[serde(default)]
    pub caveats: Vec<String>,
}

/// What one score is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// A volume.
    Volume,
    /// A slice of one.
    Slice,
    /// A picture.
    Picture,
}

/// How a protocol is computed here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Score {
    /// Each class or region, as `evaluate segmentation` does.
    Classes {
        /// `nnunet`, `medpy`, `monai`, `deepmind` or `umamba`.
        convention: String,
        /// Whether distances are in voxels whatever the spacing.
        #[serde(default)]
        voxels: bool,
        /// Tolerance of normalised surface Dice in mm, by class; `default` for the others.
        #[serde(default)]
        tolerance: BTreeMap<String, f64>,
        /// Names of the classes that are averaged; none: all but the background.
        #[serde(default)]
        classes: Vec<String>,
    },
    /// As a published script does: a name of `evaluate segmentation --protocol`.
    Script {
        /// The name.
        script: String,
    },
    /// Restored pictures, as `evaluate restoration` does.
    Pictures {
        /// Pixels left out on each side.
        #[serde(default)]
        crop_border: u32,
    },
}

/// A published row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The network.
    pub network: String,
    /// The numbers by column; shares in [0, 1], distances in mm (in voxels where the protocol says so), PSNR in dB.
    pub values: BTreeMap<String, f64>,
    /// Paper and table.
    pub source: String,
    /// How sure the numbers are.
    pub verified: Verified,
    /// What to know about this row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caveat: Option<String>,
}

/// How sure a published row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verified {
    /// Read in the paper's or the repository's own table.
    Read,
    /// Read in another's table.
    Second,
}

impl Entry {
    /// A protocol by name; without one the first.
    pub fn protocol(&self, name: Option<&str>) -> Option<&Protocol> {
        match name {
            None => self.protocols.first(),
            Some(name) => self.protocols.iter().find(|p| p.name == name),
        }
    }
}

/// All entries, by name.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        // a test reads every file and says what is wrong with it
        let mut entries: Vec<Entry> = FILES
            .files()
            .filter_map(|file| toml::from_str(file.contents_utf8()?).ok())
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    })
}

/// An entry by name; upper and lower case are the same, and so are `-` and `_`.
pub fn find(name: &str) -> Option<&'static Entry> {
    let plain = |text: &str| text.to_lowercase().replace('_', "-");
    entries().iter().find(|e| plain(&e.name) == plain(name))
}

/// The names that `patient{001..003}` stands for; a name without a range stands for itself.
pub fn names_in(text: &str) -> Vec<String> {
    let range = || {
        let (before, rest) = text.split_once('{')?;
        let (inside, after) = rest.split_once('}')?;
        let (first, last) = inside.split_once("..")?;
        let width = first.len();
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(
            (first..=last)
                .map(|n| format!("{before}{n:0width$}{after}"))
                .collect(),
        )
    };
    range().unwrap_or_else(|| vec![text.to_owned()])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every file is read, belongs to its name, and says nothing that contradicts itself.
    #[test]
    fn every_file_of_the_catalogue_is_sound() {
        let files: Vec<_> = FILES
            .files()
            .filter(|f| f.path().extension().is_some_and(|e| e == "toml"))
            .collect();
        for file in &files {
            let entry: Entry = toml::from_str(file.contents_utf8().unwrap())
                .unwrap_or_else(|e| panic!("{}: {e}", file.path().display()));
            sound(&entry, file.path().file_stem().unwrap().to_str().unwrap());
        }
        assert_eq!(entries().len(), files.len());
        for name in [
            "acdc",
            "synapse",
            "btcv",
            "flare22",
            "amos22-mr",
            "endovis17",
            "neurips22-cells",
            "isic2017",
            "isic2018",
            "lits",
            "kits23",
            "brats21",
            "amos22",
            "sots-indoor",
            "sots-outdoor",
            "o-haze",
            "i-haze",
            "nh-haze",
            "dense-haze",
            "haze4k",
        ] {
            assert!(find(name).is_some(), "{name} is missing");
        }
        assert!(find("NH_HAZE").is_some() && find("no-such-set").is_none());
    }

    fn sound(entry: &Entry, stem: &str) {
        let name = &entry.name;
        assert_eq!(name, stem);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(name.chars().all(plain), "{name}");
        assert!(entry.page.starts_with("https://"), "{name}: {}", entry.page);
        for (field, text) in [
            ("title", &entry.title),
            ("modality", &entry.modality),
            ("licence", &entry.licence),
            ("citation", &entry.citation),
            ("tree", &entry.tree),
            ("split", &entry.split),
        ] {
            assert!(!text.trim().is_empty(), "{name}: {field} is empty");
        }
        assert!(
            !entry.obtain.is_empty() && !entry.protocols.is_empty() && !entry.cases.is_empty(),
            "{name}"
        );
        assert!(
            !entry.layouts.is_empty() || !entry.known_layouts.is_empty(),
            "{name}: no layout"
        );
        if entry.task == Task::Segmentation {
            assert_eq!(entry.labels.first().map(|l| l.value), Some(0), "{name}");
            let values: BTreeSet<i16> = entry.labels.iter().map(|l| l.value).collect();
            assert_eq!(values.len(), entry.labels.len(), "{name}: a value twice");
            assert!(!entry.channels.is_empty(), "{name}: channels");
            assert_eq!(
                entry.regions.len(),
                entry.regions_class_order.len(),
                "{name}"
            );
            for region in &entry.regions {
                assert!(
                    region.values.iter().all(|v| values.contains(v)),
                    "{name}: {}",
                    region.name
                );
            }
        }
        for layout in &entry.layouts {
            let known: BTreeSet<&str> = layout.images[0].places().collect();
            let others = layout.images[1..].iter().chain(&layout.reference);
            for pattern in others {
                assert!(
                    pattern.places().all(|p| known.contains(p)),
                    "{name}: {}",
                    pattern.text()
                );
            }
            if entry.task == Task::Segmentation {
                assert!(
                    layout.images.len() == 1 || layout.images.len() == entry.channels.len(),
                    "{name}: one file, or one a channel"
                );
            }
        }
        let names: BTreeSet<&str> = entry.protocols.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names.len(),
            entry.protocols.len(),
            "{name}: a protocol twice"
        );
        for protocol in &entry.protocols {
            assert!(!protocol.columns.is_empty(), "{name}");
            for row in &protocol.rows {
                assert!(!row.source.trim().is_empty(), "{name}: {}", row.network);
                for (column, value) in &row.values {
                    assert!(
                        protocol.columns.contains(column),
                        "{name}: {column} of {}",
                        row.network
                    );
                    assert!(value.is_finite(), "{name}");
                    let share = [
                        "Dice",
                        "IoU",
                        "NSD",
                        "F1",
                        "SSIM",
                        "accuracy",
                        "precision",
                        "sensitivity",
                        "specificity",
                    ];
                    if share.contains(&column.as_str()) {
                        assert!((0.0..=1.0).contains(value), "{name}: {column} {value}");
                    }
                }
            }
            if let Score::Classes {
                tolerance, classes, ..
            } = &protocol.score
            {
                let known = |class: &String| {
                    entry.labels.iter().any(|l| l.name == *class)
                        || entry.regions.iter().any(|r| r.name == *class)
                };
                assert!(
                    tolerance.keys().all(|c| c == "default" || known(c)),
                    "{name}: tolerance"
                );
                assert!(classes.iter().all(known), "{name}: classes");
            }
        }
        for count in &entry.cases {
            let listed: usize = count.names.iter().map(|n| names_in(n).len()).sum();
            assert!(count.names.is_empty() || listed > 0, "{name}");
        }
    }

    #[test]
    fn ranges_of_names() {
        assert_eq!(names_in("p{08..10}x"), ["p08x", "p09x", "p10x"]);
        assert_eq!(names_in("case_0001"), ["case_0001"]);
        assert_eq!(names_in("p{a..b}"), ["p{a..b}"]);
    }
}
