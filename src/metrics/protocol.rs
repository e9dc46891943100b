//! Named ways of scoring: what counts as distance, what an empty mask means, and the scripts that published tables were made with.

use clap::ValueEnum;
use ndarray::{s, Array3, ArrayView3, Axis, Zip};
use serde::{Deserialize, Serialize};

use super::instances::{components, match_objects, without_border, Matches, Objects};
use super::overlap::Counts;
use super::surface::{element_distances, voxel_distances, Connectivity};

/// Definitions of distances and of what empty masks count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// nnU-Net's overlap; a class in neither map is left out, one in a single map has Dice 0 and no distance. Distances by voxels (MedPy), NSD by area (DeepMind)
    #[default]
    Nnunet,
    /// MedPy: distances by voxels, both directions pooled; undefined where a mask is empty. NSD by area
    Medpy,
    /// MONAI: larger of the directions' percentiles; a class without reference is left out, a missed one is infinitely far. NSD by voxels
    Monai,
    /// DeepMind's surface-distance: distances weighted by area; infinite where a mask is empty
    Deepmind,
    /// U-Mamba's scripts: as DeepMind, but a class in neither map has Dice and NSD 1, one that is predicted only has 0
    Umamba,
}

/// Distances of one class in one case, in the unit of the spacing; `None` where the convention has none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distances {
    /// Hausdorff distance.
    pub hd: Option<f64>,
    /// Its 95th percentile.
    pub hd95: Option<f64>,
    /// Average symmetric surface distance.
    pub assd: Option<f64>,
    /// Normalised surface Dice at the tolerance, in [0, 1].
    pub nsd: Option<f64>,
}

impl Convention {
    /// Dice and IoU of a class.
    pub fn overlap(self, counts: &Counts) -> (Option<f64>, Option<f64>) {
        let reference = counts.tp + counts.fn_;
        match self {
            Self::Monai if reference == 0 => (None, None),
            // its Dice divides 0 by 0, its Jaccard index of nothing and nothing is 1
            Self::Medpy => (counts.dice(), counts.iou().or(Some(1.0))),
            Self::Umamba => (counts.dice().or(Some(1.0)), counts.iou().or(Some(1.0))),
            _ => (counts.dice(), counts.iou()),
        }
    }

    /// Distances between masks (Z, Y, X); `flat` for 2-D images, which have one slice.
    pub fn distances(
        self,
        prediction: ArrayView3<bool>,
        reference: ArrayView3<bool>,
        spacing: [f64; 3],
        flat: bool,
        tolerance: f64,
    ) -> Distances {
        let any = |mask: &ArrayView3<bool>| mask.iter().any(|m| *m);
        let (predicted, present) = (any(&prediction), any(&reference));
        if !predicted && !present {
            return Distances {
                hd: (self == Self::Deepmind).then_some(f64::INFINITY),
                hd95: (self == Self::Deepmind).then_some(f64::INFINITY),
                nsd: (self == Self::Umamba).then_some(1.0),
                ..Default::default()
            };
        }
        if !predicted || !present {
            let infinite = match self {
                Self::Nnunet | Self::Medpy => None,
                Self::Monai | Self::Deepmind | Self::Umamba => Some(f64::INFINITY),
            };
            return Distances {
                hd: infinite,
                hd95: infinite.filter(|_| self == Self::Deepmind),
                assd: infinite,
                nsd: Some(0.0),
            };
        }
        let elements = || element_distances(prediction, reference, spacing, flat);
        if matches!(self, Self::Deepmind | Self::Umamba) {
            let elements = elements();
            let (back, forth) = elements.asd();
            return Distances {
                hd: Some(elements.hd(100.0)),
                hd95: Some(elements.hd(95.0)),
                assd: Some(0.5 * (back + forth)),
                nsd: elements.nsd(tolerance),
            };
        }
        let voxels = voxel_distances(prediction, reference, spacing, Connectivity::Faces, flat);
        Distances {
            hd: voxels.hd(),
            hd95: match self {
                Self::Monai => voxels.hd95_directed(),
                _ => voxels.hd95(),
            },
            assd: voxels.assd(),
            nsd: match self {
                Self::Monai => voxels.nsd(tolerance),
                _ => elements().nsd(tolerance),
            },
        }
    }

    /// What the numbers mean, in words: what empty masks count, and with `tolerances` what distances are.
    pub fn words(self, tolerances: Option<&Tolerances>) -> String {
        let (name, empty, distances) = match self {
            Self::Nnunet => ("nnunet", "a class in neither map is left out, one in a single map has Dice 0", "distances between surface voxels, both directions pooled (MedPy), left out where a mask is empty; NSD by surface area (DeepMind)"),
            Self::Medpy => ("medpy", "of a class in neither map Dice is left out and IoU 1", "distances between surface voxels, both directions pooled, left out where a mask is empty; NSD by surface area"),
            Self::Monai => ("monai", "a class without reference is left out", "distances between surface voxels, HD95 is the larger of the directions' percentiles, left out where a mask is empty; NSD by surface voxels"),
            Self::Deepmind => ("deepmind", "a class in neither map is left out", "distances between surface elements, weighted by area, infinite (written as null) where a mask is empty; NSD by surface area"),
            Self::Umamba => ("umamba", "a class in neither map has Dice, IoU and NSD 1, one that is predicted only has 0", "distances between surface elements, weighted by area, left out where a mask is empty; NSD by surface area"),
        };
        match tolerances {
            None => format!("convention {name}: {empty}"),
            Some(t) => format!(
                "convention {name}: {empty}; {distances}; {t}; distances in the unit of the files' spacing"
            ),
        }
    }
}

/// How far apart surfaces may lie for normalised surface Dice, in the unit of the spacing.
#[derive(Debug, Clone, PartialEq)]
pub struct Tolerances {
    /// Of each class by name, in their order.
    pub classes: Vec<(String, f64)>,
}

impl std::fmt::Display for Tolerances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let one = self.classes.first().map_or(1.0, |c| c.1);
        if self.classes.iter().all(|c| c.1 == one) {
            return write!(f, "NSD at {one} mm");
        }
        let list = self.classes.iter().map(|(n, t)| format!("{n} {t}"));
        write!(f, "NSD at mm: {}", list.collect::<Vec<_>>().join(", "))
    }
}

/// The voxels of a class.
pub fn mask_of(map: ArrayView3<i16>, values: &[i16]) -> Array3<bool> {
    map.mapv(|v| values.contains(&v))
}

/// The organs of U-Mamba's abdomen table in the order of their labels from 1, and the tolerance of their NSD in mm.
pub const ABDOMEN: [(&str, f64); 13] = [
    ("Liver", 5.0),
    ("RK", 3.0),
    ("Spleen", 3.0),
    ("Pancreas", 5.0),
    ("Aorta", 2.0),
    ("IVC", 2.0),
    ("RAG", 2.0),
    ("LAG", 2.0),
    ("Gallbladder", 2.0),
    ("Esophagus", 3.0),
    ("Stomach", 5.0),
    ("Duodenum", 7.0),
    ("LK", 3.0),
];
/// Labels of organs that are longer than their annotation: scored between its first and last slice, the last left out.
const TUBES: [i16; 3] = [5, 6, 10];

/// A class's Dice and NSD as U-Mamba's scripts give them: 1 where it is in neither map, 0 where it is predicted only. NaN for an empty range.
fn dice_and_nsd(
    prediction: ArrayView3<bool>,
    reference: ArrayView3<bool>,
    spacing: [f64; 3],
    tolerance: f64,
) -> (f64, f64) {
    let count = |mask: &ArrayView3<bool>| mask.iter().filter(|m| **m).count();
    let mut both = 0;
    Zip::from(&prediction)
        .and(&reference)
        .for_each(|p, r| both += usize::from(*p && *r));
    let all = count(&prediction) + count(&reference);
    // thickness matters: a single slice is a volume here
    let nsd = element_distances(prediction, reference, spacing, false).nsd(tolerance);
    (2.0 * both as f64 / all as f64, nsd.unwrap_or(f64::NAN))
}

/// U-Mamba's abdomen scripts (`abdomen_DSC_Eval.py`, `abdomen_NSD_Eval.py`): Dice and NSD of each organ of [`ABDOMEN`].
pub fn umamba_abdomen(
    prediction: ArrayView3<i16>,
    reference: ArrayView3<i16>,
    spacing: [f64; 3],
) -> Vec<(f64, f64)> {
    (1..)
        .zip(ABDOMEN)
        .map(|(label, (_, tolerance))| {
            let (p, r) = (mask_of(prediction, &[label]), mask_of(reference, &[label]));
            let any = |m: &Array3<bool>| m.iter().any(|v| *v);
            match (any(&p), any(&r)) {
                (false, false) => return (1.0, 1.0),
                (true, false) => return (0.0, 0.0),
                _ => {}
            }
            if !TUBES.contains(&label) {
                return dice_and_nsd(p.view(), r.view(), spacing, tolerance);
            }
            let slices: Vec<usize> = r
                .axis_iter(Axis(0))
                .enumerate()
                .filter(|(_, slice)| slice.iter().any(|v| *v))
                .map(|(z, _)| z)
                .collect();
            let (first, last) = (slices[0], slices[slices.len() - 1]);
            let part = s![first..last, .., ..];
            dice_and_nsd(p.slice(part), r.slice(part), spacing, tolerance)
        })
        .collect()
}

/// The tolerance of U-Mamba's endoscopy table, in pixels.
const ENDOSCOPY_TOLERANCE: f64 = 2.0;

/// U-Mamba's endoscopy scripts: mean Dice and NSD over the labels in either map of a picture. NaN if there is none.
pub fn umamba_endoscopy(prediction: ArrayView3<i16>, reference: ArrayView3<i16>) -> (f64, f64) {
    let mut labels: Vec<i16> = prediction
        .iter()
        .chain(reference.iter())
        .copied()
        .filter(|v| *v > 0)
        .collect();
    labels.sort_unstable();
    labels.dedup();
    let n = labels.len() as f64;
    let (mut dice, mut nsd) = (0.0, 0.0);
    for label in labels {
        let (p, r) = (mask_of(prediction, &[label]), mask_of(reference, &[label]));
        if r.iter().any(|v| *v) {
            let scores = dice_and_nsd(p.view(), r.view(), [1.0; 3], ENDOSCOPY_TOLERANCE);
            dice += scores.0;
            nsd += scores.1;
        }
    }
    (dice / n, nsd / n)
}

/// Pixels from the edge that an object must keep to be counted in U-Mamba's cell table.
const CELL_FRAME: usize = 2;

/// A row of U-Mamba's cell table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CellScores {
    /// Objects and pairs.
    pub matches: Matches,
    /// Predicted objects without partner; 0 without any prediction.
    pub fp: usize,
    /// Missed objects; 0 without any prediction, as the script has it.
    pub fn_: usize,
    /// Of all pixels of objects, border objects included.
    pub dice: f64,
    /// Harmonic mean of precision and recall; 0 without a match.
    pub f1: f64,
}

/// U-Mamba's `compute_cell_metric.py`: `predicted` is the label map, whose class 1 holds the cells; `reference` numbers them.
pub fn umamba_cell(
    reference: &Objects,
    predicted: ndarray::ArrayView2<i16>,
    threshold: f64,
    border_cells: bool,
) -> CellScores {
    let found = components(predicted.mapv(|v| v == 1).view());
    let count = |o: &Objects| o.iter().filter(|n| **n > 0).count();
    let both = reference
        .iter()
        .zip(&found)
        .filter(|(a, b)| **a > 0 && **b > 0);
    let (a, b) = (count(reference), count(&found));
    let dice = match (a, b) {
        (0, 0) => 1.0,
        (0, _) => 0.0,
        _ => 2.0 * both.count() as f64 / (a + b) as f64,
    };
    let kept = |objects: Objects| match border_cells {
        true => objects,
        false => without_border(objects, CELL_FRAME),
    };
    let matches = match_objects(&kept(reference.clone()), &kept(found), threshold);
    let (precision, recall) = (matches.precision(), matches.recall());
    let some = matches.predicted > 0;
    CellScores {
        fp: if some {
            matches.predicted - matches.tp
        } else {
            0
        },
        fn_: if some {
            matches.reference - matches.tp
        } else {
            0
        },
        dice,
        f1: match matches.tp {
            0 => 0.0,
            _ => 2.0 * precision * recall / (precision + recall),
        },
        matches,
    }
}

/// Mamba-UNet's validation: Dice and HD95 in voxels; zeros whenever nothing is predicted. `None` if something is predicted where nothing is:
/// the script stops there.
pub fn mamba_unet(
    prediction: ArrayView3<bool>,
    reference: ArrayView3<bool>,
    flat: bool,
) -> Option<(f64, f64)> {
    if !prediction.iter().any(|v| *v) {
        return Some((0.0, 0.0));
    }
    let (mut both, mut all) = (0usize, 0usize);
    Zip::from(&prediction).and(&reference).for_each(|p, r| {
        both += usize::from(*p && *r);
        all += usize::from(*p) + usize::from(*r);
    });
    let voxels = voxel_distances(prediction, reference, [1.0; 3], Connectivity::Faces, flat);
    Some((2.0 * both as f64 / all as f64, voxels.hd95()?))
}
