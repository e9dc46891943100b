//! What can be typed after `predict` and `find-best`.

use std::path::PathBuf;

use clap::Args;

use super::CheckpointChoice;
use crate::precision::Precision;
use crate::speed::Speed;

/// Memory of a prediction, in words.
const PREDICT_MEMORY: &str = "\
MEMORY: besides the networks a case takes 4 bytes a voxel and channel of the resampled image, 2 bytes a voxel of the label map, and a band of \
scores: 4 x (classes + 1) x depth of the window x height x width of the resampled image, whatever the number of slices and of folds (each \
further network or configuration has a band of its own). The next case is read meanwhile, which takes about 5 copies of it in float32 while \
it is resampled (--one-by-one does without). A CT of 512x512x600 with 14 classes and a window of 128x128x128 was measured at 3.5 GB, and at 5.4 GB where it is resampled. \
Probabilities (--save-probabilities) above 1 GiB lie in a temporary file in the output folder. -v prints the estimate of each case.";

/// Options of `predict`.
#[derive(Debug, Args)]
#[command(after_help = PREDICT_MEMORY)]
pub struct PredictArgs {
    /// A run folder, or a folder of runs called fold_*; several make an ensemble: the folds of a network are averaged in their scores, networks
    /// and configurations in their probabilities
    #[arg(long = "run", value_name = "RUN_DIR", required_unless_present = "best")]
    pub runs: Vec<PathBuf>,
    /// Predict with the runs, checkpoints and postprocessing that `find-best` chose
    #[arg(long, value_name = "best.json", conflicts_with_all = ["runs", "checkpoint", "postprocess"])]
    pub best: Option<PathBuf>,
    /// An image, a folder of images named CASE_0000.EXT, CASE_0001.EXT, …, a DICOM series or a folder of them, or a data set (its test images)
    #[arg(short, long, value_name = "IN")]
    pub input: PathBuf,
    /// The label map, or the folder for CASE.EXT; in the format of the images, or .nii.gz (.png for pictures) where that holds no label maps
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Which weights to use [default: final, else best, else latest]
    #[arg(long, value_enum)]
    pub checkpoint: Option<CheckpointChoice>,
    /// Distance of neighbouring windows as a part of the patch, in (0, 1]
    #[arg(long, default_value_t = 0.5, value_name = "X")]
    pub tile_step: f64,
    /// Number format of matrix products and convolutions; in bfloat16 single voxels differ
    #[arg(long, value_enum, default_value = "float32")]
    pub precision: Precision,
    /// What only changes how fast it computes.
    #[command(flatten)]
    pub speed: Speed,
    /// Do not average over mirrored inputs (faster)
    #[arg(long)]
    pub no_mirroring: bool,
    /// Axes of the window to average over, as 0,1 (0 is the slowest) [default: those the run was trained with]
    #[arg(
        long,
        value_name = "AXES",
        conflicts_with = "no_mirroring",
        value_delimiter = ','
    )]
    pub mirror: Option<Vec<usize>>,
    /// Keep only largest components, as a best.json of `find-best` says
    #[arg(long, value_name = "FILE")]
    pub postprocess: Option<PathBuf>,
    /// Write the class probabilities of each case too, as CASE.npz (`probabilities`: float32, C x Z x Y x X on the image's grid)
    #[arg(long)]
    pub save_probabilities: bool,
    /// Keep label maps that are already there
    #[arg(long)]
    pub skip_existing: bool,
    /// Read, predict and write one case after the other: slower, with less memory
    #[arg(long)]
    pub one_by_one: bool,
}

/// Options of `find-best`.
#[derive(Debug, Args)]
pub struct FindBestArgs {
    /// A run folder, or a folder of runs called fold_*; the folds of a preset and configuration make one candidate
    #[arg(long = "run", value_name = "RUN_DIR", required = true)]
    pub runs: Vec<PathBuf>,
    /// The folder for best.json [default: the one that the first run lies in]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Try every pair of candidates too; held-out cases without validation/CASE.npz are predicted again
    #[arg(long)]
    pub ensembles: bool,
    /// The data set with the images and references [default: the one the runs were trained on]
    #[arg(long, value_name = "DATASET_DIR")]
    pub data: Option<PathBuf>,
    /// Which weights to predict with where that is needed, and that best.json names [default: final, else best, else latest]
    #[arg(long, value_enum)]
    pub checkpoint: Option<CheckpointChoice>,
    /// Print best.json instead of the table
    #[arg(long)]
    pub json: bool,
}
