//! `dehaze`: clear pictures for a file, several, a folder or a pipe.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use vision_mamba_datasets::atomically;

use crate::cli::args::{DehazeArgs, DehazeMethod, Global};
use crate::cli::exit::{Interrupted, Misuse};
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;
use crate::dehaze::clearing::Clearing;
use crate::dehaze::dark_channel;
use crate::dehaze::network::Dehazer;
use crate::engine::run_folder::write_atomic;
use crate::inference::pipeline::check_writable;
use crate::metrics::restoration::{haze_density, psnr, ssim, Channels, Window};
use crate::photo::{self, Format, Photo};
use crate::report::html::{self, Entry, Score};
use crate::runtime::{self, StopFlag};

/// Bytes a pixel of the reduced picture in which the dark channel is looked for: planes alive at a time.
const PRIOR_BYTES: u64 = 50;

/// Where a picture comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Stdin,
}

/// Where a picture goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    File(PathBuf, Format),
    Stdout(Option<Format>),
}

/// One picture to do.
#[derive(Debug)]
struct Job {
    source: Source,
    target: Target,
    /// How messages and the report call it: the path within the folder, or the name.
    name: String,
}

/// How the haze is taken away.
enum Method {
    Prior(dark_channel::Options),
    Network(Box<Clearing>),
}

/// Clears every picture; one that fails is named, the rest is done, and the command fails at the end.
pub fn run(args: &DehazeArgs, global: &Global, printer: &Printer) -> Result<()> {
    check(args)?;
    let (jobs, mut failures) = jobs(args, printer)?;
    if jobs.is_empty() && failures.is_empty() {
        return Err(Misuse::error(format!(
            "{}: no pictures there ({})",
            args.inputs()
                .map(|p| p.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
            Format::endings()
        )));
    }
    check_targets(&jobs)?;
    let device = match args.method {
        DehazeMethod::Dcp => tch::Device::Cpu,
        _ => global.device.resolve()?,
    };
    runtime::prepare(global.threads, device, printer);
    let mut work = Work {
        method: method(args, global)?,
        args,
        memory: memory(args),
        threads: global.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            |n| n as usize,
        ),
        stop: StopFlag::listen("tile", printer)?,
        printer,
        references: match &args.reference {
            Some(folder) => references(folder)?,
            None => BTreeMap::new(),
        },
        embedded: html::embedded_side(jobs.len()),
    };
    writable(args, &jobs)?;
    let mut bar = Progress::new(printer, "dehazing", jobs.len() as u64);
    let (mut entries, mut done, mut kept) = (Vec::new(), 0, 0);
    let start = Instant::now();
    for job in &jobs {
        if let (true, Target::File(path, _)) = (args.skip_existing, &job.target) {
            if path.is_file() {
                kept += 1;
                bar.step(|| job.name.clone());
                continue;
            }
        }
        match work.one(job) {
            Ok((entry, trouble)) => {
                done += 1;
                entries.extend(entry);
                failures.extend(trouble);
            }
            Err(error) if error.is::<Interrupted>() => {
                bar.finish();
                printer.message(&format!(
                    "stopped; {done} of {} written; run the same command with --skip-existing to do the rest",
                    jobs.len() - kept
                ));
                return Err(error);
            }
            Err(error) => {
                let text = format!("{}: {error:#}", job.name);
                if jobs.len() > 1 {
                    bar.line(&format!("warning: {text}"));
                }
                failures.push(text);
            }
        }
        bar.step(|| {
            let speed = done as f64 / start.elapsed().as_secs_f64().max(1e-9);
            format!("{speed:.2} pictures/s, {}", job.name)
        });
    }
    bar.finish();
    if let Some(path) = &args.report {
        let page = html::page(&html::Page {
            title: "Dehazed pictures",
            method: &work.told(),
            entries: &entries,
            failures: &failures,
        });
        write_atomic(path, page.as_bytes())?;
        printer.message(&format!("report: {}", path.display()));
    }
    let seconds = start.elapsed().as_secs_f64();
    if let Some(first) = failures.first() {
        bail!(
            "{} of {} picture(s) failed: {first}",
            failures.len(),
            jobs.len().max(failures.len())
        );
    }
    let kept = match kept {
        0 => String::new(),
        n => format!(", {n} kept"),
    };
    printer.message(&format!(
        "{done} picture(s) in {seconds:.1} s ({:.2} a second){kept}: {}",
        done as f64 / seconds.max(1e-9),
        args.output.display()
    ));
    Ok(())
}

/// What can be said to be wrong before anything is touched.
fn check(args: &DehazeArgs) -> Result<()> {
    let dcp = args.method == DehazeMethod::Dcp;
    if dcp && (args.run.is_some() || args.weights.is_some()) {
        return Err(Misuse::error(
            "--method dcp takes no network; leave out --run and --weights, or --method dcp",
        ));
    }
    if args.inputs().next().is_none() {
        return Err(Misuse::error(
            "no input: give a picture, several, a folder, or - for standard input",
        ));
    }
    for input in args.inputs() {
        if !is_pipe(input) && !input.exists() {
            return Err(Misuse::error(format!(
                "{}: no such file or folder",
                input.display()
            )));
        }
    }
    let ranges = [
        ("--dcp-omega", args.dcp_omega, 0.0..=1.0),
        ("--dcp-t0", args.dcp_t0, 0.001..=1.0),
        ("--dcp-eps", args.dcp_eps, 1e-9..=1.0),
        (
            "--max-memory",
            args.max_memory.map_or(1.0, |m| m as f32),
            0.01..=1e6,
        ),
    ];
    for (option, value, range) in ranges {
        if !range.contains(&value) {
            return Err(Misuse::error(format!(
                "{option} {value}: must be from {} to {}",
                range.start(),
                range.end()
            )));
        }
    }
    Ok(())
}

fn is_pipe(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The pictures, and what could not be listed.
fn jobs(args: &DehazeArgs, printer: &Printer) -> Result<(Vec<Job>, Vec<String>)> {
    let inputs: Vec<&PathBuf> = args.inputs().collect();
    if let [input] = inputs[..] {
        if !input.is_dir() && single(args) {
            let source = match is_pipe(input) {
                true => Source::Stdin,
                false => Source::File(input.clone()),
            };
            let target = if is_pipe(&args.output) {
                if std::io::stdout().is_terminal() {
                    return Err(Misuse::error(
                        "-o -: a picture would fill the terminal; send the output to a file or a program",
                    ));
                }
                Target::Stdout(args.format.map(Into::into))
            } else {
                let format = args
                    .format
                    .map(Into::into)
                    .or(Format::of_path(&args.output));
                let format = format.ok_or_else(|| {
                    Misuse::error(format!(
                        "-o {}: pictures are written as {}; give a file with one of these endings or a folder",
                        args.output.display(),
                        Format::endings()
                    ))
                })?;
                Target::File(args.output.clone(), format)
            };
            let name = match &source {
                Source::Stdin => "standard input".to_string(),
                Source::File(path) => path.display().to_string(),
            };
            return Ok((
                vec![Job {
                    source,
                    target,
                    name,
                }],
                Vec::new(),
            ));
        }
    }
    if is_pipe(&args.output) || inputs.iter().any(|i| is_pipe(i)) {
        return Err(Misuse::error(
            "- stands for one picture; give one input and one output with it",
        ));
    }
    if args.output.is_file() {
        return Err(Misuse::error(format!(
            "-o {}: is a file, but several pictures need a folder",
            args.output.display()
        )));
    }
    let (mut jobs, mut failures, mut passed) = (Vec::new(), Vec::new(), 0);
    for input in inputs {
        let mut files = Vec::new();
        if input.is_dir() {
            walk(
                input,
                Path::new(""),
                &args.output,
                &mut files,
                &mut failures,
                &mut passed,
            );
        } else if let Some(name) = input.file_name() {
            files.push((input.clone(), PathBuf::from(name)));
        }
        for (file, relative) in files {
            let wanted = args.format.map(Format::from);
            let Some(format) = wanted.or(Format::of_path(&relative)) else {
                failures.push(format!(
                    "{}: its ending is none of {}; name the format by --format",
                    file.display(),
                    Format::endings()
                ));
                continue;
            };
            let mut target = args.output.join(&relative);
            if let Some(choice) = args.format {
                target.set_extension(choice.ending());
            }
            jobs.push(Job {
                source: Source::File(file),
                target: Target::File(target, format),
                name: relative.display().to_string(),
            });
        }
    }
    if passed > 0 {
        printer.detail(&format!(
            "{passed} file(s) passed over, not called {}",
            Format::endings()
        ));
    }
    Ok((jobs, failures))
}

/// Whether `-o` names a file rather than a folder.
fn single(args: &DehazeArgs) -> bool {
    let text = args.output.to_string_lossy();
    !args.output.is_dir() && !text.ends_with('/')
}

/// Pictures below a folder in the order of their names, with their paths within it. Hidden ones, links to folders and the output folder are
/// left out.
fn walk(
    root: &Path,
    at: &Path,
    output: &Path,
    files: &mut Vec<(PathBuf, PathBuf)>,
    failures: &mut Vec<String>,
    passed: &mut usize,
) {
    let folder = root.join(at);
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if !at.as_os_str().is_empty() && same(&folder, output) {
        return;
    }
    let entries = std::fs::read_dir(&folder).and_then(|all| all.collect::<Result<Vec<_>, _>>());
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(error) => {
            failures.push(format!("{}: cannot be listed: {error}", folder.display()));
            return;
        }
    };
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (name, path) = (entry.file_name(), entry.path());
        let below = at.join(&name);
        let kind = entry.file_type();
        if name.to_string_lossy().starts_with('.') {
            continue;
        } else if kind.is_ok_and(|k| k.is_dir()) {
            walk(root, &below, output, files, failures, passed);
        } else if Format::of_path(&path).is_some() && !path.is_dir() {
            files.push((path, below));
        } else {
            *passed += 1;
        }
    }
}

/// No picture may be written over its source or over another's result.
fn check_targets(jobs: &[Job]) -> Result<()> {
    let mut taken: BTreeMap<&Path, &str> = BTreeMap::new();
    for job in jobs {
        let Target::File(target, _) = &job.target else {
            continue;
        };
        if let Some(other) = taken.insert(target, &job.name) {
            return Err(Misuse::error(format!(
                "{other} and {} would both be written to {}; do them one after the other",
                job.name,
                target.display()
            )));
        }
        let Source::File(source) = &job.source else {
            continue;
        };
        if matches!((source.canonicalize(), target.canonicalize()), (Ok(a), Ok(b)) if a == b) {
            return Err(Misuse::error(format!(
                "{} would be written over itself; choose another output",
                source.display()
            )));
        }
    }
    Ok(())
}

/// Makes the output's folder and tries it, so that a folder that cannot be written to is told once and not for every picture.
fn writable(args: &DehazeArgs, jobs: &[Job]) -> Result<()> {
    if matches!(
        jobs,
        [Job {
            target: Target::Stdout(_),
            ..
        }]
    ) {
        return Ok(());
    }
    let folder = match jobs {
        [Job {
            target: Target::File(path, _),
            ..
        }] if *path == args.output => path.parent(),
        _ => Some(args.output.as_path()),
    };
    let folder = folder
        .filter(|f| !f.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    check_writable(folder)
}

fn method(args: &DehazeArgs, global: &Global) -> Result<Method> {
    if args.method == DehazeMethod::Dcp {
        return Ok(Method::Prior(dark_channel::Options {
            patch: args.dcp_patch as usize,
            omega: args.dcp_omega,
            t0: args.dcp_t0,
            radius: args.dcp_radius as usize,
            eps: args.dcp_eps,
            longest: args.dcp_side as usize,
        }));
    }
    let device = global.device.resolve()?;
    let net = match (&args.run, &args.weights) {
        (Some(run), _) => Dehazer::of_run(run, args.checkpoint, device)?,
        (None, Some(file)) => Dehazer::of_weights(file, device)?,
        (None, None) => Dehazer::default_weights(device, args.thin_haze)?,
    };
    Ok(Method::Network(Box::new(Clearing::new(net)?)))
}

/// Bytes that may be used: what was said, or half of what is free.
fn memory(args: &DehazeArgs) -> u64 {
    match args.max_memory {
        Some(gb) => (gb * 1e9) as u64,
        None => runtime::free_memory() / 2,
    }
}

/// References by their names without endings.
fn references(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    if !folder.is_dir() {
        let message = format!("--reference {}: no such folder", folder.display());
        return Err(Misuse::error(message));
    }
    let (mut files, mut failures, mut passed) = (Vec::new(), Vec::new(), 0);
    walk(
        folder,
        Path::new(""),
        Path::new(""),
        &mut files,
        &mut failures,
        &mut passed,
    );
    if let Some(first) = failures.first() {
        bail!("{first}");
    }
    let named = files.into_iter().map(|(file, below)| {
        let name = below.with_extension("").to_string_lossy().into_owned();
        (name, file)
    });
    Ok(named.collect())
}

/// What every picture is done with.
struct Work<'a> {
    method: Method,
    args: &'a DehazeArgs,
    memory: u64,
    threads: usize,
    stop: StopFlag,
    printer: &'a Printer,
    references: BTreeMap<String, PathBuf>,
    embedded: usize,
}

impl Work<'_> {
    /// One picture: its entry in the report, and what went wrong besides.
    fn one(&mut self, job: &Job) -> Result<(Option<Entry>, Option<String>)> {
        self.check_stop()?;
        let start = Instant::now();
        let hazy = self.read(&job.source)?;
        let clear = self.clear(&hazy)?;
        if self.spares_thin_haze() && clear.samples == hazy.samples {
            self.printer.message(&format!(
                "{}: hardly any haze is seen, so it is left as it is; --thin-haze clears it all the same",
                job.name
            ));
        }
        let (path, format) = match &job.target {
            Target::File(path, format) => (Some(path), *format),
            Target::Stdout(format) => (None, format.unwrap_or(hazy.format)),
        };
        let lost = photo::losses(&clear, format);
        if !lost.is_empty() {
            let lost = lost.join(", ");
            self.printer.message(&format!(
                "{}: {} cannot hold {lost}",
                job.name,
                format.name()
            ));
        }
        let written = match self.args.compare {
            true => photo::encode(&hazy.beside(&clear), format, self.args.quality)?,
            false => photo::encode(&clear, format, self.args.quality)?,
        };
        self.check_stop()?;
        match path {
            Some(path) => {
                if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
                    std::fs::create_dir_all(folder)
                        .with_context(|| format!("cannot make {}", folder.display()))?;
                }
                atomically(path, |file| file.write_all(&written))?;
            }
            None => {
                let mut out = std::io::stdout().lock();
                out.write_all(&written)
                    .and_then(|()| out.flush())
                    .context("cannot write to standard output")?;
            }
        }
        if self.args.report.is_none() {
            return Ok((None, None));
        }
        let seconds = start.elapsed().as_secs_f64();
        let (scores, trouble) = match self.score(job, &hazy, &clear) {
            Ok(scores) => (scores, None),
            Err(error) => (None, Some(format!("{}: not scored: {error:#}", job.name))),
        };
        let haze = |p: &Photo| haze_density(&p.thumbnail(usize::MAX)).map(|h| h.dark_channel);
        let picture = |p: &Photo| {
            let small = Photo::of_rgb8(p.thumbnail(self.embedded));
            photo::encode(&small, Format::Jpeg, html::EMBEDDED_QUALITY)
        };
        let entry = Entry {
            name: job.name.clone(),
            width: hazy.width,
            height: hazy.height,
            seconds,
            haze: (haze(&hazy), haze(&clear)),
            scores,
            pictures: (picture(&hazy)?, picture(&clear)?),
        };
        Ok((Some(entry), trouble))
    }

    fn check_stop(&self) -> Result<()> {
        match self.stop.is_set() {
            true => Err(Interrupted.into()),
            false => Ok(()),
        }
    }

    fn read(&self, source: &Source) -> Result<Photo> {
        // The file, its samples, the result, and the result's file must fit beside each other.
        let most = self.memory / 4;
        let mut bytes = Vec::new();
        match source {
            Source::File(path) => {
                let file = std::fs::File::open(path).context("cannot be opened")?;
                file.take(most + 1).read_to_end(&mut bytes)
            }
            Source::Stdin => std::io::stdin()
                .lock()
                .take(most + 1)
                .read_to_end(&mut bytes),
        }
        .context("cannot be read")?;
        ensure!(
            bytes.len() as u64 <= most,
            "is a file of more than {} MiB, beyond the memory allowed; raise --max-memory",
            most >> 20
        );
        ensure!(!bytes.is_empty(), "is empty");
        Ok(photo::read(&bytes, most)?)
    }

    /// Whether the weights that ship are at work, and leave a picture of hardly any haze alone.
    fn spares_thin_haze(&self) -> bool {
        let shipped = self.args.run.is_none() && self.args.weights.is_none();
        shipped && !self.args.thin_haze && matches!(self.method, Method::Network(_))
    }

    fn clear(&mut self, hazy: &Photo) -> Result<Photo> {
        match &mut self.method {
            Method::Prior(options) => {
                let side = hazy.width.max(hazy.height);
                let part = (options.longest as f64 / side as f64).min(1.0);
                let needed = (hazy.width * hazy.height) as f64 * part * part * PRIOR_BYTES as f64;
                ensure!(
                    needed <= self.memory as f64,
                    "the dark channel at full size needs {:.1} GB; lower --dcp-side or raise --max-memory",
                    needed / 1e9
                );
                Ok(dark_channel::dehaze(hazy, options, self.threads))
            }
            Method::Network(network) => network.clear(
                hazy,
                self.memory,
                self.args.tile.map(|t| t as usize),
                &self.stop,
                self.printer,
            ),
        }
    }

    /// Likeness to the reference before and after. Its name is the picture's, or the part of it before an underscore, as RESIDE's
    /// `0001_0.8_0.2.png` belongs to `0001.png`.
    fn score(&self, job: &Job, hazy: &Photo, clear: &Photo) -> Result<Option<[Score; 2]>> {
        let Some(folder) = &self.args.reference else {
            return Ok(None);
        };
        let path = Path::new(&job.name);
        let path = match &job.source {
            Source::File(file) if path.is_absolute() || *file == path => {
                Path::new(file.file_name().unwrap_or_default())
            }
            _ => path,
        };
        let mut name = path.with_extension("").to_string_lossy().into_owned();
        let reference = loop {
            if let Some(found) = self.references.get(&name) {
                break found;
            }
            let at = name
                .rfind('_')
                .with_context(|| format!("no picture of its name in {}", folder.display()))?;
            name.truncate(at);
        };
        let reference = self
            .read(&Source::File(reference.clone()))
            .with_context(|| reference.display().to_string())?
            .thumbnail(usize::MAX);
        let score = |p: &Photo| -> Result<Score> {
            let picture = p.thumbnail(usize::MAX);
            let ssim = match picture.width().min(picture.height()) {
                0..=10 => None,
                _ => Some(ssim(
                    &picture,
                    &reference,
                    Channels::Rgb,
                    Window::Gaussian,
                    0,
                )?),
            };
            Ok(Score {
                psnr: psnr(&picture, &reference, Channels::Rgb, 0)?,
                ssim,
            })
        };
        Ok(Some([score(hazy)?, score(clear)?]))
    }

    /// The method, for the report.
    fn told(&self) -> String {
        match &self.method {
            Method::Prior(o) => format!(
                "dark channel prior, patch {}, omega {}, t0 {}, guided filter of radius {} and eps {}",
                o.patch, o.omega, o.t0, o.radius, o.eps
            ),
            Method::Network(_) => {
                let from = self.args.run.as_ref().or(self.args.weights.as_ref());
                let from = from.map_or("the weights that ship".into(), |p| p.display().to_string());
                format!("network of {from}")
            }
        }
    }
}
