//! What can be typed after `dehaze`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::CheckpointChoice;
use crate::photo::Format;

/// How haze is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DehazeMethod {
    /// A trained network
    Network,
    /// Dark channel prior with a guided filter (He, Sun and Tang 2009 and 2010); needs no weights
    Dcp,
}

impl DehazeMethod {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Dcp => "dcp",
        }
    }

    /// In words.
    pub fn told(self) -> &'static str {
        match self {
            Self::Network => "the weights that ship",
            Self::Dcp => "dark channel prior with a guided filter, with the settings that `dehaze --method dcp` has by itself",
        }
    }
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
    /// With the weights that ship: clear thin haze too. Without this a picture of hardly any haze is left as it is, because things that are pale
    /// themselves look alike
    #[arg(long, conflicts_with_all = ["run", "weights"])]
    pub thin_haze: bool,
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
