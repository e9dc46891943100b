//! Synapse, multi-organ abdominal CT (BTCV), as TransUNet prepared it and Mamba-UNet takes it over: slices of 18 scans to train on, volumes of
//! 12 to test on.
//!
//! Source: `datasets/dataset_synapse.py` and `lists/lists_Synapse` of TransUNet; lists `data/Synapse` of Mamba-UNet at dfe92ba. The order of
//! the eight organs is that of TransUNet's tables. Values are clipped to [-125, 275] HU and scaled to 0..1; the files have no spacing.

use super::slices::{Convention, Place};

pub(super) const CONVENTION: Convention = Convention {
    name: "Synapse",
    holds: "train_npz/*.npz, test_vol_h5/*.npy.h5, lists/train.txt or train_slices.txt",
    signs: &["train_npz", "test_vol_h5", "train_slices.txt"],
    title: "Synapse",
    // Scaled to 0..1 already, so they are not Hounsfield units any more: z-scores, not nnU-Net's CT scheme.
    channel: "scaled_CT",
    classes: &[
        "aorta",
        "gallbladder",
        "left kidney",
        "right kidney",
        "liver",
        "pancreas",
        "spleen",
        "stomach",
    ],
    train_lists: &[
        "train_slices.txt",
        "train_slices.list",
        "lists/train.txt",
        "lists/lists_Synapse/train.txt",
        "lists_Synapse/train.txt",
    ],
    validation_lists: &["val.txt", "val.list"],
    test_lists: &[
        "lists/test_vol.txt",
        "lists/lists_Synapse/test_vol.txt",
        "lists_Synapse/test_vol.txt",
        "test_vol.txt",
        "test.list",
    ],
    slices: &[
        Place {
            folder: "train_npz",
            ending: ".npz",
        },
        Place {
            folder: "data/slices",
            ending: ".h5",
        },
    ],
    volumes: &[
        Place {
            folder: "test_vol_h5",
            ending: ".npy.h5",
        },
        Place {
            folder: "test_vol_h5",
            ending: ".h5",
        },
        Place {
            folder: "data",
            ending: ".h5",
        },
    ],
    slice_mark: "_slice",
    volume_mark: None,
};
