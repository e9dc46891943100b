//! Predictions of a benchmark, kept as long as run, data and settings stay the same.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use tch::Device;
use vision_mamba_datasets::{write_labels, Dataset, Split};

use super::members::Run;
use crate::cli::args::CheckpointChoice;
use crate::engine::run_folder::{write_json, RunFolder};
use crate::inference::input::label_ending;
use crate::inference::sliding_window::OnWindow;
use crate::inference::volume::{segment_with, Member, PredictOptions};

/// A case to predict, and the run or runs that predict it.
#[derive(Debug, Clone)]
pub struct Task {
    /// The case.
    pub id: String,
    /// Places of the runs in the entrant's list.
    pub runs: Vec<usize>,
}

/// What predictions are made with, beside run and data.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The weights.
    pub checkpoint: Option<CheckpointChoice>,
    /// How windows are laid, and the like.
    pub options: PredictOptions,
}

/// A folder of predictions of one entrant.
pub struct Kept {
    folder: PathBuf,
    /// Of each case the state of all that its prediction follows from.
    states: BTreeMap<String, String>,
}

const STATES: &str = "states.json";

impl Kept {
    /// Opens the folder; what cannot be read of earlier work is done again.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let states = std::fs::read_to_string(folder.join(STATES)).unwrap_or_default();
        Ok(Self {
            folder: folder.into(),
            states: serde_json::from_str(&states).unwrap_or_default(),
        })
    }

    /// The prediction of a case.
    pub fn file(&self, id: &str, ending: &str) -> PathBuf {
        self.folder.join(format!("{id}{ending}"))
    }

    /// Whether a prediction is what would be made now.
    pub fn is_current(&self, id: &str, file: &Path, state: &str) -> bool {
        file.is_file() && self.states.get(id).is_some_and(|s| s == state)
    }

    /// Remembers what a prediction was made of.
    pub fn remember(&mut self, id: &str, state: String) -> Result<()> {
        self.states.insert(id.into(), state);
        write_json(&self.folder.join(STATES), &self.states)
    }
}

/// Everything that one run's predictions follow from: its settings and weights.
pub fn state_of_run(run: &Run, settings: &Settings) -> Result<u64> {
    let folder = RunFolder::open(&run.folder)?;
    let mut hasher = DefaultHasher::new();
    for file in [
        folder.config(),
        folder.plans(),
        folder.pick_checkpoint(settings.checkpoint)?,
    ] {
        file_into(&file, &mut hasher)?;
    }
    Ok(hasher.finish())
}

/// A file's content.
pub fn file_into(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    let mut file =
        std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut block = vec![0; 1 << 20];
    loop {
        let read = file
            .read(&mut block)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok(());
        }
        block[..read].hash(hasher);
    }
}

/// Predicts cases one after the other with networks that stay in memory as long as the same runs are asked for.
pub struct Predictor<'a> {
    runs: &'a [Run],
    states: Vec<u64>,
    settings: &'a Settings,
    device: Device,
    loaded: Option<(Vec<usize>, Vec<Member>)>,
}

impl<'a> Predictor<'a> {
    /// Looks at the runs; their networks are loaded when a case needs them.
    pub fn new(runs: &'a [Run], settings: &'a Settings, device: Device) -> Result<Self> {
        let states = runs.iter().map(|run| state_of_run(run, settings));
        Ok(Self {
            runs,
            states: states.collect::<Result<_>>()?,
            settings,
            device,
            loaded: None,
        })
    }

    /// The label map of a case, and whether it was there already.
    pub fn predict(
        &mut self,
        task: &Task,
        dataset: &Dataset,
        split: Split,
        kept: &mut Kept,
        on_window: &mut OnWindow,
    ) -> Result<(PathBuf, bool)> {
        let file = kept.file(&task.id, label_ending(&dataset.info.file_ending));
        let state = self.state(task, dataset, split)?;
        if kept.is_current(&task.id, &file, &state) {
            return Ok((file, true));
        }
        if self
            .loaded
            .as_ref()
            .is_none_or(|(runs, _)| *runs != task.runs)
        {
            self.loaded = None;
            let members = (task.runs.iter())
                .map(|&i| Member::load(&self.runs[i].folder, self.settings.checkpoint, self.device))
                .collect::<Result<Vec<_>>>()?;
            self.loaded = Some((task.runs.clone(), members));
        }
        let Some((_, members)) = &self.loaded else {
            bail!("no network is loaded");
        };
        let image = dataset.load_image(&task.id, split)?;
        let options = &self.settings.options;
        let restored = segment_with(members, &image, options, &kept.folder, on_window)?;
        write_labels(&file, &restored.labels)?;
        kept.remember(&task.id, state)?;
        Ok((file, false))
    }

    /// All that a case's prediction follows from.
    fn state(&self, task: &Task, dataset: &Dataset, split: Split) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        for &run in &task.runs {
            self.states[run].hash(&mut hasher);
        }
        let options = &self.settings.options;
        options.tile_step.to_bits().hash(&mut hasher);
        options.mirroring.hash(&mut hasher);
        format!("{:?}", options.precision).hash(&mut hasher);
        for path in dataset.image_paths(&task.id, split)? {
            file_into(&path, &mut hasher)?;
        }
        Ok(format!("{:016x}", hasher.finish()))
    }
}
