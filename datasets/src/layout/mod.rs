//! Folder conventions: where the images and label maps of a data set lie. One module a convention.

mod description;
pub mod input;
pub mod nnunet;
