//! What can be typed after `plan`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use vision_mamba_datasets::Planner;

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
