//! What can be typed after `models`.

use clap::{Args, Subcommand, ValueEnum};

use super::{parse_size, Size};

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
