//! Preprocessed cases on the disk: one safetensors file a case, read by mapping, so that a data set larger than memory trains.
//!
//! A file holds `data` (C, Z, Y, X; float32), `seg` (Z, Y, X; int16), `locations` (int64, the voxels of one class after the other) and, as
//! metadata, how they came about. A file whose inputs or plan have changed since is made anew.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::io::sweep;
use crate::parallel::for_each_in_order;
use crate::preprocess::{prepare_case, PreparedCase};
use crate::sampler::TrainingCase;
use crate::{Configuration, DataError, Dataset, Plan, Result, Split};

/// Raised when the content of files changes its meaning.
const FORM: u32 = 1;
const ENDING: &str = "safetensors";

/// A folder of preprocessed cases of one configuration.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

/// What a preprocessed case depends on, and what it amounts to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Origin {
    form: u32,
    /// Name, bytes and time of change (ns since 1970) of every file read.
    inputs: Vec<(String, u64, u128)>,
    /// The configuration and the order of axes, as JSON.
    decisions: String,
    /// Label values of each class located, and whether the last is that of annotated voxels.
    classes: Vec<Vec<i16>>,
    annotated: bool,
}

/// How many cases were made and how many were there already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Made {
    /// Preprocessed now.
    pub made: usize,
    /// Up to date before.
    pub kept: usize,
}

impl Cache {
    /// The cases of a configuration below a data set's folder of preprocessed data.
    pub fn new(root: &Path, configuration: &Configuration) -> Self {
        Self {
            folder: root.join(&configuration.data_identifier),
        }
    }

    /// Where a case lies.
    pub fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.{ENDING}"))
    }

    /// Preprocesses the training cases that are not there or not up to date, on `threads` threads with one case in memory each. Every broken
    /// case is named in the error, after the others are done. A disk that cannot be written to ends the work.
    pub fn fill(
        &self,
        dataset: &Dataset,
        ids: &[String],
        plan: &Plan,
        configuration: &Configuration,
        threads: usize,
        progress: &(dyn Fn(&str) + Sync),
    ) -> Result<Made> {
        std::fs::create_dir_all(&self.folder).map_err(|e| DataError::writing(&self.folder, e))?;
        sweep(&self.folder)?;
        let mut made = Made::default();
        let mut failures = Vec::new();
        let (unwritable, mut why) = (AtomicBool::new(false), None);
        for_each_in_order(
            ids,
            threads,
            |id| {
                if unwritable.load(Ordering::Relaxed) {
                    return None;
                }
                let outcome = self.update(dataset, id, plan, configuration);
                if outcome.as_ref().is_err_and(DataError::cannot_write) {
                    unwritable.store(true, Ordering::Relaxed);
                }
                Some(outcome)
            },
            |id, outcome| {
                match outcome {
                    None => return,
                    Some(Ok(true)) => made.made += 1,
                    Some(Ok(false)) => made.kept += 1,
                    Some(Err(error)) if error.cannot_write() => {
                        why.get_or_insert(error);
                    }
                    Some(Err(error)) => failures.push(error),
                }
                progress(id);
            },
        );
        why.map_or(Ok(()), Err)?;
        DataError::all(failures)?;
        Ok(made)
    }

    /// Makes one case if it has to be; tells whether.
    fn update(
        &self,
        dataset: &Dataset,
        id: &str,
        plan: &Plan,
        configuration: &Configuration,
    ) -> Result<bool> {
        let origin = Origin::of(dataset, id, plan, configuration)?;
        let path = self.path(id);
        if stored_origin(&path).is_some_and(|stored| stored == origin) {
            return Ok(false);
        }
        let (image, label) = dataset.load_case(id, Split::Training)?;
        let case = prepare_case(id, &image, Some(&label), plan, configuration)?;
        drop((image, label));
        write(&path, &case, &origin)?;
        Ok(true)
    }

    /// Opens the cases for training.
    pub fn open(&self, ids: &[String]) -> Result<Vec<TrainingCase>> {
        ids.iter().map(|id| open(&self.path(id), id)).collect()
    }
}

impl Origin {
    fn of(dataset: &Dataset, id: &str, plan: &Plan, configuration: &Configuration) -> Result<Self> {
        let mut files = dataset.image_paths(id, Split::Training)?;
        files.push(dataset.label_path(id, Split::Training)?);
        let inputs = files
            .iter()
            .map(|path| {
                let about = std::fs::metadata(path).map_err(|e| DataError::reading(path, e))?;
                let changed = about.modified().ok().and_then(|t| {
                    t.duration_since(std::time::UNIX_EPOCH)
                        .ok()
                        .map(|d| d.as_nanos())
                });
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Ok((name.into_owned(), about.len(), changed.unwrap_or(0)))
            })
            .collect::<Result<_>>()?;
        // the parts of a plan that preprocessing looks at
        let mut decisions = serde_json::json!([
            plan.transpose_forward,
            configuration.spacing,
            configuration.normalization_schemes,
            configuration.use_mask_for_norm,
            configuration.resampling_fn_data_kwargs,
            configuration.resampling_fn_seg_kwargs,
            plan.foreground_intensity_properties_per_channel,
        ])
        .to_string();
        decisions += &dataset.label_reading();
        let mut classes: Vec<Vec<i16>> =
            dataset.info.foreground().into_iter().map(|f| f.1).collect();
        let annotated = dataset.info.annotated();
        Ok(Self {
            form: FORM,
            inputs,
            decisions,
            annotated: annotated.is_some(),
            classes: {
                classes.extend(annotated);
                classes
            },
        })
    }
}

/// What a file says about itself; nothing if it is not there or not whole.
fn stored_origin(path: &Path) -> Option<Origin> {
    let mapped = map(path).ok()?;
    let (_, metadata) = SafeTensors::read_metadata(&mapped).ok()?;
    SafeTensors::deserialize(&mapped).ok()?;
    serde_json::from_str(metadata.metadata().as_ref()?.get("origin")?).ok()
}

fn write(path: &Path, case: &PreparedCase, origin: &Origin) -> Result<()> {
    let locations = case.locations(&origin.classes);
    let counts: Vec<usize> = locations.iter().map(Vec::len).collect();
    let joined: Vec<u64> = locations.concat();
    let (Some(data), Some(seg)) = (case.image.as_slice(), case.seg.as_slice()) else {
        return Err(DataError::Case {
            case: case.id.clone(),
            problem: "its arrays are not contiguous".into(),
        });
    };
    let mut at = 0;
    let mut about = |dtype: &str, shape: &[usize], bytes: &[u8]| {
        let from = at;
        at += bytes.len();
        serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [from, at]})
    };
    // locations first: they need the strictest alignment
    let parts: [&[u8]; 3] = [
        bytemuck::cast_slice(&joined),
        bytemuck::cast_slice(data),
        bytemuck::cast_slice(seg),
    ];
    let locations = about("U64", &[joined.len()], parts[0]);
    let data = about("F32", case.image.shape(), parts[1]);
    let seg = about("I16", case.seg.shape(), parts[2]);
    let metadata = HashMap::from([
        ("origin".to_owned(), json(origin)),
        ("location_counts".to_owned(), json(&counts)),
        ("spacing".to_owned(), json(&case.source.spacing.to_vec())),
        (
            "size_before_cropping".to_owned(),
            json(&case.source.size.to_vec()),
        ),
        ("bounds".to_owned(), json(&case.source.bounds.concat())),
    ]);
    let header = serde_json::json!({
        "__metadata__": metadata, "locations": locations, "data": data, "seg": seg,
    });
    let mut header = header.to_string();
    // numbers after the header lie at multiples of 8
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    // written as they lie in memory: a copy of the whole file would be the largest array of all
    crate::atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        parts.iter().try_for_each(|part| out.write_all(part))
    })
}

/// A value of the metadata.
fn json<T: Serialize + ?Sized>(value: &T) -> String {
    // numbers and strings, which JSON has
    serde_json::to_string(value).unwrap_or_default()
}

#[allow(unsafe_code)]
fn map(path: &Path) -> Result<memmap2::Mmap> {
    let file = std::fs::File::open(path).map_err(|e| DataError::reading(path, e))?;
    // SAFETY: the files are this crate's own and are replaced by renaming, never written in place.
    unsafe { memmap2::Mmap::map(&file) }.map_err(|e| DataError::reading(path, e))
}

fn open(path: &Path, id: &str) -> Result<TrainingCase> {
    let damaged = |problem: String| DataError::damaged(path, "a preprocessed case", problem);
    let mapped = map(path)?;
    let (header, metadata) =
        SafeTensors::read_metadata(&mapped).map_err(|e| damaged(e.to_string()))?;
    let text = |key: &str| {
        metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get(key))
            .ok_or_else(|| damaged(format!("it has no `{key}`")))
    };
    let origin: Origin =
        serde_json::from_str(text("origin")?).map_err(|e| damaged(e.to_string()))?;
    let counts: Vec<usize> =
        serde_json::from_str(text("location_counts")?).map_err(|e| damaged(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&mapped).map_err(|e| damaged(e.to_string()))?;
    let find = |name: &str, dtype: Dtype| -> Result<(Vec<usize>, std::ops::Range<usize>)> {
        let info = metadata
            .info(name)
            .filter(|info| info.dtype == dtype)
            .ok_or_else(|| damaged(format!("it has no `{name}` of {dtype:?}")))?;
        // past the header's length and the header
        let start = 8 + header;
        let (from, to) = info.data_offsets;
        Ok((info.shape.clone(), start + from..start + to))
    };
    let (shape, data) = find("data", Dtype::F32)?;
    let (seg_shape, seg) = find("seg", Dtype::I16)?;
    let shape: [usize; 4] = shape
        .try_into()
        .map_err(|s: Vec<usize>| damaged(format!("`data` is of shape {s:?}")))?;
    if seg_shape != shape[1..] {
        return Err(damaged(format!(
            "`seg` is of shape {seg_shape:?}, `data` of {shape:?}"
        )));
    }
    let located = tensors
        .tensor("locations")
        .map_err(|e| damaged(e.to_string()))?;
    let mut located = located
        .data()
        .chunks_exact(8)
        .map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
    let mut locations: Vec<Vec<u64>> = counts
        .iter()
        .map(|&n| located.by_ref().take(n).collect())
        .collect();
    let voxels = shape[1..].iter().product::<usize>() as u64;
    if locations.iter().zip(&counts).any(|(l, n)| l.len() != *n)
        || locations.iter().flatten().any(|&l| l >= voxels)
    {
        return Err(damaged("its locations lie outside it".into()));
    }
    let annotated = match origin.annotated {
        true => locations.pop().unwrap_or_default(),
        false => Vec::new(),
    };
    TrainingCase::mapped(id, shape, mapped, data, seg, locations, annotated).map_err(damaged)
}
