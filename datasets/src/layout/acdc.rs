//! ACDC, cardiac MRI, as Mamba-UNet and the semi-supervised line before it keep it: slices to train on, volumes to validate and test on.
//!
//! Source: `code/dataloaders/dataset.py` and `code/test_2D_fully.py` of Mamba-UNet at dfe92ba; labels as the challenge numbers them (Bernard
//! et al., IEEE TMI 2018). The files have no spacing.

use super::slices::{Convention, Place};

pub(super) const CONVENTION: Convention = Convention {
    name: "ACDC",
    holds: "data/slices/*.h5, data/*.h5, train_slices.list, val.list",
    signs: &["train_slices.list", "data/slices"],
    title: "ACDC",
    channel: "cine-MRI",
    classes: &["right ventricle", "myocardium", "left ventricle"],
    train_lists: &["train_slices.list"],
    validation_lists: &["val.list"],
    test_lists: &["test.list"],
    slices: &[Place {
        folder: "data/slices",
        ending: ".h5",
    }],
    volumes: &[Place {
        folder: "data",
        ending: ".h5",
    }],
    slice_mark: "_slice_",
    // patient001_frame01 and patient001_frame12 are one heart
    volume_mark: Some("_frame"),
};
