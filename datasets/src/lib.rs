//! Medical and natural images for segmentation, as plain arrays: reading and writing, the nnU-Net folder layout, the plan of a data set,
//! preprocessing, and training patches drawn on worker threads.
//!
//! The way through the crate: [`Dataset`] names the files, [`io`] reads them, [`Plan`] records the decisions about a data set,
//! [`prepare_case`] normalises a case, [`Prefetch`] yields augmented [`Batch`]es. Arrays are in array order, slowest axis first, and 2-D and
//! 3-D images go through the same code.
//!
//! This crate knows no tensors and reads neither environment, clock nor terminal.

pub mod augment;
pub mod case;
mod error;
pub mod io;
pub mod layout;
pub mod loader;
pub mod plan;
pub mod preprocess;
mod random;
pub mod sampler;
pub mod split;
pub mod zoom;

pub use augment::Augmentation;
pub use case::{Geometry, Image, LabelMap, SourceHeader};
pub use error::{DataError, Result};
pub use io::{atomically, read_image, read_labels, write_image, write_labels};
pub use layout::input::{images_in, load_channels, InputCase};
pub use layout::nnunet::{Dataset, DatasetJson, Split};
pub use loader::Prefetch;
pub use plan::{Configuration, Intensity, Normalisation, Plan};
pub use preprocess::{normalise, prepare_case, PreparedCase};
pub use sampler::{draw_batch, Batch, PatchSettings};
pub use split::{fold, Fold, FoldChoice};
pub use zoom::{zoom, ZoomOrder};
