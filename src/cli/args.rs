//! What can be typed. Parsing touches nothing: no file, no device.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use vision_mamba_datasets::Planner;

use crate::losses::image::PixelLoss;
use crate::losses::LossKind;
use crate::metrics::protocol::Convention;
use crate::photo::Format;
use crate::precision::Precision;
use crate::runtime::DeviceChoice;

/// Train, predict and evaluate Vision Mamba segmentation networks.
#[derive(Debug, Parser)]
#[command(
    name = "vision-mamba",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options every command takes.
    #[command(flatten)]
    pub global: Global,
}

/// Options every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Where to compute: cpu, cuda, cuda:N or auto (the first GPU if there is one)
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Seed of initialisation, patch drawing and augmentation
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// CPU threads for tensor work [default: one a physical core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Say less; twice: errors only
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub quiet: u8,
    /// Say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show libtorch, devices, the operator library and versions
    Info(InfoArgs),
    /// List the networks, or show one
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Look into checkpoints, and take over those of the Python originals
    #[command(subcommand)]
    Weights(WeightsCommand),
    /// Benchmark data sets by name; check a data set's files, or lay it out as nnU-Net v2 does
    #[command(subcommand)]
    Datasets(DatasetsCommand),
    /// Plan a data set as nnU-Net does and preprocess its cases
    Plan(PlanArgs),
    /// Train a network on a data set
    Train(Box<TrainArgs>),
    /// Write label maps for a file or folder of images
    Predict(Box<PredictArgs>),
    /// Choose network, ensemble and postprocessing by the scores of the folds' held-out cases
    FindBest(FindBestArgs),
    /// Take the haze from photographs
    Dehaze(Box<DehazeArgs>),
    /// Compare predictions with references
    #[command(subcommand)]
    Evaluate(EvaluateCommand),
    /// Score runs on a benchmark data set by its protocol, beside published numbers
    Benchmark(Box<BenchmarkArgs>),
    /// Write a network as TorchScript, which Python runs with the operator library
    Export(ExportArgs),
}

/// Options of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run whose network is exported
    #[arg(long, value_name = "RUN_DIR")]
    pub run: Option<PathBuf>,
    /// Or a file that `weights import` wrote
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "run")]
    pub weights: Option<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "MODEL.pt")]
    pub output: PathBuf,
    /// Spatial size of the images, as 256x256; the number of images stays free [default: the training patch, else 224 along each axis]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub input_size: Option<Size>,
    /// Which weights of the run to use [default: final, else best, else latest]
    #[arg(long, value_enum, requires = "run")]
    pub checkpoint: Option<CheckpointChoice>,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
}

/// Commands under `datasets`.
#[derive(Debug, Subcommand)]
pub enum DatasetsCommand {
    /// The benchmark data sets known by name
    List(DatasetsListArgs),
    /// How to obtain and place a benchmark data set, how it is scored, and what was published
    Show(DatasetsShowArgs),
    /// Read every file and list all that is wrong; exit code 1 if a case cannot be used
    Verify(DatasetsVerifyArgs),
    /// Write it as an nnU-Net v2 raw data set; train and plan need no conversion
    Convert(DatasetsConvertArgs),
}

/// Options of `datasets list`.
#[derive(Debug, Args)]
pub struct DatasetsListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `datasets show`.
#[derive(Debug, Args)]
pub struct DatasetsShowArgs {
    /// A name of `datasets list`
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `datasets verify`.
#[derive(Debug, Args)]
#[command(after_help = LAYOUTS)]
pub struct DatasetsVerifyArgs {
    /// The data set's folder
    pub dataset: PathBuf,
    /// Compare it with a complete download of this name of `datasets list` [default: what it is recognised as]
    #[arg(long = "as", value_name = "NAME")]
    pub benchmark: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `datasets convert`.
#[derive(Debug, Args)]
#[command(after_help = LAYOUTS)]
pub struct DatasetsConvertArgs {
    /// The data set's folder; it is left as it is
    pub dataset: PathBuf,
    /// The folder to write; with --id the folder DatasetNNN_NAME is made in it, as nnU-Net's nnUNet_raw has them
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Number of the new data set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=999))]
    pub id: Option<u16>,
    /// Name of the new data set [default: the old one]
    #[arg(long)]
    pub name: Option<String>,
}

/// The folders that are taken for data sets.
const LAYOUTS: &str = "Known layouts, told apart by what lies in the folder:
  nnU-Net v2 raw                  dataset.json, imagesTr/CASE_0000.EXT, labelsTr/CASE.EXT, or a file list in dataset.json
  Medical Segmentation Decathlon  dataset.json with the lists `training` and `test`
  image and mask pairs            images/ and masks/ (labels, annotations, X_Training_Input and X_Training_GroundTruth, ...),
                                  with or without train, val and test
  ACDC                            as Mamba-UNet has it: data/slices/*.h5, data/*.h5, train_slices.list, val.list, test.list
  Synapse                         as TransUNet and Mamba-UNet have it: train_npz/*.npz, test_vol_h5/*.npy.h5, lists/*.txt
  benchmarks as downloaded        what `datasets show NAME` draws for a name of `datasets list`";

/// Options of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Commands under `weights`.
#[derive(Debug, Subcommand)]
pub enum WeightsCommand {
    /// What a .pth, .pt, .ckpt or .safetensors file holds; nothing in it is executed
    Inspect(WeightsInspectArgs),
    /// Write a checkpoint of the originals as weights of a preset, or a results folder of nnU-Net or U-Mamba as runs
    Import(WeightsImportArgs),
}

/// Options of `weights inspect`.
#[derive(Debug, Args)]
pub struct WeightsInspectArgs {
    /// The file
    pub file: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Print JSON, with every tensor
    #[arg(long)]
    pub json: bool,
}

/// Options of `weights import`.
#[derive(Debug, Args)]
pub struct WeightsImportArgs {
    /// The checkpoint, or a folder of nnUNet_results: a data set's, a trained configuration's or a fold's
    #[arg(value_name = "FILE.pth|RESULTS")]
    pub file: PathBuf,
    /// The network whose weights these are; results tell it themselves
    #[arg(long, value_name = "PRESET")]
    pub preset: Option<String>,
    /// Overrides of the preset, as key=value
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The file to write, or the folder of runs
    #[arg(short, long, value_name = "FILE.safetensors|RUNS")]
    pub out: PathBuf,
    /// Take what fits and leave the rest as it starts; without it every tensor must have its place
    #[arg(long)]
    pub partial: bool,
    /// Replace an existing file; of results, import again what is there already
    #[arg(long)]
    pub force: bool,
}

/// Commands under `models`.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// List the presets
    List(ModelsListArgs),
    /// Parameters and shape per stage of one preset
    Show(ModelsShowArgs),
}

/// Options of `models list`.
#[derive(Debug, Args)]
pub struct ModelsListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// When `models show` runs the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CostChoice {
    /// Where it takes seconds
    Auto,
    /// However long it takes
    Always,
    /// Not at all
    Never,
}

/// Options of `models show`.
#[derive(Debug, Args)]
pub struct ModelsShowArgs {
    /// The preset's name, as `models list` prints it
    pub preset: String,
    /// Also print the name and shape of every tensor
    #[arg(long)]
    pub state_dict: bool,
    /// Overrides of the preset, as key=value
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Whether to run the network on an empty image to count multiply-adds and memory
    #[arg(long, value_enum, default_value = "auto")]
    pub cost: CostChoice,
    /// Size of the image that shapes and costs are shown for, as 224x224 [default: the preset's patch, else 224 along each axis]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub input_size: Option<Size>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The data set's folder; `datasets verify --help` lists the known layouts
    pub dataset: PathBuf,
    /// The folder for dataset_fingerprint.json, plans.json and the preprocessed cases [default: DATASET_DIR/preprocessed]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Whose decisions to take
    #[arg(long, value_enum, default_value = "default")]
    pub planner: PlannerChoice,
    /// GPU memory that training should fit into, in GB [default: the planner's, 8 for `default`]
    #[arg(long, value_name = "GB")]
    pub memory: Option<f64>,
    /// Spacing to resample to instead of the planned one, in the order of the file's array (slowest axis first), as 3x0.8x0.8
    #[arg(long, value_name = "ZxYxX")]
    pub spacing: Option<String>,
    /// Use this plans file, nnU-Net's own for example, instead of planning
    #[arg(long, value_name = "FILE", conflicts_with_all = ["planner", "memory", "spacing"])]
    pub plans: Option<PathBuf>,
    /// Preprocess this configuration only; may be given several times [default: all but the cascade]
    #[arg(short, long, value_name = "NAME")]
    pub configuration: Vec<String>,
    /// Decide only
    #[arg(long)]
    pub no_preprocess: bool,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
}

/// A planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlannerChoice {
    /// nnU-Net v2's default
    Default,
    /// Residual encoder U-Net, the memory of the default
    ResencM,
    /// Residual encoder U-Net, 24 GB
    ResencL,
    /// Residual encoder U-Net, 40 GB
    ResencXl,
    /// The default of the nnU-Net 2.1.1 that U-Mamba carries
    UMamba,
}

impl PlannerChoice {
    /// The planner.
    pub fn planner(self) -> Planner {
        match self {
            Self::Default => Planner::Default,
            Self::ResencM => Planner::ResEncM,
            Self::ResencL => Planner::ResEncL,
            Self::ResencXl => Planner::ResEncXl,
            Self::UMamba => Planner::UMamba,
        }
    }
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleChoice {
    /// (1 - epoch / epochs)^0.9, stepped once an epoch, as nnU-Net does
    Poly,
    /// Linear warm-up, then half a cosine down to zero, stepped every step
    Cosine,
    /// No change
    Constant,
}

/// An optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerChoice {
    /// SGD with Nesterov momentum
    Sgd,
    /// Adam with decoupled weight decay
    Adamw,
}

/// What happens to the training patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AugmentChoice {
    /// Rotation, scaling, mirroring, gamma, brightness, contrast, noise
    Default,
    /// Patches as they are
    None,
}

/// The folders that pictures to restore come in.
const PAIRS: &str = "With a network for restoration (uvmlite, uvmnet), DATASET is a folder of pictures:
  hazy/0001_0.8_0.2.png, clear/0001.png            RESIDE (ITS, OTS, SOTS), also gt/, trans/, indoor/ and outdoor/
  hazy/01_outdoor_hazy.jpg, GT/01_outdoor_GT.jpg   O-HAZE, I-HAZE, Dense-HAZE; 01_hazy.png and 01_GT.png in one folder: NH-HAZE
  haze/1_0.68_1.87.png, gt/1.png                   Haze4K
  hazy/NAME, clear/NAME                            equal names; input/ and target/, low/ and high/, rain/ and clean/ are known too
  NAME alone                                       clear pictures, on which haze is drawn anew for every crop, with depth/NAME.png where it is there
Folders may lie beside each other; parts called train, val and test are kept apart.";

/// Options of `train`.
#[derive(Debug, Args)]
#[command(after_help = PAIRS)]
pub struct TrainArgs {
    /// The data set's folder; `datasets verify --help` lists the known layouts; for restoration see below
    pub dataset: PathBuf,
    /// The network: a preset of `models list` (not needed with --resume)
    #[arg(long, value_name = "PRESET", required_unless_present_any = ["resume", "validate_only"])]
    pub model: Option<String>,
    /// Overrides of the preset, as key=value
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Weights to start from: .pth, .ckpt or .safetensors; what fits by name and shape is taken, the rest is told and starts anew
    #[arg(long, value_name = "FILE")]
    pub pretrained: Option<PathBuf>,
    /// A configuration of the plan: slices, whole volumes, coarse volumes [default: 2d or 3d_fullres, what the preset is made for]
    #[arg(long, value_name = "2d|3d_fullres|3d_lowres")]
    pub configuration: Option<String>,
    /// The fold of the five-fold split that is held out, or `all` to train on everything
    #[arg(long, default_value = "0", value_name = "0..4|all")]
    pub fold: String,
    /// The run folder to make
    #[arg(long, value_name = "RUN_DIR")]
    pub out: PathBuf,
    /// Go on with the run in --out, with the options it was started with
    #[arg(long)]
    pub resume: bool,
    /// Only validate the run in --out on whole images, again
    #[arg(long, conflicts_with = "resume")]
    pub validate_only: bool,
    /// Train without validating on whole images at the end
    #[arg(long, conflicts_with = "validate_only")]
    pub no_validation: bool,
    /// The checkpoint that validates on whole images [default: final]
    #[arg(
        long,
        value_enum,
        value_name = "WHICH",
        conflicts_with = "no_validation"
    )]
    pub val_with: Option<CheckpointChoice>,
    /// Keep the probabilities of the validated images as .npz, for ensembles
    #[arg(long, conflicts_with = "no_validation")]
    pub save_probabilities: bool,
    /// Number of epochs
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: u64,
    /// Optimiser steps an epoch
    #[arg(long, default_value_t = 250, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps_per_epoch: u64,
    /// Patches a step [default: the plan's; for restoration 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,
    /// Size of the training patch, slowest axis first, as 96x160 or 48x96x96 [default: the plan's; for restoration 128x128]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub patch_size: Option<Size>,
    /// The folder that `plan` made [default: DATASET_DIR/preprocessed if it is there, else the run folder]
    #[arg(long, value_name = "DIR")]
    pub preprocessed: Option<PathBuf>,
    /// The loss
    #[arg(long, value_enum, default_value = "dice_ce")]
    pub loss: LossKind,
    /// Average the gradients of so many batches before a step
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub accumulate: u64,
    /// The optimiser [default: sgd; for restoration adamw]
    #[arg(long, value_enum)]
    pub optimizer: Option<OptimizerChoice>,
    /// Learning rate [default: 0.01 for sgd, 0.001 for adamw]
    #[arg(long, value_name = "X")]
    pub lr: Option<f64>,
    /// Weight decay [default: 3e-5 for sgd, 0.01 for adamw]
    #[arg(long, value_name = "X")]
    pub weight_decay: Option<f64>,
    /// Schedule of the learning rate [default: poly for sgd, cosine for adamw]
    #[arg(long, value_enum)]
    pub schedule: Option<ScheduleChoice>,
    /// Warm-up, in epochs [default: 0 for sgd; a twentieth of the run for adamw]
    #[arg(long, value_name = "X")]
    pub warmup: Option<f64>,
    /// Largest norm of the gradient; longer ones are shortened [default: 12; for restoration 1]
    #[arg(long, value_name = "X")]
    pub grad_clip: Option<f64>,
    /// Validate and save a moving average of the weights with this decay, as 0.999
    #[arg(long, value_name = "DECAY")]
    pub ema: Option<f64>,
    /// Number format of matrix products and convolutions; scans, norms, losses and weights are always float32
    #[arg(long, value_enum, default_value = "auto")]
    pub precision: Precision,
    /// Part of the batch that must contain foreground
    #[arg(long, default_value_t = 0.33, value_name = "X")]
    pub oversample_foreground: f64,
    /// Augmentation of the training patches
    #[arg(long, value_enum, default_value = "default")]
    pub augment: AugmentChoice,
    /// Axes that may be mirrored, as 0,1 (0 is the slowest), or `none`; also used in prediction [default: all]
    #[arg(long, value_name = "AXES")]
    pub mirror: Option<String>,
    /// Validation patches an epoch, in batches; for restoration whole pictures
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub validation_steps: u64,
    /// Threads that prepare patches [default: half the cores, at most 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub workers: Option<u32>,
    /// Write the latest checkpoint every N epochs (and always when interrupted or at the end)
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub save_every: u64,
    /// Options for pictures in pairs.
    #[command(flatten)]
    pub restoration: RestorationArgs,
}

/// Options of `train` with a network for restoration.
#[derive(Debug, Args)]
#[command(next_help_heading = "Restoration (dehazing and other pictures in pairs)")]
pub struct RestorationArgs {
    /// Part of the scenes held out for validation; a part of the data set called `val` goes before it
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    pub validation_share: f64,
    /// How pixels are compared
    #[arg(long, value_enum, default_value = "charbonnier")]
    pub pixel_loss: PixelLoss,
    /// Weight of the difference of the spectra in the loss
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    pub frequency_loss: f64,
    /// Weight of 1 - SSIM in the loss
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    pub ssim_loss: f64,
    /// How crops are drawn, as KEY=VALUE: scale=[0.6,3], whole=0.4 (how often the region is as large as the picture allows),
    /// synthesise=0.8 (how often haze is drawn though a hazy picture is there; 0 for other damage than haze), flip_horizontal,
    /// flip_vertical, gamma, gain
    #[arg(long, value_name = "KEY=VALUE")]
    pub crops: Vec<String>,
    /// The haze that is drawn, as KEY=VALUE: none=0.1 (how often none), beta=[0.3,3], air_light=[0.7,1], coloured, colour, uneven, unevenness,
    /// noise, noise_sigma, jpeg, jpeg_quality, real_depth, depth.ground, depth.ramp, depth.regions, depth.radial, depth.constant
    #[arg(long, value_name = "KEY=VALUE")]
    pub haze: Vec<String>,
}

/// A size typed as 96x160.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size(pub Vec<usize>);

fn parse_size(text: &str) -> Result<Size, String> {
    let parts: Result<Vec<usize>, _> = text
        .split(['x', ','])
        .map(|part| part.trim().parse::<usize>())
        .collect();
    match parts {
        Ok(parts) if (2..=3).contains(&parts.len()) && parts.iter().all(|&n| n > 0) => {
            Ok(Size(parts))
        }
        _ => Err("expected two or three positive sizes, as 96x160 or 48x96x96".to_string()),
    }
}

/// Which weights of a run to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointChoice {
    /// After the last epoch
    Final,
    /// Highest validation score: smoothed Dice, or PSNR
    Best,
    /// The most recently written
    Latest,
}

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
    /// An image, a folder of images named CASE_0000.EXT, CASE_0001.EXT, …, a DICOM series or a folder of them, or a data set (its imagesTs)
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

/// How haze is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DehazeMethod {
    /// A trained network
    Network,
    /// Dark channel prior with a guided filter (He, Sun and Tang 2009 and 2010); needs no weights
    Dcp,
}

/// A format to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatChoice {
    /// 8 bits, with loss; see --quality
    Jpeg,
    /// 8 or 16 bits
    Png,
    /// 8 or 16 bits or floats
    Tiff,
    /// 8 bits, without loss
    Webp,
    /// 8 bits
    Bmp,
}

impl FormatChoice {
    /// The ending of its files.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::Tiff => "tif",
            Self::Webp => "webp",
            Self::Bmp => "bmp",
        }
    }
}

impl From<FormatChoice> for Format {
    fn from(choice: FormatChoice) -> Self {
        match choice {
            FormatChoice::Jpeg => Self::Jpeg,
            FormatChoice::Png => Self::Png,
            FormatChoice::Tiff => Self::Tiff,
            FormatChoice::Webp => Self::WebP,
            FormatChoice::Bmp => Self::Bmp,
        }
    }
}

/// Options of `dehaze`.
#[derive(Debug, Args)]
#[command(
    after_help = "Pictures: JPEG, PNG, TIFF, WebP, BMP of any size, grey or colour. EXIF orientation is applied; alpha, ICC profile, EXIF and bit depth are \
kept where the format written can hold them. A folder is done with all below it, in the same structure.\n\n\
Memory: a picture is done whole where --max-memory allows, else in overlapping tiles that agree in tone and show no seam. Time grows with the \
number of pixels."
)]
pub struct DehazeArgs {
    /// Pictures or folders, or - for standard input
    #[arg(value_name = "IN")]
    pub positional: Vec<PathBuf>,
    /// The same
    #[arg(short, long, value_name = "IN", num_args = 1..)]
    pub input: Vec<PathBuf>,
    /// A picture, whose ending says the format; a folder; or - for standard output
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// The method
    #[arg(long, value_enum, default_value = "network")]
    pub method: DehazeMethod,
    /// The run whose network is used
    #[arg(long, value_name = "RUN_DIR")]
    pub run: Option<PathBuf>,
    /// Or weights of a restoration network, as `weights import` writes them
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "run")]
    pub weights: Option<PathBuf>,
    /// Which weights of the run to use [default: final, else best, else latest]
    #[arg(long, value_enum, requires = "run")]
    pub checkpoint: Option<CheckpointChoice>,
    /// Format to write [default: by the output's ending, in a folder by the picture's]
    #[arg(long, value_enum)]
    pub format: Option<FormatChoice>,
    /// JPEG quality
    #[arg(long, value_name = "1..100", default_value_t = 95, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: u8,
    /// Keep pictures that are already there; without it they are replaced
    #[arg(long)]
    pub skip_existing: bool,
    /// Write before and after side by side
    #[arg(long)]
    pub compare: bool,
    /// Write a page with a before/after slider for every picture and a table of scores
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Clear pictures for the report's PSNR and SSIM: of the same name, or of its part before an underscore (0001_0.8_0.2.png and 0001.png)
    #[arg(long, value_name = "DIR", requires = "report")]
    pub reference: Option<PathBuf>,
    /// Memory to use, in GB; it decides whether a picture is done whole or in tiles [default: half of what is free]
    #[arg(long, value_name = "GB")]
    pub max_memory: Option<f64>,
    /// Longest side that is done at once, in pixels [default: what --max-memory allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..=65536))]
    pub tile: Option<u32>,
    /// dcp: side of the patch
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1023))]
    pub dcp_patch: u32,
    /// dcp: part of the haze that is taken away
    #[arg(long, value_name = "X", default_value_t = 0.95)]
    pub dcp_omega: f32,
    /// dcp: least transmission
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    pub dcp_t0: f32,
    /// dcp: radius of the guided filter
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub dcp_radius: u32,
    /// dcp: regularisation of the guided filter, for values in [0, 1]
    #[arg(long, value_name = "X", default_value_t = 1e-3)]
    pub dcp_eps: f32,
    /// dcp: longest side at which the haze is estimated; larger pictures are reduced to it for that, since patch and radius are made for
    /// pictures of about 600 x 400
    #[arg(long, value_name = "N", default_value_t = 1280, value_parser = clap::value_parser!(u32).range(16..=65536))]
    pub dcp_side: u32,
}

impl DehazeArgs {
    /// All inputs, however they were given.
    pub fn inputs(&self) -> impl Iterator<Item = &PathBuf> {
        self.positional.iter().chain(&self.input)
    }
}

/// Which cases are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CasesChoice {
    /// Test cases where they have references, else those that the runs held out
    Auto,
    /// Test cases
    Test,
    /// Of each run the cases that it held out; folds of a network make up cross-validation
    Validation,
}

/// Options of `benchmark`.
#[derive(Debug, Args)]
pub struct BenchmarkArgs {
    /// A name of `datasets list`
    pub name: String,
    /// The data set's folder, as downloaded or converted
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// A run folder, or a folder of runs called fold_*; several are compared, and those that differ in seeds and folds alone get a mean and spread
    #[arg(long = "run", value_name = "RUN_DIR")]
    pub runs: Vec<PathBuf>,
    /// Another run: its differences from the first, case by case
    #[arg(long, value_name = "RUN_DIR")]
    pub compare: Vec<PathBuf>,
    /// Predictions that another program made
    #[arg(long = "pred", value_name = "[NAME=]DIR")]
    pub predictions: Vec<String>,
    /// A protocol of `datasets show NAME` [default: its first]
    #[arg(long, value_name = "NAME")]
    pub protocol: Option<String>,
    /// Which cases to score
    #[arg(long, value_enum, default_value = "auto")]
    pub cases: CasesChoice,
    /// Where report, tables and predictions go [default: benchmark-NAME]
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Which weights to use [default: final, else best, else latest]
    #[arg(long, value_enum)]
    pub checkpoint: Option<CheckpointChoice>,
    /// Number format of matrix products and convolutions
    #[arg(long, value_enum, default_value = "float32")]
    pub precision: Precision,
    /// Do not average over mirrored inputs (faster)
    #[arg(long)]
    pub no_mirroring: bool,
}

/// Commands under `evaluate`.
#[derive(Debug, Subcommand)]
pub enum EvaluateCommand {
    /// Overlap of label maps, per class and case
    Segmentation(EvaluateSegmentationArgs),
    /// Likeness of restored pictures to clear ones: PSNR, SSIM, CIEDE2000
    Restoration(EvaluateRestorationArgs),
}

/// Options of `evaluate restoration`.
#[derive(Debug, Args)]
pub struct EvaluateRestorationArgs {
    /// Restored pictures
    #[arg(long, value_name = "DIR")]
    pub pred: PathBuf,
    /// Clear pictures of the same names (endings may differ)
    #[arg(long = "ref", value_name = "DIR")]
    pub reference: PathBuf,
    /// Leave out so many pixels on each side
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=65536))]
    pub crop_border: u32,
    /// Write all numbers with their conventions here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// How label maps are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProtocolChoice {
    /// Each class or region of dataset.json
    Classes,
    /// Objects one by one: files hold object numbers; F1, AP and panoptic quality
    Instances,
    /// U-Mamba's abdomen scripts: 13 organs, Dice and NSD with a tolerance each
    UmambaAbdomen,
    /// U-Mamba's endoscopy scripts: Dice and NSD of the labels in either picture
    UmambaEndoscopy,
    /// U-Mamba's cell script: components of class 1 against CASE_label.tiff
    UmambaCell,
    /// Mamba-UNet's validation: Dice and HD95 in voxels
    MambaUnet,
}

/// Options of `evaluate segmentation`.
#[derive(Debug, Args)]
pub struct EvaluateSegmentationArgs {
    /// Predicted label maps
    #[arg(long, value_name = "DIR")]
    pub pred: PathBuf,
    /// Reference label maps of the same names (endings may differ)
    #[arg(long = "ref", value_name = "DIR")]
    pub reference: PathBuf,
    /// The data set's dataset.json, for label names [default: looked for beside the folders]
    #[arg(long, value_name = "FILE")]
    pub dataset_json: Option<PathBuf>,
    /// Surface distances too: HD, HD95, ASSD and normalised surface Dice, in the unit of the files' spacing
    #[arg(long)]
    pub surface: bool,
    /// Distance that normalised surface Dice tolerates, in the unit of the spacing (mm), of all classes or as CLASS=MM of one (by name or
    /// label); may be given several times [default: 1]
    #[arg(long, value_name = "[CLASS=]MM")]
    pub tolerance: Vec<String>,
    /// Definitions of distances and of what empty masks count
    #[arg(long, value_enum, default_value = "nnunet")]
    pub convention: Convention,
    /// Score as a published script does
    #[arg(long, value_enum, default_value = "classes")]
    pub protocol: ProtocolChoice,
    /// Overlap (IoU) from which two objects match, for instances and umamba-cell
    #[arg(long, value_name = "IOU", default_value_t = 0.5)]
    pub iou: f64,
    /// Count objects that touch the border too (umamba-cell)
    #[arg(long)]
    pub border_cells: bool,
    /// Score the predicted cases alone; otherwise a reference without prediction is a failure
    #[arg(long)]
    pub predicted_only: bool,
    /// Write all numbers here, in nnU-Net's summary form
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a row for every case and class here, separated by commas
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Images (CASE_0000.EXT) to draw overlays on
    #[arg(long, value_name = "DIR", requires = "overlays")]
    pub images: Option<PathBuf>,
    /// Write image, reference and prediction side by side as CASE.png in this folder, and the worst, median and best
    /// case together as overview.png
    #[arg(long, value_name = "DIR", requires = "images")]
    pub overlays: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("96x160"), Ok(Size(vec![96, 160])));
        assert_eq!(parse_size("48,96,96"), Ok(Size(vec![48, 96, 96])));
        assert!(parse_size("96").is_err());
        assert!(parse_size("0x4").is_err());
        assert!(parse_size("axb").is_err());
    }
}
