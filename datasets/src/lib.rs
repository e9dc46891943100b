//! Medical and natural images for segmentation, as plain arrays: reading and writing, the nnU-Net folder layout, the plan of a data set,
//! preprocessing, and training patches drawn on worker threads.
//!
//! The way through the crate: [`Dataset`] names the files, [`io`] reads them, [`Plan`] records the decisions about a data set,
//! [`prepare_case`] normalises a case, [`Prefetch`] yields augmented [`Batch`]es. Arrays are in array order, slowest axis first, and 2-D and
//! 3-D images go through the same code.
//!
//! This crate knows no tensors and reads neither environment, clock nor terminal.

pub mod augment;
pub mod cache;
pub mod case;
pub mod catalog;
mod error;
pub mod fingerprint;
pub mod io;
pub mod layout;
pub mod loader;
pub mod parallel;
pub mod plan;
pub mod planner;
pub mod preprocess;
pub mod probabilities;
mod random;
mod recycled;
pub mod restoration;
pub mod sampler;
pub mod split;
pub mod zoom;

pub use augment::Augmentation;
pub use case::{Geometry, Image, LabelMap, SourceHeader};
pub use error::{DataError, Result};
pub use fingerprint::Fingerprint;
pub use io::{atomically, read_image, read_labels, write_image, write_labels};
pub use layout::input::{images_in, load_channels, InputCase};
pub use layout::{Case, Dataset, DatasetJson, Split};
pub use loader::Prefetch;
pub use plan::{Architecture, Configuration, Plan, UNetArguments};
pub use planner::Planner;
pub use preprocess::{
    prepare_case, restore, Column, Decision, Intensity, Normalisation, PreparedCase, Restored,
    Restoring, SourceGrid,
};
pub use probabilities::Probabilities;
pub use recycled::Recycled;
pub use sampler::{draw_batch, Batch, PatchSettings, Sampler, TrainingCase};
pub use split::{fold, Fold, FoldChoice, Folds};
pub use zoom::{zoom, ZoomOrder};
