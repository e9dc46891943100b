//! Data sets of hazy and clear pictures: restored, or found restored, and compared with the clear ones.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{bail, ensure, Context, Result};
use image::imageops::{replace, resize, FilterType};
use image::RgbImage;
use tch::Device;
use vision_mamba_datasets::catalog::{Entry, Protocol, Score};
use vision_mamba_datasets::parallel::for_each_in_order;
use vision_mamba_datasets::restoration::pairs::{Pair, Pairing};
use vision_mamba_datasets::restoration::pictures::read_pair;
use vision_mamba_datasets::{atomically, io::read_rgb};
use vision_mamba_models::weights::shipped::{DEHAZE, DEHAZE_THIN};

use super::{jpeg, Part, Scored, Scorer, Shown};
use crate::benchmark::members::{Entrant, Source};
use crate::benchmark::predictions::{file_into, Kept};
use crate::benchmark::score::{CaseRow, ClassRow};
use crate::cli::args::{BenchmarkArgs, CasesChoice, CheckpointChoice, DehazeMethod, Global};
use crate::cli::exit::{Interrupted, Misuse};
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::dehaze::clearing::Clearing;
use crate::dehaze::dark_channel;
use crate::dehaze::network::Dehazer;
use crate::engine::run_folder::RunFolder;
use crate::metrics::restoration::{ciede2000, psnr, ssim, Channels, Window};
use crate::photo::{self, Format, Photo};
use crate::runtime::{self, StopFlag};

/// What a picture is scored as, having no classes.
const WHOLE: &str = "picture";
/// Longest side of each of the three pictures beside one another.
const SHOWN_SIDE: u32 = 640;
/// Pictures are kept in this format, which loses nothing of 8 bits.
const KEPT: &str = ".png";

/// A folder of hazy and clear pictures.
pub(super) struct Pictures<'a> {
    pairs: Vec<Pair>,
    failures: Vec<String>,
    remarks: Vec<String>,
    columns: Vec<String>,
    crop: u32,
    out: PathBuf,
    checkpoint: Option<CheckpointChoice>,
    device: Device,
    threads: usize,
    memory: u64,
    tile: Option<usize>,
    stop: StopFlag,
    printer: &'a Printer,
}

/// How a picture is cleared.
enum Method {
    Prior(dark_channel::Options),
    Network(Box<Clearing>),
}

impl<'a> Pictures<'a> {
    pub(super) fn open(
        args: &BenchmarkArgs,
        global: &Global,
        entry: &'static Entry,
        protocol: &Protocol,
        out: &Path,
        printer: &'a Printer,
    ) -> Result<Self> {
        let Score::Pictures { crop_border } = protocol.score else {
            bail!("{} is not scored on pictures", entry.title);
        };
        if args.cases == CasesChoice::Validation {
            return Err(Misuse::error(format!(
                "{} has no validation part: leave out --cases validation",
                entry.title
            )));
        }
        let found = Pairing::of_entry(&args.data, entry)?;
        let mut failures: Vec<String> = (found.unmatched.iter())
            .map(|(path, why)| format!("{}: {why}", path.display()))
            .collect();
        let (pairs, twice) = once(found.pairs);
        failures.extend(twice);
        for failure in &failures {
            printer.warning(failure);
        }
        ensure!(
            !pairs.is_empty(),
            "{} holds no pair of a hazy and a clear picture{}; `datasets show {}` draws the folder",
            args.data.display(),
            failures
                .first()
                .map(|f| format!(" ({f})"))
                .unwrap_or_default(),
            entry.name
        );
        let complete = entry.cases.iter().map(|c| (c, c.numbers.clone()));
        let test = complete
            .filter(|(c, _)| c.part == vision_mamba_datasets::catalog::Part::Test)
            .find(|(_, numbers)| !numbers.contains(&pairs.len()));
        let remarks: Vec<String> = test
            .map(|(count, numbers)| {
                let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
                format!(
                    "{} pictures, but a complete download has {} ({})",
                    pairs.len(),
                    numbers.join(" or "),
                    count.of
                )
            })
            .into_iter()
            .collect();
        for remark in &remarks {
            printer.warning(&format!(
                "{remark}; fetch what is missing, see `datasets show {}`",
                entry.name
            ));
        }
        Ok(Self {
            pairs,
            failures,
            remarks,
            columns: protocol.columns.clone(),
            crop: crop_border,
            out: out.into(),
            checkpoint: args.checkpoint,
            device: global.device.resolve()?,
            threads: crate::commands::plan::threads(global),
            memory: match args.max_memory {
                Some(gb) if gb > 0.0 => (gb * 1e9) as u64,
                Some(gb) => {
                    return Err(Misuse::error(format!("--max-memory {gb}: must be above 0")))
                }
                None => runtime::free_memory() / 2,
            },
            tile: args.tile.map(|t| t as usize),
            stop: StopFlag::listen("picture", printer)?,
            printer,
        })
    }

    /// The restored picture of each pair, made now or before.
    fn restored(&self, entrant: &Entrant) -> Result<(BTreeMap<String, PathBuf>, Vec<String>)> {
        let (mut method, made_of) = self.method(entrant)?;
        let mut kept = Kept::open(&self.out.join("predictions").join(&entrant.name))?;
        let (mut files, mut problems, mut reused) = (BTreeMap::new(), Vec::new(), 0);
        let mut bar = Progress::new(self.printer, "dehazing", self.pairs.len() as u64);
        for pair in &self.pairs {
            match self.restore(pair, &mut method, made_of, &mut kept) {
                Ok((file, was_there)) => {
                    reused += usize::from(was_there);
                    files.insert(pair.id.clone(), file);
                }
                Err(error) if error.is::<Interrupted>() => {
                    bar.finish();
                    self.printer
                        .message("stopped; the same command goes on from here");
                    return Err(error);
                }
                Err(error) => problems.push(format!("{}: {error:#}", pair.id)),
            }
            bar.step(|| format!("{} {}", entrant.name, pair.id));
        }
        bar.finish();
        if reused > 0 {
            self.printer.message(&format!(
                "{}: {reused} picture(s) of before are used, nothing they follow from has changed",
                entrant.name
            ));
        }
        Ok((files, problems))
    }

    /// How an entrant clears pictures, and a number for all that its pictures follow from beside the hazy ones.
    fn method(&self, entrant: &Entrant) -> Result<(Method, u64)> {
        let mut hasher = DefaultHasher::new();
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        let method = match &entrant.source {
            Source::Restorer(folder, _) => {
                let run = RunFolder::open(folder)?;
                file_into(&run.config(), &mut hasher)?;
                file_into(&run.pick_checkpoint(self.checkpoint)?, &mut hasher)?;
                let net = Dehazer::of_run(folder, self.checkpoint, self.device)?;
                Method::Network(Box::new(Clearing::new(net)?))
            }
            Source::Method(DehazeMethod::Network) => {
                DEHAZE.content.hash(&mut hasher);
                DEHAZE_THIN.map(f64::to_bits).hash(&mut hasher);
                let net = Dehazer::default_weights(self.device, false)?;
                Method::Network(Box::new(Clearing::new(net)?))
            }
            Source::Method(DehazeMethod::Dcp) => Method::Prior(dark_channel::Options::default()),
            Source::Runs(_) | Source::Files(_) => bail!("it restores no pictures"),
        };
        match &method {
            Method::Prior(options) => format!("{options:?}").hash(&mut hasher),
            Method::Network(_) => self.tile.hash(&mut hasher),
        }
        Ok((method, hasher.finish()))
    }

    fn restore(
        &self,
        pair: &Pair,
        method: &mut Method,
        made_of: u64,
        kept: &mut Kept,
    ) -> Result<(PathBuf, bool)> {
        if self.stop.is_set() {
            return Err(Interrupted.into());
        }
        let hazy = pair.hazy.as_deref().context("it has no hazy picture")?;
        let mut hasher = DefaultHasher::new();
        made_of.hash(&mut hasher);
        file_into(hazy, &mut hasher)?;
        let state = format!("{:016x}", hasher.finish());
        let file = kept.file(&pair.id, KEPT);
        if kept.is_current(&pair.id, &file, &state) {
            return Ok((file, true));
        }
        let hazy = Photo::of_rgb8(read_rgb(hazy)?);
        let clear = match method {
            Method::Prior(options) => dark_channel::dehaze(&hazy, options, self.threads),
            Method::Network(network) => {
                network.clear(&hazy, self.memory, self.tile, &self.stop, self.printer)?
            }
        };
        let png = photo::encode(&clear, Format::Png, 100)?;
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        atomically(&file, |out| out.write_all(&png))?;
        kept.remember(&pair.id, state)?;
        Ok((file, false))
    }

    /// Pictures that another program restored, by the names of the hazy ones.
    fn found(&self, folder: &Path) -> Result<(BTreeMap<String, PathBuf>, Vec<String>)> {
        let mut by_stem: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        gather(folder, 0, &mut by_stem)?;
        let mut scenes: HashMap<&str, usize> = HashMap::new();
        for pair in &self.pairs {
            *scenes.entry(&pair.scene).or_default() += 1;
        }
        let (mut files, mut problems) = (BTreeMap::new(), Vec::new());
        for pair in &self.pairs {
            let names = names(pair, scenes[pair.scene.as_str()] == 1);
            let found = names.iter().find_map(|name| by_stem.get(name));
            match found.map(Vec::as_slice) {
                Some([file]) => drop(files.insert(pair.id.clone(), file.clone())),
                Some([a, b, ..]) => problems.push(format!(
                    "{}: {} and {} are both of it; take one of them out",
                    pair.id,
                    a.display(),
                    b.display()
                )),
                _ => problems.push(format!(
                    "{}: {} is missing; restore this picture too, or take it out of the data",
                    pair.id,
                    folder.join(format!("{}{KEPT}", names[0])).display()
                )),
            }
        }
        ensure!(
            !files.is_empty(),
            "{} holds no restored picture of a case{}",
            folder.display(),
            problems
                .first()
                .map(|p| format!(": {p}"))
                .unwrap_or_default()
        );
        Ok((files, problems))
    }

    fn compare(&self, pair: &Pair, file: &Path) -> Result<CaseRow> {
        let (_, clear) = read_pair(pair)?;
        let restored = read_rgb(file)?;
        ensure!(
            restored.dimensions() == clear.dimensions(),
            "{} is of size {:?}, the hazy picture {:?}; restore it without scaling",
            file.display(),
            restored.dimensions(),
            clear.dimensions()
        );
        let number = |column: &str| -> Result<Option<f64>> {
            Ok(Some(match column {
                "PSNR" => psnr(&restored, &clear, Channels::Rgb, self.crop)?,
                "SSIM" => ssim(
                    &restored,
                    &clear,
                    Channels::Rgb,
                    Window::Gaussian,
                    self.crop,
                )?,
                "CIEDE2000" => ciede2000(&restored, &clear, self.crop)?,
                _ => return Ok(None),
            }))
        };
        let mut numbers = BTreeMap::new();
        for column in &self.columns {
            numbers.insert(column.clone(), number(column)?);
        }
        Ok(CaseRow {
            case: pair.id.clone(),
            classes: vec![ClassRow {
                class: WHOLE.into(),
                size: None,
                numbers,
            }],
        })
    }
}

impl Scorer for Pictures<'_> {
    fn failures(&self) -> &[String] {
        &self.failures
    }

    fn remarks(&self) -> &[String] {
        &self.remarks
    }

    fn score(&self, entrant: &Entrant) -> Result<Scored> {
        let (mut files, mut problems) = match &entrant.source {
            Source::Files(folder) => self.found(folder)?,
            _ => self.restored(entrant)?,
        };
        let tasks: Vec<(&Pair, &PathBuf)> = (self.pairs.iter())
            .filter_map(|pair| Some((pair, files.get(&pair.id)?)))
            .collect();
        let bar = Mutex::new(Progress::new(self.printer, "scoring", tasks.len() as u64));
        let (mut rows, mut broken) = (Vec::new(), Vec::new());
        for_each_in_order(
            &tasks,
            self.threads,
            |(pair, file)| match self.stop.is_set() {
                true => Err(Interrupted.into()),
                false => self.compare(pair, file),
            },
            |(pair, _), outcome: Result<CaseRow>| {
                match outcome {
                    Ok(row) => rows.push(row),
                    Err(error) => broken.push((pair.id.clone(), error)),
                }
                if let Ok(mut bar) = bar.lock() {
                    bar.step(|| pair.id.clone());
                }
            },
        );
        if let Ok(bar) = bar.lock() {
            bar.finish();
        }
        for (id, error) in broken {
            if error.is::<Interrupted>() {
                return Err(error);
            }
            files.remove(&id);
            problems.push(format!("{id}: {error:#}"));
        }
        Ok(Scored {
            rows,
            part: Part::Test,
            problems,
            files,
        })
    }

    fn show(&self, case: &str, prediction: &Path, _: Part) -> Result<Shown> {
        let pair = self.pairs.iter().find(|p| p.id == case);
        let (hazy, clear) = read_pair(pair.context("the picture is gone")?)?;
        let all = [hazy, read_rgb(prediction)?, clear].map(|p| small(&p));
        let width: u32 = all.iter().map(RgbImage::width).sum();
        let height = all.iter().map(RgbImage::height).max().unwrap_or(1);
        let mut picture = RgbImage::new(width, height);
        let mut left = 0;
        for one in &all {
            replace(&mut picture, one, i64::from(left), 0);
            left += one.width();
        }
        let words = format!("{case}: hazy, restored, clear");
        Ok(vec![(words, jpeg(&picture)?)])
    }

    fn beside(&self) -> &'static str {
        "hazy, restored and clear picture"
    }
}

fn small(picture: &RgbImage) -> RgbImage {
    let side = picture.width().max(picture.height());
    if side <= SHOWN_SIDE {
        return picture.clone();
    }
    let part = |n: u32| (u64::from(n) * u64::from(SHOWN_SIDE) / u64::from(side)).max(1) as u32;
    let (width, height) = (part(picture.width()), part(picture.height()));
    resize(picture, width, height, FilterType::Triangle)
}

/// Pairs whose hazy picture is another's file again are left out and named.
fn once(pairs: Vec<Pair>) -> (Vec<Pair>, Vec<String>) {
    let mut seen: HashMap<u64, String> = HashMap::new();
    let (mut kept, mut twice) = (Vec::new(), Vec::new());
    for pair in pairs {
        let mut hasher = DefaultHasher::new();
        let read = pair.hazy.as_deref().map(|p| file_into(p, &mut hasher));
        // what cannot be read is named when its turn comes
        if !matches!(read, Some(Ok(()))) {
            kept.push(pair);
            continue;
        }
        match seen.get(&hasher.finish()) {
            Some(first) => twice.push(format!(
                "{} is the picture {first} again and is left out; keep one of them",
                pair.id
            )),
            None => {
                seen.insert(hasher.finish(), pair.id.clone());
                kept.push(pair);
            }
        }
    }
    (kept, twice)
}

/// What a restored picture may be called: as the hazy one, or as the scene where that has one haze only.
fn names(pair: &Pair, alone: bool) -> Vec<String> {
    let stem = |path: &Path| {
        let stem = path.file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    };
    let last = |id: &str| id.rsplit('/').next().unwrap_or(id).to_owned();
    let mut names: Vec<String> = pair.hazy.as_deref().map(stem).into_iter().collect();
    names.push(last(&pair.id));
    if alone {
        names.push(stem(&pair.clear));
        names.push(last(&pair.scene));
    }
    names.dedup();
    names
}

/// Pictures of a folder and those in it, by their names without endings.
fn gather(folder: &Path, depth: usize, found: &mut BTreeMap<String, Vec<PathBuf>>) -> Result<()> {
    const DEEPEST: usize = 6;
    let cannot = || format!("cannot list {}", folder.display());
    let entries = std::fs::read_dir(folder).with_context(cannot)?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(cannot)?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || name == "__MACOSX" {
            continue;
        }
        if path.is_dir() && depth < DEEPEST {
            gather(&path, depth + 1, found)?;
        } else if Format::of_path(&path).is_some() && path.is_file() {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            found
                .entry(stem.into_owned())
                .or_default()
                .push(path.clone());
        }
    }
    Ok(())
}
