//! Which files of a folder belong together, in every layout that dehazing sets come in, by one rule.
//!
//! A folder or a file has a role by a word of its name: hazy (`hazy`, `input`, `low` ..), clear (`GT`, `clear`, `target` ..) or depth. Words are
//! parted by what is no letter or digit and where a capital follows a small letter, so that `OutdoorTrainHazy` counts.
//! - Folders of different roles in the same folder belong together: RESIDE (`hazy`, `clear` or `gt`; `indoor` and `outdoor`), O-HAZE, I-HAZE,
//!   Dense-HAZE, Haze4K, low and high. Folders inside them are searched too.
//! - Files with a role in a folder without one belong together: NH-HAZE (`01_hazy.png`, `01_GT.png`).
//! - Where no folder and no file is hazy or clear by its name, all are clear; `depth/NAME.png` beside a picture is its depth.
//!
//! Names match without the words of their role (`01_outdoor_hazy.jpg`, `01_outdoor_GT.jpg`); of the hazy name numbers at the end are left off until
//! a clear picture is found (`0001_0.8_0.2.png`, `0001.png`). Endings do not matter. A `pairs.csv` beside the folders, with columns `hazy` and `gt` or
//! `clear`, goes before the names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::catalog::Entry;
use crate::layout::files::is_junk;
use crate::random::Random;
use crate::{DataError, Result};

const HAZY: &[&str] = &[
    "hazy", "haze", "foggy", "input", "inputs", "low", "lq", "rain", "rainy", "degraded", "noisy",
];
const CLEAR: &[&str] = &[
    "gt",
    "clear",
    "clean",
    "target",
    "targets",
    "high",
    "hq",
    "groundtruth",
    "reference",
    "norain",
];
const DEPTH: &[&str] = &["depth"];
/// Known by their names and of no use here: Haze4K's and RESIDE's transmission maps.
const OTHER: &[&str] = &["trans", "transmission"];
const ENDINGS: &[&str] = &["png", "jpg", "jpeg", "bmp"];
/// Folders within folders; the deepest known set has three.
const DEEPEST: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Hazy,
    Clear,
    Depth,
    Other,
}

/// What a data set says a picture is for, by a folder's name on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Nothing said.
    Unstated,
    /// `train`
    Train,
    /// `val`
    Validation,
    /// `test`
    Test,
}

/// Files that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Path of the hazy picture (else the clear one) from the root, without roles and ending: unique.
    pub id: String,
    /// The same of the clear picture: all pairs of a scene share it.
    pub scene: String,
    /// The damaged picture; none, and haze is drawn on the clear one.
    pub hazy: Option<PathBuf>,
    /// The whole picture.
    pub clear: PathBuf,
    /// Depth of the clear picture, where a map is there.
    pub depth: Option<PathBuf>,
    /// What the data set says it is for.
    pub part: Part,
}

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pairing {
    /// Sorted by `id`.
    pub pairs: Vec<Pair>,
    /// Files without a partner, and what was looked for.
    pub unmatched: Vec<(PathBuf, String)>,
    /// Hazy pictures in folders that no clear ones belong to, such as photographs of real haze.
    pub without_reference: Vec<PathBuf>,
}

/// Pairs apart by scene.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SceneSplit {
    /// To learn from.
    pub train: Vec<Pair>,
    /// To choose the best weights by.
    pub validation: Vec<Pair>,
}

/// A file, and its name as others are compared with it.
struct Named {
    path: PathBuf,
    key: String,
}

#[derive(Default)]
struct Set {
    files: BTreeMap<Role, Vec<Named>>,
}

/// Words of a name, small.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        let starts = !c.is_alphanumeric() || (before.is_lowercase() && c.is_uppercase());
        if starts {
            words.push(String::new());
        }
        if let (true, Some(word)) = (c.is_alphanumeric(), words.last_mut()) {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|w| !w.is_empty());
    words
}

fn role_of_words(words: &[String]) -> Option<Role> {
    let has = |list: &[&str]| words.iter().any(|w| list.contains(&w.as_str()));
    [
        (Role::Other, OTHER),
        (Role::Depth, DEPTH),
        (Role::Clear, CLEAR),
        (Role::Hazy, HAZY),
    ]
    .into_iter()
    .find_map(|(role, list)| has(list).then_some(role))
}

/// Role of a file: by the last piece of its name, so that `01_hazy.png` has one and `hazy_morning_2.png` none.
fn split_role(stem: &str) -> (Option<Role>, &str) {
    if let Some((rest, last)) = stem.rsplit_once(['_', '-', ' ', '.']) {
        if let (Some(role), false) = (role_of_words(&[last.to_lowercase()]), rest.is_empty()) {
            return (Some(role), rest);
        }
    }
    (None, stem)
}

fn part_of(relative: &Path) -> Part {
    let has = |list: &[&str], words: &[String]| words.iter().any(|w| list.contains(&w.as_str()));
    for component in relative.components() {
        let words = words(&component.as_os_str().to_string_lossy());
        for (part, list) in [
            (Part::Train, &["train", "training"][..]),
            (Part::Validation, &["val", "valid", "validation"]),
            (Part::Test, &["test", "testing"]),
        ] {
            if has(list, &words) {
                return part;
            }
        }
    }
    Part::Unstated
}

/// Folders and pictures in a folder, sorted; hidden ones left out.
fn listed(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut folders, mut pictures) = (Vec::new(), Vec::new());
    let entries = std::fs::read_dir(folder).map_err(|e| DataError::listing(folder, e))?;
    for entry in entries {
        let path = entry.map_err(|e| DataError::listing(folder, e))?.path();
        let hidden = path
            .file_name()
            .is_some_and(|n| is_junk(&n.to_string_lossy()));
        let ending = path
            .extension()
            .map(|e| e.to_string_lossy().to_lowercase())
            .unwrap_or_default();
        if hidden {
            continue;
        } else if path.is_dir() {
            folders.push(path);
        } else if ENDINGS.contains(&ending.as_str()) {
            pictures.push(path);
        }
    }
    folders.sort();
    pictures.sort();
    Ok((folders, pictures))
}

/// The nearest folder of a name below another, upper and lower case alike.
fn folder_called(root: &Path, called: &str, depth: usize) -> Result<Option<PathBuf>> {
    if depth == DEEPEST {
        return Ok(None);
    }
    let (folders, _) = listed(root)?;
    let own = |f: &&PathBuf| words(&name(f)).iter().any(|w| w == called);
    if let Some(found) = folders.iter().find(own) {
        return Ok(Some(found.clone()));
    }
    for folder in &folders {
        if let Some(found) = folder_called(folder, called, depth + 1)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Whether folders or files below this one are of another role than its name says.
fn holds_others(folder: &Path, role: Role, depth: usize) -> Result<bool> {
    if depth > DEEPEST {
        return Ok(false);
    }
    let (folders, pictures) = listed(folder)?;
    let other = |found: Option<Role>| {
        found.is_some_and(|f| f != role && matches!(f, Role::Hazy | Role::Clear))
    };
    // files that say themselves what they are, all of them and both kinds; `after-the-rain.png` among clear ones says nothing
    let said: Option<Vec<Role>> = pictures.iter().map(|p| split_role(&stem(p)).0).collect();
    let said = said.unwrap_or_default();
    if said.contains(&Role::Hazy) && said.contains(&Role::Clear) {
        return Ok(true);
    }
    for sub in folders {
        if other(role_of_words(&words(&name(&sub)))) || holds_others(&sub, role, depth + 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds the sets below `folder`: those of its own files and, through `inside`, those of a folder with a role that lies within it.
fn walk(
    folder: &Path,
    inside: Option<(Role, &Path)>,
    depth: usize,
    sets: &mut BTreeMap<PathBuf, Set>,
    plain: &mut Vec<PathBuf>,
) -> Result<()> {
    let (folders, pictures) = listed(folder)?;
    for path in pictures {
        let stem = stem(&path);
        let (own, rest) = split_role(&stem);
        let (role, owner, key) = match (inside, own) {
            // the folder has the say; its word is not part of the name
            (Some((role, owner)), Some(own)) if own == role => (role, owner, rest.to_string()),
            (Some((role, owner)), _) => (role, owner, stem.clone()),
            (None, Some(role)) => (role, folder, rest.to_string()),
            (None, None) => {
                plain.push(path);
                continue;
            }
        };
        let set = sets.entry(owner.to_path_buf()).or_default();
        set.files.entry(role).or_default().push(Named { path, key });
    }
    for sub in folders {
        if depth == DEEPEST {
            let problem = format!("folders within folders beyond {DEEPEST}");
            return Err(DataError::NotSupported {
                path: sub,
                what: problem,
                remedy: "give a folder further inside".into(),
            });
        }
        let role = role_of_words(&words(&name(&sub)));
        let found = match role {
            // `O-HAZE` with `hazy` and `GT` in it is no folder of hazy pictures
            Some(role) if holds_others(&sub, role, depth + 1)? => None,
            Some(role) => inside.or(Some((role, folder))),
            None => inside,
        };
        walk(&sub, found, depth + 1, sets, plain)?;
    }
    Ok(())
}

/// `pairs.csv`: names of hazy files and of their clear ones.
fn read_table(folder: &Path) -> Result<BTreeMap<String, String>> {
    let path = folder.join("pairs.csv");
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    let text = std::fs::read_to_string(&path).map_err(|e| DataError::reading(&path, e))?;
    let mut lines = text.lines().map(|l| l.split(',').map(str::trim));
    let header: Vec<String> = lines
        .next()
        .map(|l| l.map(str::to_lowercase).collect())
        .unwrap_or_default();
    let column = |names: &[&str]| header.iter().position(|h| names.contains(&h.as_str()));
    let (Some(hazy), Some(clear)) = (column(&["hazy"]), column(&["gt", "clear"])) else {
        return Ok(BTreeMap::new());
    };
    let table = lines.filter_map(|line| {
        let fields: Vec<&str> = line.collect();
        Some((
            fields.get(hazy)?.to_string(),
            fields.get(clear)?.to_string(),
        ))
    });
    Ok(table.collect())
}

/// The name, and the name less one, two .. numbers at its end.
fn shortened(key: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(key), |key| {
        let (rest, last) = key.rsplit_once('_')?;
        let number = last.parse::<f64>().is_ok_and(f64::is_finite);
        (number && !rest.is_empty()).then_some(rest)
    })
}

fn match_set(root: &Path, folder: &Path, mut set: Set, found: &mut Pairing) -> Result<()> {
    let mut take = |role| set.files.remove(&role).unwrap_or_default();
    let (hazy, clear, depth) = (take(Role::Hazy), take(Role::Clear), take(Role::Depth));
    if clear.is_empty() {
        let paths = hazy.into_iter().map(|n| n.path);
        found.without_reference.extend(paths);
        return Ok(());
    }
    let table = read_table(folder)?;
    let relative = folder.strip_prefix(root).unwrap_or(folder);
    let id = |key: &str| {
        let path = relative.join(key);
        path.to_string_lossy()
            .replace(std::path::MAIN_SEPARATOR, "/")
    };
    let mut by_key: BTreeMap<&str, &Named> = BTreeMap::new();
    let mut by_name: BTreeMap<String, &Named> = BTreeMap::new();
    for named in &clear {
        by_name.insert(name(&named.path), named);
        if let Some(first) = by_key.insert(&named.key, named) {
            let same = format!("has the same name as {}; keep one", first.path.display());
            found.unmatched.push((named.path.clone(), same));
            by_key.insert(&named.key, first);
        }
    }
    let mut depth_of: BTreeMap<&str, &Path> = BTreeMap::new();
    for map in &depth {
        match by_key.contains_key(map.key.as_str()) {
            true => drop(depth_of.insert(&map.key, &map.path)),
            false => {
                let wanted = format!("no clear picture `{}` for this depth map", map.key);
                found.unmatched.push((map.path.clone(), wanted));
            }
        }
    }
    let pair = |key: &str, hazy: Option<&Named>, clear: &Named| Pair {
        id: id(key),
        scene: id(&clear.key),
        hazy: hazy.map(|h| h.path.clone()),
        clear: clear.path.clone(),
        depth: depth_of.get(clear.key.as_str()).map(|p| p.to_path_buf()),
        part: part_of(clear.path.strip_prefix(root).unwrap_or(&clear.path)),
    };
    if hazy.is_empty() {
        let alone = by_key.values().map(|clear| pair(&clear.key, None, clear));
        found.pairs.extend(alone);
        return Ok(());
    }
    let mut used = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for named in &hazy {
        let listed = table.get(&name(&named.path)).and_then(|n| by_name.get(n));
        // a last word such as `rain` may be the picture's name rather than what it is
        let whole = stem(&named.path);
        let keys = || std::iter::once(&*whole).chain(shortened(&named.key));
        let clear = listed.or_else(|| keys().find_map(|key| by_key.get(key)));
        let Some(clear) = clear else {
            let wanted = format!(
                "no clear picture `{}`",
                shortened(&named.key).last().unwrap_or("")
            );
            found.unmatched.push((named.path.clone(), wanted));
            continue;
        };
        used.insert(&clear.path);
        // the same name with two endings, or in two folders
        let key = match ids.insert(named.key.clone()) {
            true => named.key.clone(),
            false => {
                let inner = named.path.strip_prefix(folder).unwrap_or(&named.path);
                inner.to_string_lossy().into_owned()
            }
        };
        found.pairs.push(pair(&key, Some(named), clear));
    }
    for named in by_key.values().filter(|n| !used.contains(&n.path)) {
        let wanted = format!("no hazy picture of `{}`", named.key);
        found.unmatched.push((named.path.clone(), wanted));
    }
    Ok(())
}

impl Pairing {
    /// Everything in a folder and the folders in it. Files without a partner are no error here, see [`complete`](Self::complete).
    pub fn find(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            return Err(DataError::Missing {
                what: "folder",
                path: root.into(),
                remedy: "check the path".into(),
            });
        }
        let (mut sets, mut plain): (BTreeMap<PathBuf, Set>, Vec<PathBuf>) = Default::default();
        // a root that is itself called `clear` is a folder of clear pictures either way
        walk(root, None, 0, &mut sets, &mut plain)?;
        let mut found = Self::default();
        let has_roles =
            |set: &Set| set.files.contains_key(&Role::Hazy) || set.files.contains_key(&Role::Clear);
        if sets.values().any(has_roles) {
            let what = "neither its name nor its folder's says whether it is hazy or clear";
            let stray = plain.into_iter().map(|path| (path, what.to_string()));
            found.unmatched.extend(stray);
        } else {
            for path in plain {
                let folder = path.parent().unwrap_or(root).to_path_buf();
                let key = stem(&path);
                let files = &mut sets.entry(folder).or_default().files;
                let named = Named { path, key };
                files.entry(Role::Clear).or_default().push(named);
            }
        }
        for (folder, set) in sets {
            match_set(root, &folder, set, &mut found)?;
        }
        found.pairs.sort_by(|a, b| a.id.cmp(&b.id));
        found.unmatched.sort();
        if found.pairs.is_empty() && found.unmatched.is_empty() {
            return Err(DataError::Missing {
                what: "a clear picture in",
                path: root.into(),
                remedy: "give a folder with `hazy` and `clear` (or `GT`) in it, or one of clear pictures".into(),
            });
        }
        Ok(found)
    }

    /// The pairs of an entry of the catalogue: of its own folder, where a download holds several data sets, and of its test part, where it has
    /// parts.
    pub fn of_entry(root: &Path, entry: &Entry) -> Result<Self> {
        let own = match &entry.within {
            Some(folder) => folder_called(root, folder, 0)?,
            None => None,
        };
        let mut found = Self::find(own.as_deref().unwrap_or(root))?;
        if found.pairs.iter().any(|p| p.part == Part::Test) {
            let tests = |path: &Path| {
                let below = path.strip_prefix(root).unwrap_or(path);
                matches!(part_of(below), Part::Test | Part::Unstated)
            };
            found.pairs.retain(|p| p.part == Part::Test);
            found.unmatched.retain(|(path, _)| tests(path));
        }
        found.pairs.retain(|p| p.hazy.is_some());
        Ok(found)
    }

    /// Fails when a file has no partner, with the names of all of them.
    pub fn complete(self) -> Result<Self> {
        let errors = self
            .unmatched
            .iter()
            .map(|(path, problem)| DataError::Case {
                case: path.display().to_string(),
                problem: format!(
                    "{problem}; add the missing file, rename it or move this one away"
                ),
            });
        DataError::all(errors.collect())?;
        Ok(self)
    }

    /// Pairs to learn from and pairs to choose weights by, no scene in both. Where the data set has a part for validation, that is it; otherwise
    /// `share` of the scenes, at least one, drawn by `seed` and the scenes' names alone. A part for testing is in neither, unless it is all there is.
    pub fn split(&self, share: f64, seed: u64) -> Result<SceneSplit> {
        super::check_share("share of scenes for validation", share)?;
        let mut pool: Vec<&Pair> = self.pairs.iter().filter(|p| p.part != Part::Test).collect();
        if pool.is_empty() {
            pool = self.pairs.iter().collect();
        }
        let stated: BTreeSet<&str> = scenes(pool.iter().filter(|p| p.part == Part::Validation));
        let mut held = stated;
        if held.is_empty() {
            let all: Vec<&str> = scenes(pool.iter()).into_iter().collect();
            if all.len() < 2 {
                return Err(DataError::Setting {
                    field: "number of scenes".into(),
                    found: all.len().to_string(),
                    expected: "at least two are needed, one of them to validate with; add pictures"
                        .into(),
                });
            }
            let count = ((all.len() as f64 * share).round() as usize).clamp(1, all.len() - 1);
            let mut drawn: Vec<(f64, &str)> = all
                .into_iter()
                .map(|scene| (Random::new(seed, name_number(scene), 0).unit(), scene))
                .collect();
            drawn.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
            held = drawn
                .into_iter()
                .take(count)
                .map(|(_, scene)| scene)
                .collect();
        }
        let (validation, train) = pool
            .into_iter()
            .cloned()
            .partition(|p| held.contains(p.scene.as_str()));
        Ok(SceneSplit { train, validation })
    }
}

fn scenes<'a, 'b: 'a>(pairs: impl Iterator<Item = &'a &'b Pair>) -> BTreeSet<&'b str> {
    pairs.map(|p| p.scene.as_str()).collect()
}

/// FNV-1a: the same on every platform, as the standard library's hash is not said to be.
fn name_number(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}
