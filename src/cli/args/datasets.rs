//! What can be typed after `datasets`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
