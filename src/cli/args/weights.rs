//! What can be typed after `weights`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Commands under `weights`.
#[derive(Debug, Subcommand)]
pub enum WeightsCommand {
    /// What a .pth, .pt, .ckpt or .safetensors file holds; nothing in it is executed
    Inspect(WeightsInspectArgs),
    /// Write a checkpoint of the originals as weights of a preset, or a results folder of nnU-Net or U-Mamba as runs
    Import(WeightsImportArgs),
    /// Write the mean of several files of weights of one network
    Average(WeightsAverageArgs),
}

/// Options of `weights average`.
#[derive(Debug, Args)]
pub struct WeightsAverageArgs {
    /// The files, as runs write them
    #[arg(required = true, num_args = 2.., value_name = "FILE.safetensors")]
    pub files: Vec<PathBuf>,
    /// What each counts, as 2,1,1 [default: all the same]
    #[arg(long, value_name = "X,Y,...", value_delimiter = ',')]
    pub shares: Option<Vec<f64>>,
    /// The file to write
    #[arg(short, long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
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
