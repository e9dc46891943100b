//! What can be typed after `benchmark`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CheckpointChoice, DehazeMethod};
use crate::precision::Precision;

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
    /// Of pictures also: the dark channel prior, or the weights that ship
    #[arg(long = "method", value_enum, value_name = "METHOD")]
    pub methods: Vec<DehazeMethod>,
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
    /// Of pictures: memory to use, in GB, as `dehaze` has it [default: half of what is free]
    #[arg(long, value_name = "GB")]
    pub max_memory: Option<f64>,
    /// Of pictures: longest side that is done at once, in pixels [default: what --max-memory allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..=65536))]
    pub tile: Option<u32>,
}
