//! What can be typed after `train`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{parse_size, CheckpointChoice, Size};
use crate::losses::image::PixelLoss;
use crate::losses::LossKind;
use crate::precision::Precision;
use crate::speed::Speed;

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
    /// What only changes how fast it computes.
    #[command(flatten)]
    pub speed: Speed,
    /// Keep only the inputs of a network's blocks and compute their insides again in the backward pass: less memory, about a third more time
    #[arg(long)]
    pub checkpoint_activations: bool,
    /// Record a training step on a GPU as a CUDA graph and play it: the host launches one thing a step, not thousands. Where kernels are short, that is what
    /// a step waits for
    #[arg(long, conflicts_with_all = ["accumulate", "checkpoint_activations", "profile"])]
    pub cuda_graph: bool,
    /// Time N steps by phases and N by operators, and tell where a step's time goes; also in profile.json of the run folder
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "20", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub profile: Option<u64>,
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
    /// Weight of the mean squared difference of the pixels in the loss, beside --pixel-loss
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    pub squared_loss: f64,
    /// Weight of the difference of the spectra in the loss
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    pub frequency_loss: f64,
    /// Weight of 1 - SSIM in the loss
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    pub ssim_loss: f64,
    /// How crops are drawn, as KEY=VALUE: scale=[0.6,3], whole=0.4 (how often the region is as large as the picture allows),
    /// synthesise=0.8 (how often haze is drawn though a hazy picture is there; 0 for other damage than haze), flip_horizontal,
    /// flip_vertical, gamma, gain, pale=0 (how often the clear picture gets a veil of its own, which is no haze and stays), pale_contrast=[0.4,0.9],
    /// pale_level=[0.4,1]
    #[arg(long, value_name = "KEY=VALUE")]
    pub crops: Vec<String>,
    /// The haze that is drawn, as KEY=VALUE: none=0.1 (how often none), beta=[0.3,3], air_light=[0.7,1], coloured, colour, uneven, unevenness,
    /// noise, noise_sigma, jpeg, jpeg_quality, real_depth, depth.ground, depth.ramp, depth.regions, depth.radial, depth.constant
    #[arg(long, value_name = "KEY=VALUE")]
    pub haze: Vec<String>,
}
