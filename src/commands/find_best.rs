//! `find-best`: which network, or which pair of networks, with which postprocessing, by the Dice of the cases that each fold held out. The rules
//! are nnU-Net's (`evaluation/find_best_configuration.py`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use ndarray::{Array4, ArrayView4};
use serde::{Deserialize, Serialize};
use tch::Device;
use vision_mamba_datasets::parallel::for_each_in_order;
use vision_mamba_datasets::{
    probabilities, read_labels, Dataset, DatasetJson, Probabilities, Split,
};

use crate::cli::args::{CheckpointChoice, FindBestArgs, Global};
use crate::cli::exit::{Interrupted, Misuse};
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::engine::config::RunConfig;
use crate::engine::run_folder::{write_json, RunFolder};
use crate::inference::input::label_ending;
use crate::inference::member::{run_folders, Member};
use crate::inference::pipeline::check_writable;
use crate::inference::postprocess::{learn, Cases, DiceScores, Packed, Postprocessing, Scoring};
use crate::inference::volume::{segment_with, PredictOptions};
use crate::precision::Precision;
use crate::runtime::{self, StopFlag};
use crate::speed::Speed;

/// `best.json`: what was chosen, and every candidate's score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Of this form of the file.
    pub version: u32,
    /// The data set it was chosen on.
    pub dataset: String,
    /// Name of the chosen candidate.
    pub best: String,
    /// The runs that predict, relative to this file's folder where they lie in it.
    pub members: Vec<PathBuf>,
    /// Their weights; none: the last of each.
    pub checkpoint: Option<CheckpointChoice>,
    /// What is done to label maps.
    pub postprocessing: Postprocessing,
    /// Names of the classes or regions, in the order of the scores.
    pub classes: Vec<String>,
    /// Number of held-out cases.
    pub cases: usize,
    /// Dice of the chosen candidate as it predicts.
    pub dice: DiceScores,
    /// And after postprocessing.
    pub dice_postprocessed: DiceScores,
    /// Everything that was compared, in the order tried.
    pub candidates: Vec<Candidate>,
}

/// One network or a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Preset and configuration, of a pair joined by ` + `.
    pub name: String,
    /// Its runs.
    pub members: Vec<PathBuf>,
    /// Dice over the held-out cases.
    pub dice: DiceScores,
}

const VERSION: u32 = 1;

impl Best {
    /// Reads a `best.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let best: Self = RunFolder::read_json(path)?;
        ensure!(
            best.version == VERSION,
            "{} is of version {}, this program reads {VERSION}; make it anew with find-best",
            path.display(),
            best.version
        );
        ensure!(
            !best.members.is_empty(),
            "{}: field `members` names no run; make the file anew with find-best",
            path.display()
        );
        Ok(best)
    }

    /// The folders of its runs, for a file that was read from `path`.
    pub fn runs(&self, path: &Path) -> Vec<PathBuf> {
        let folder = path.parent().unwrap_or(Path::new(""));
        self.members.iter().map(|run| folder.join(run)).collect()
    }
}

/// The folds of one network.
struct Network {
    name: String,
    runs: Vec<PathBuf>,
    /// The run that held out each case, as a place in `runs`.
    holder: BTreeMap<String, usize>,
}

/// A run as its folder describes it.
struct Run {
    path: PathBuf,
    config: RunConfig,
    info: DatasetJson,
}

/// Compares, chooses, writes `best.json`.
pub fn run(args: &FindBestArgs, global: &Global, printer: &Printer) -> Result<()> {
    let runs = run_folders(&args.runs)?
        .into_iter()
        .map(open)
        .collect::<Result<Vec<_>>>()?;
    let first = runs.first().context("no --run was given")?;
    check(&runs)?;
    let out = match &args.out {
        Some(folder) => folder.clone(),
        None => absolute(&first.path)?
            .parent()
            .unwrap_or(Path::new("/"))
            .to_path_buf(),
    };
    check_writable(&out)?;
    let root = match &args.data {
        Some(root) => root.clone(),
        None => PathBuf::from(&first.config.dataset),
    };
    let dataset = Dataset::open(&root).with_context(|| {
        "the references of the held-out cases are needed; say where the data set is with --data"
    })?;
    let info = first.info.clone();
    let networks = networks(&runs)?;
    let ids = common_ids(&networks)?;
    let device = global.device.resolve()?;
    runtime::prepare(global.threads, device, printer);
    let stop = StopFlag::listen("case", printer)?;
    let threads = super::plan::threads(global);

    let references = references(&dataset, &ids, threads)?;
    let mut found = Found::new(&networks, &ids, &info.file_ending, &references, threads)?;
    let missing: usize = found
        .labels
        .iter()
        .flatten()
        .filter(|l| l.is_none())
        .count();
    if missing > 0 {
        printer.message(&format!(
            "{missing} held-out case(s) have no label map in validation/ and are predicted again"
        ));
    }
    let pairs = match args.ensembles {
        true => pairs_of(networks.len()),
        false => Vec::new(),
    };
    if missing > 0 || !pairs.is_empty() {
        Again {
            networks: &networks,
            dataset: &dataset,
            info: &info,
            checkpoint: args.checkpoint,
            device,
            folder: &out,
            stop: &stop,
        }
        .fill(&ids, &pairs, &mut found, printer)?;
    }

    let scoring = Scoring {
        classes: info.foreground().into_iter().map(|c| c.1).collect(),
        foreground: foreground(&info),
        ignored: info.ignore_label,
    };
    let mut candidates = Vec::new();
    let mut best: Option<(f64, usize, Cases)> = None;
    let names = networks.iter().map(|n| (n.name.clone(), n.runs.clone()));
    let paired = pairs.iter().map(|&(a, b)| {
        let (a, b) = (&networks[a], &networks[b]);
        (
            format!("{} + {}", a.name, b.name),
            a.runs.iter().chain(&b.runs).cloned().collect(),
        )
    });
    let all_labels = found.labels.into_iter().chain(found.paired);
    for ((name, members), labels) in names.chain(paired).zip(all_labels) {
        let labels: Option<Vec<Packed>> = labels.into_iter().collect();
        let labels = labels.with_context(|| format!("{name} lacks a case"))?;
        let cases = Cases {
            pairs: labels.into_iter().zip(references.iter().cloned()).collect(),
            scoring: scoring.clone(),
            threads,
        };
        let dice = cases.scores(&Postprocessing::default());
        let rank = rank(&dice);
        candidates.push(Candidate {
            name,
            members: members
                .iter()
                .map(|m| beside(&out, m))
                .collect::<Result<_>>()?,
            dice,
        });
        // of equals the first: single networks come before pairs
        if best.as_ref().is_none_or(|(most, ..)| rank > *most) {
            best = Some((rank, candidates.len() - 1, cases));
        }
    }
    let (_, chosen, cases) = best.context("there is no candidate")?;
    let (postprocessing, dice, dice_postprocessed) = learn(&cases);
    let best = Best {
        version: VERSION,
        dataset: absolute(&root)?.display().to_string(),
        best: candidates[chosen].name.clone(),
        members: candidates[chosen].members.clone(),
        checkpoint: args.checkpoint,
        postprocessing,
        classes: info.foreground().into_iter().map(|c| c.0).collect(),
        cases: ids.len(),
        dice,
        dice_postprocessed,
        candidates,
    };
    let file = out.join("best.json");
    write_json(&file, &best)?;
    let command = format!(
        "vision-mamba predict --best {} -i IMAGES -o LABELS",
        quoted(&file)
    );
    match args.json {
        true => printer.data(&serde_json::to_string_pretty(&best)?),
        false => printer.data(&format!("{}\n\n{command}", table(&best, &info))),
    }
    printer.message(&format!("written to {}", file.display()));
    if args.json {
        printer.message(&command);
    }
    Ok(())
}

fn open(path: PathBuf) -> Result<Run> {
    let folder = RunFolder::open(&path)?;
    Ok(Run {
        config: RunFolder::read_json(&folder.config())?,
        info: DatasetJson::read(&folder.dataset())?,
        path,
    })
}

/// Runs that can be compared: of one data set, each with cases held out.
fn check(runs: &[Run]) -> Result<()> {
    let first = &runs[0];
    for run in runs {
        let (a, b) = (&run.info, &first.info);
        if a.labels != b.labels || a.regions != b.regions || a.channel_names != b.channel_names {
            return Err(Misuse::error(format!(
                "{} was trained with other labels or channels than {}; only runs of one data set can be compared",
                run.path.display(),
                first.path.display()
            )));
        }
        if run.config.fold == "all" || run.config.validation_ids.is_empty() {
            return Err(Misuse::error(format!(
                "{} held out no cases (fold {}); only folds by number can be compared",
                run.path.display(),
                run.config.fold
            )));
        }
    }
    Ok(())
}

/// Runs by preset, its overrides, and configuration, in the order they were given.
fn networks(runs: &[Run]) -> Result<Vec<Network>> {
    let mut networks: Vec<Network> = Vec::new();
    for run in runs {
        let config = &run.config;
        let mut name = format!("{}/{}", config.preset, config.configuration);
        for (key, value) in &config.overrides {
            name += &format!(" {key}={value}");
        }
        let at = match networks.iter().position(|n| n.name == name) {
            Some(at) => at,
            None => {
                networks.push(Network {
                    name,
                    runs: Vec::new(),
                    holder: BTreeMap::new(),
                });
                networks.len() - 1
            }
        };
        let network = &mut networks[at];
        network.runs.push(run.path.clone());
        let number = network.runs.len() - 1;
        for id in &config.validation_ids {
            if let Some(other) = network.holder.insert(id.clone(), number) {
                return Err(Misuse::error(format!(
                    "{} and {} are both {} and held out the same case {id}; give one run of each fold",
                    network.runs[other].display(),
                    run.path.display(),
                    network.name
                )));
            }
        }
    }
    Ok(networks)
}

/// The held-out cases, the same of every network.
fn common_ids(networks: &[Network]) -> Result<Vec<String>> {
    let first = &networks[0];
    for network in networks {
        for (a, b) in [(first, network), (network, first)] {
            if let Some(id) = a.holder.keys().find(|id| !b.holder.contains_key(*id)) {
                return Err(Misuse::error(format!(
                    "case {id} was held out by a fold of {} but by none of {}; scores compare over the same cases only, so give the same folds of \
                     each",
                    a.name, b.name
                )));
            }
        }
    }
    Ok(first.holder.keys().cloned().collect())
}

fn pairs_of(n: usize) -> Vec<(usize, usize)> {
    (0..n)
        .flat_map(|a| (a + 1..n).map(move |b| (a, b)))
        .collect()
}

/// All labels but the background and the one that is not scored.
fn foreground(info: &DatasetJson) -> Vec<i16> {
    let mut values = info.label_values();
    values.retain(|v| *v != 0 && Some(*v) != info.ignore_label);
    values
}

/// Mean over the classes that occur: a class that nobody has says nothing about a network.
fn rank(dice: &DiceScores) -> f64 {
    crate::metrics::overlap::mean(dice.per_class.iter().copied()).unwrap_or(0.0)
}

fn references(dataset: &Dataset, ids: &[String], threads: usize) -> Result<Vec<Packed>> {
    let mut references = Vec::with_capacity(ids.len());
    for_each_in_order(
        ids,
        threads,
        |id| Ok(Packed::new(&dataset.load_label(id, Split::Training)?.data)),
        |_, reference: Result<Packed>| references.push(reference),
    );
    references.into_iter().collect()
}

/// Label maps of the held-out cases, as far as they are known.
struct Found {
    /// By network and case.
    labels: Vec<Vec<Option<Packed>>>,
    /// By pair and case.
    paired: Vec<Vec<Option<Packed>>>,
}

impl Found {
    fn new(
        networks: &[Network],
        ids: &[String],
        file_ending: &str,
        references: &[Packed],
        threads: usize,
    ) -> Result<Self> {
        let mut labels = Vec::new();
        for network in networks {
            let paths: Vec<(PathBuf, &Packed)> = ids
                .iter()
                .zip(references)
                .map(|(id, reference)| {
                    let run = &network.runs[network.holder[id]];
                    let name = format!("{id}{}", label_ending(file_ending));
                    (run.join("validation").join(name), reference)
                })
                .collect();
            let mut read = Vec::new();
            for_each_in_order(
                &paths,
                threads,
                |(path, reference)| -> Result<Option<Packed>> {
                    if !path.is_file() {
                        return Ok(None);
                    }
                    let found = Packed::new(&read_labels(path)?.data);
                    check_size(&found, reference, path)?;
                    Ok(Some(found))
                },
                |_, found| read.push(found),
            );
            labels.push(read.into_iter().collect::<Result<_>>()?);
        }
        Ok(Self {
            labels,
            paired: Vec::new(),
        })
    }
}

fn check_size(found: &Packed, reference: &Packed, of: &Path) -> Result<()> {
    ensure!(
        found.spatial() == reference.spatial(),
        "{} is of size {:?}, its reference of size {:?}; validate the run again with `train --resume`",
        of.display(),
        found.spatial(),
        reference.spatial()
    );
    Ok(())
}

/// Predicting held-out cases again.
struct Again<'a> {
    networks: &'a [Network],
    dataset: &'a Dataset,
    info: &'a DatasetJson,
    checkpoint: Option<CheckpointChoice>,
    device: Device,
    folder: &'a Path,
    stop: &'a StopFlag,
}

/// Probabilities out of a file or fresh from a network.
enum Values {
    Read(Array4<f32>),
    Made(Probabilities),
}

impl Values {
    fn view(&self) -> ArrayView4<'_, f32> {
        match self {
            Self::Read(values) => values.view(),
            Self::Made(values) => values.view(),
        }
    }
}

impl Again<'_> {
    /// Fills in what is missing. Cases go in the order of the runs that held them out, so that few networks are loaded at a time.
    fn fill(
        &self,
        ids: &[String],
        pairs: &[(usize, usize)],
        found: &mut Found,
        printer: &Printer,
    ) -> Result<()> {
        found.paired = vec![vec![None; ids.len()]; pairs.len()];
        let holders =
            |id: &String| -> Vec<usize> { self.networks.iter().map(|n| n.holder[id]).collect() };
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&case| holders(&ids[case]));
        let mut loaded: HashMap<PathBuf, [Member; 1]> = HashMap::new();
        let mut bar = Progress::new(printer, "predicting held-out cases", ids.len() as u64);
        for case in order {
            let id = &ids[case];
            let needed: Vec<&PathBuf> = self
                .networks
                .iter()
                .map(|n| &n.runs[n.holder[id]])
                .collect();
            loaded.retain(|run, _| needed.contains(&run));
            let mut values: Vec<Option<Values>> = Vec::new();
            for (number, run) in needed.iter().enumerate() {
                let labels = &mut found.labels[number][case];
                values.push(self.one(id, run, labels, !pairs.is_empty(), &mut loaded)?);
            }
            for (pair, &(a, b)) in pairs.iter().enumerate() {
                if let (Some(one), Some(two)) = (&values[a], &values[b]) {
                    let (one, two) = (one.view(), two.view());
                    if one.dim() != two.dim() {
                        bail!(
                            "case {id}: {} has probabilities of shape {:?}, {} of shape {:?}; validate both again",
                            needed[a].display(),
                            one.dim(),
                            needed[b].display(),
                            two.dim()
                        );
                    }
                    let labels = self.info.decision().labels_of_mean(&[one, two]);
                    found.paired[pair][case] = Some(Packed::new(&labels.into_dyn()));
                }
            }
            bar.step(|| id.clone());
        }
        bar.finish();
        Ok(())
    }

    /// The probabilities of a held-out case, where they are wanted, and its labels, where they are not known.
    fn one(
        &self,
        id: &str,
        run: &Path,
        labels: &mut Option<Packed>,
        wanted: bool,
        loaded: &mut HashMap<PathBuf, [Member; 1]>,
    ) -> Result<Option<Values>> {
        let file = run.join("validation").join(format!("{id}.npz"));
        if labels.is_some() && !wanted {
            return Ok(None);
        }
        if labels.is_some() && file.is_file() {
            return Ok(Some(Values::Read(probabilities::read(&file)?)));
        }
        if !loaded.contains_key(run) {
            let member = Member::load(run, self.checkpoint, self.device)?;
            loaded.insert(run.to_path_buf(), [member]);
        }
        let options = PredictOptions {
            tile_step: 0.5,
            mirroring: true,
            probabilities: wanted,
            precision: Precision::Float32,
            speed: Speed::default(),
        };
        let image = self.dataset.load_image(id, Split::Training)?;
        let restored = segment_with(
            &loaded[run],
            &image,
            &options,
            self.folder,
            &mut || match self.stop.is_set() {
                true => Err(Interrupted.into()),
                false => Ok(()),
            },
        )
        .with_context(|| format!("case {id}, {}", run.display()))?;
        if labels.is_none() {
            *labels = Some(Packed::new(&restored.labels.data));
        }
        Ok(restored.probabilities.map(Values::Made))
    }
}

/// A path as best.json has it: relative if it lies in the file's folder.
fn beside(folder: &Path, run: &Path) -> Result<PathBuf> {
    let (folder, run) = (absolute(folder)?, absolute(run)?);
    Ok(match run.strip_prefix(&folder) {
        Ok(inside) => inside.to_path_buf(),
        Err(_) => run,
    })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

fn table(best: &Best, info: &DatasetJson) -> String {
    let width = best.candidates.iter().map(|c| c.name.len()).max();
    let width = width.unwrap_or(0).max(16);
    let number = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    let row = |name: &str, dice: &DiceScores| {
        let classes = dice
            .per_class
            .iter()
            .map(|d| format!(" {:>10}", number(*d)));
        format!(
            "{name:<width$} {:>8}{}",
            number(dice.mean),
            classes.collect::<String>()
        )
    };
    let short = |name: &String| name.chars().take(10).collect::<String>();
    let heads = best.classes.iter().map(|c| format!(" {:>10}", short(c)));
    let mut text = format!(
        "{:<width$} {:>8}{}",
        format!("Dice, {} cases", best.cases),
        "mean",
        heads.collect::<String>()
    );
    for candidate in &best.candidates {
        text += &format!("\n{}", row(&candidate.name, &candidate.dice));
    }
    text += &format!("\n\nbest: {}", best.best);
    let steps = &best.postprocessing.keep_largest;
    if steps.is_empty() {
        return text + "\npostprocessing: none helps";
    }
    let all = foreground(info);
    let scored = info.foreground();
    let named: Vec<String> = steps
        .iter()
        .map(|step| match scored.iter().find(|c| c.1 == *step) {
            Some((name, _)) => name.clone(),
            None if *step == all => "all foreground".to_owned(),
            None => format!("{step:?}"),
        })
        .collect();
    text += &format!("\nlargest component only: {}", named.join(", "));
    text + &format!("\n{}", row("postprocessed", &best.dice_postprocessed))
}
