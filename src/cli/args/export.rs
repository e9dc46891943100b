//! What can be typed after `export`.

use std::path::PathBuf;

use clap::Args;

use super::{parse_size, CheckpointChoice, Size};

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
