//! What can be typed after `evaluate`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::metrics::protocol::Convention;

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
