//! What can be typed, a module for each command. Parsing touches nothing: no file, no device.

mod benchmark;
mod datasets;
mod dehaze;
mod evaluate;
mod export;
mod models;
mod plan;
mod predict;
mod train;
mod weights;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use benchmark::*;
pub use datasets::*;
pub use dehaze::*;
pub use evaluate::*;
pub use export::*;
pub use models::*;
pub use plan::*;
pub use predict::*;
pub use train::*;
pub use weights::*;

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

/// Options of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
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
