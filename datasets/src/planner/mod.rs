//! The decisions nnU-Net v2 takes about a data set: spacing, order of axes, patch, batch and depth, from its fingerprint and a memory to fit
//! into (Isensee et al., Nature Methods 18, 2021; reference: `default_experiment_planner.py`, `residual_encoder_unet_planners.py`).

mod topology;

use indexmap::IndexMap;
use serde_json::{json, Value};

use crate::fingerprint::{median, percentile};
use crate::plan::{Architecture, UNetArguments, RESAMPLING};
use crate::preprocess::{new_size, Normalisation, Resampling};
use crate::{Configuration, DatasetJson, Fingerprint, Plan};
pub use topology::Topology;

/// Spacing and size that differ by more than this make an axis coarse.
const ANISOTROPIC: f64 = 3.0;
/// A patch of less than this part of the median image asks for a coarser configuration.
const LOWRES_BELOW: f64 = 0.25;
/// The factor by which spacing grows in search of it.
const LOWRES_STEP: f64 = 1.03;
/// Cropping below this part of the image makes z-scores look at the body alone.
const MASK_BELOW: f64 = 0.75;
/// Axes coarser than this many times another are left alone in that search.
const LOWRES_ANISOTROPIC: f64 = 2.0;
const BASE_FEATURES: usize = 32;
const LEAST_BATCH: usize = 2;
/// Memory, in GB, that the reference sizes below are for.
const REFERENCE_GB: f64 = 8.0;

/// A planner: which U-Net is fitted, and how large its reference is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planner {
    /// nnU-Net's default: a plain U-Net.
    Default,
    /// Residual encoder, the memory of the default.
    ResEncM,
    /// Residual encoder, 24 GB.
    ResEncL,
    /// Residual encoder, 40 GB.
    ResEncXl,
    /// The default as U-Mamba's copy of nnU-Net 2.1.1 has it.
    UMamba,
}

/// The numbers behind a planner.
struct Rules {
    planner_name: &'static str,
    plans_name: &'static str,
    network: &'static str,
    memory_gb: f64,
    /// Feature values that fit the reference memory at the reference batch, in 2-D and 3-D.
    reference: [f64; 2],
    /// Largest part of all voxels that a batch may see.
    covered: f64,
    blocks: &'static [usize],
    decoder_convs: usize,
    residual: bool,
    /// Whether a patch may fill the memory with a batch of 2, or has to leave room for the reference batch.
    down_to_batch_of_two: bool,
    /// Whether a coarse configuration that is no great difference is dropped.
    drops_lowres: bool,
    /// Whether names of channels mean the same in capitals.
    any_case: bool,
    /// 2d and 3d_fullres share their preprocessed cases with the default planner.
    shares_data: bool,
}

const PLAIN: &[usize] = &[2];
const RESIDUAL: &[usize] = &[1, 3, 4, 6];

impl Planner {
    fn rules(self) -> Rules {
        let plain = Rules {
            planner_name: "ExperimentPlanner",
            plans_name: "nnUNetPlans",
            network: "PlainConvUNet",
            memory_gb: REFERENCE_GB,
            reference: [85e6, 560e6],
            covered: 0.05,
            blocks: PLAIN,
            decoder_convs: 2,
            residual: false,
            down_to_batch_of_two: true,
            drops_lowres: true,
            any_case: true,
            shares_data: false,
        };
        let residual = |planner_name, plans_name, memory_gb, covered| Rules {
            planner_name,
            plans_name,
            network: "ResidualEncoderUNet",
            memory_gb,
            reference: [135e6, 680e6],
            covered,
            blocks: RESIDUAL,
            decoder_convs: 1,
            residual: true,
            down_to_batch_of_two: false,
            drops_lowres: true,
            any_case: true,
            shares_data: true,
        };
        match self {
            Self::Default => plain,
            Self::UMamba => Rules {
                down_to_batch_of_two: false,
                drops_lowres: false,
                any_case: false,
                ..plain
            },
            Self::ResEncM => residual("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans", 8.0, 1.0),
            Self::ResEncL => residual("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans", 24.0, 0.05),
            Self::ResEncXl => residual(
                "nnUNetPlannerResEncXL",
                "nnUNetResEncUNetXLPlans",
                40.0,
                0.05,
            ),
        }
    }

    /// GB of GPU memory that its configurations are made for unless told otherwise.
    pub fn memory_gb(self) -> f64 {
        self.rules().memory_gb
    }
}

/// What a planner works from and towards.
pub struct Request<'a> {
    /// Name of the data set's folder, e.g. `Dataset004_Hippocampus`.
    pub dataset_name: &'a str,
    /// Its `dataset.json`.
    pub info: &'a DatasetJson,
    /// What its cases look like; at least one.
    pub fingerprint: &'a Fingerprint,
    /// Who plans.
    pub planner: Planner,
    /// GB of GPU memory to fit into; none: the planner's own.
    pub memory_gb: Option<f64>,
    /// Spacing to resample to instead of the planned one, in the axes of the files.
    pub spacing: Option<[f64; 3]>,
}

/// Plans a data set.
pub fn plan(request: &Request) -> Plan {
    Work::new(request).plan()
}

struct Work<'a> {
    request: &'a Request<'a>,
    rules: Rules,
}

impl<'a> Work<'a> {
    fn new(request: &'a Request) -> Self {
        Self {
            request,
            rules: request.planner.rules(),
        }
    }

    fn plan(&self) -> Plan {
        let print = self.request.fingerprint;
        let spacing = self.fullres_spacing();
        let (forward, backward) = transpose(spacing);
        let ordered = |v: [f64; 3]| forward.map(|a| v[a]);
        let median_of = |values: &[[f64; 3]]| -> [f64; 3] {
            std::array::from_fn(|axis| median(values.iter().map(|v| v[axis]).collect()))
        };
        let resized: Vec<[f64; 3]> = print
            .spacings
            .iter()
            .zip(&print.shapes_after_crop)
            .map(|(s, size)| new_size(*size, *s, spacing).map(|n| n as f64))
            .collect();
        let median_size = ordered(median_of(&resized));
        let spacing = ordered(spacing);
        let training_cases = self.request.info.num_training as f64;
        let voxels: f64 = median_size.iter().product();

        let mut configurations = IndexMap::new();
        let mut two_d = self.configuration(
            &spacing[1..],
            &median_size[1..],
            "2d",
            voxels * training_cases,
        );
        two_d.batch_dice = true;
        configurations.insert("2d".to_owned(), two_d);
        if median_size[0] != 1.0 {
            let mut full = self.configuration(
                &spacing,
                &median_size,
                "3d_fullres",
                voxels * training_cases,
            );
            let low = self.lowres(&full, median_size, training_cases);
            full.batch_dice = low.is_some();
            if let Some(mut low) = low {
                low.next_stage = Some("3d_cascade_fullres".into());
                configurations.insert("3d_lowres".to_owned(), low);
                let mut cascade = full.clone();
                cascade.previous_stage = Some("3d_lowres".into());
                configurations.insert("3d_fullres".to_owned(), full);
                configurations.insert("3d_cascade_fullres".to_owned(), cascade);
            } else {
                configurations.insert("3d_fullres".to_owned(), full);
            }
        }
        let sizes: Vec<[f64; 3]> = print
            .shapes_after_crop
            .iter()
            .map(|size| size.map(|n| n as f64))
            .collect();
        Plan {
            dataset_name: self.request.dataset_name.into(),
            plans_name: self.rules.plans_name.into(),
            original_median_spacing_after_transp: ordered(median_of(&print.spacings)).to_vec(),
            original_median_shape_after_transp: ordered(median_of(&sizes))
                .map(f64::round_ties_even)
                .to_vec(),
            image_reader_writer: reader_of(&self.request.info.file_ending).into(),
            transpose_forward: forward,
            transpose_backward: backward,
            configurations,
            experiment_planner_used: self.rules.planner_name.into(),
            label_manager: "LabelManager".into(),
            foreground_intensity_properties_per_channel: print
                .foreground_intensity_properties_per_channel
                .iter()
                .map(|(k, v)| (k.clone(), *v))
                .collect(),
        }
    }

    /// The median along each axis; along a much coarser axis of few slices the tenth percentile.
    fn fullres_spacing(&self) -> [f64; 3] {
        if let Some(spacing) = self.request.spacing {
            return spacing;
        }
        let print = self.request.fingerprint;
        let along = |axis: usize| -> Vec<f64> { print.spacings.iter().map(|s| s[axis]).collect() };
        let mut target: [f64; 3] = std::array::from_fn(|a| percentile(along(a), 50.0));
        let size: [f64; 3] = std::array::from_fn(|a| {
            let sizes = print.shapes_after_crop.iter().map(|s| s[a] as f64);
            percentile(sizes.collect(), 50.0)
        });
        let worst = coarsest(target);
        let others = (0..3).filter(|a| *a != worst);
        let largest_other = others.clone().map(|a| target[a]).fold(0.0, f64::max);
        let smallest_other = others.map(|a| size[a]).fold(f64::MAX, f64::min);
        let coarse = target[worst] > ANISOTROPIC * largest_other;
        let few = size[worst] * ANISOTROPIC < smallest_other;
        if coarse && few {
            let tenth = percentile(along(worst), 10.0);
            target[worst] = match tenth < largest_other {
                true => largest_other.max(tenth) + 1e-5,
                false => tenth,
            };
        }
        target
    }

    /// Coarser and coarser until a patch covers a quarter of the median image; dropped if that is no great difference.
    fn lowres(
        &self,
        full: &Configuration,
        median_size: [f64; 3],
        training_cases: f64,
    ) -> Option<Configuration> {
        let full_spacing = [full.spacing[0], full.spacing[1], full.spacing[2]];
        let all_voxels: f64 = median_size.iter().product();
        let (mut spacing, mut voxels) = (full_spacing, all_voxels);
        let mut patch_voxels: f64 = full.patch_size.iter().map(|n| *n as f64).product();
        let mut low = None;
        while patch_voxels / voxels < LOWRES_BELOW {
            let largest = spacing.iter().copied().fold(0.0, f64::max);
            let finer = spacing.map(|s| largest / s > LOWRES_ANISOTROPIC);
            let any = finer.contains(&true);
            for (s, finer) in spacing.iter_mut().zip(finer) {
                if finer || !any {
                    *s *= LOWRES_STEP;
                }
            }
            let size: [f64; 3] =
                std::array::from_fn(|a| full_spacing[a] / spacing[a] * median_size[a]);
            voxels = size.iter().product();
            let found = self.configuration(
                &spacing,
                &size.map(f64::round_ties_even),
                "3d_lowres",
                voxels * training_cases,
            );
            patch_voxels = found.patch_size.iter().map(|n| *n as f64).product();
            low = Some(found);
        }
        low.filter(|_| !self.rules.drops_lowres || all_voxels / voxels >= 2.0)
    }

    fn configuration(
        &self,
        spacing: &[f64],
        median_size: &[f64],
        name: &str,
        dataset_voxels: f64,
    ) -> Configuration {
        let rules = &self.rules;
        let dims = spacing.len();
        let (reference, reference_batch, volume) = match dims {
            2 => (rules.reference[0], 12.0, 2048f64.powi(2)),
            _ => (rules.reference[1], 2.0, 256f64.powi(3)),
        };
        let memory = self.request.memory_gb.unwrap_or(rules.memory_gb);
        let reference = reference * (memory / REFERENCE_GB);

        let inverse: Vec<f64> = spacing.iter().map(|s| 1.0 / s).collect();
        let scale = (volume / inverse.iter().product::<f64>()).powf(1.0 / dims as f64);
        let first: Vec<f64> = inverse
            .iter()
            .zip(median_size)
            .map(|(i, size)| (i * scale).round_ties_even().min(*size))
            .collect();
        let mut topology = Topology::new(spacing, &first);
        let mut estimate = self.estimate(&topology);
        let too_large = |estimate: f64| match rules.down_to_batch_of_two {
            true => estimate / reference_batch * 2.0 > reference,
            false => estimate > reference,
        };
        while too_large(estimate) {
            let ratio = |axis: usize| topology.patch[axis] as f64 / median_size[axis];
            // the last of the largest, as a stable ascending sort has it
            let axis = (0..dims).fold(0, |best, a| if ratio(a) >= ratio(best) { a } else { best });
            let as_f64 =
                |patch: &[usize]| -> Vec<f64> { patch.iter().map(|n| *n as f64).collect() };
            let mut tried = topology.patch.clone();
            tried[axis] = tried[axis].saturating_sub(topology.divisor()[axis]);
            let step = Topology::new(spacing, &as_f64(&tried)).divisor()[axis];
            let mut smaller = topology.patch.clone();
            smaller[axis] = smaller[axis].saturating_sub(step).max(1);
            let next = Topology::new(spacing, &as_f64(&smaller));
            if next.patch == topology.patch {
                break;
            }
            topology = next;
            estimate = self.estimate(&topology);
        }
        let batch = (reference / estimate * reference_batch).round_ties_even();
        let patch_voxels: f64 = topology.patch.iter().map(|n| *n as f64).product();
        let covering = (dataset_voxels * rules.covered / patch_voxels).round_ties_even();
        let batch_size = (batch.min(covering) as usize).max(LEAST_BATCH);

        let schemes: Vec<Normalisation> = self
            .request
            .info
            .channel_names
            .iter()
            .map(|n| Normalisation::for_channel(n, rules.any_case))
            .collect();
        let cropped = self.request.fingerprint.median_relative_size_after_cropping < MASK_BELOW;
        let identifier = match rules.shares_data && matches!(name, "2d" | "3d_fullres") {
            true => "nnUNetPlans",
            false => rules.plans_name,
        };
        Configuration {
            data_identifier: format!("{identifier}_{name}"),
            preprocessor_name: "DefaultPreprocessor".into(),
            batch_size,
            patch_size: topology.patch.clone(),
            median_image_size_in_voxels: median_size.to_vec(),
            spacing: spacing.to_vec(),
            use_mask_for_norm: schemes
                .iter()
                .map(|s| cropped && s.may_use_mask())
                .collect(),
            normalization_schemes: schemes,
            resampling_fn_data: RESAMPLING.into(),
            resampling_fn_seg: RESAMPLING.into(),
            resampling_fn_data_kwargs: Resampling::DATA,
            resampling_fn_seg_kwargs: Resampling::SEG,
            resampling_fn_probabilities: RESAMPLING.into(),
            resampling_fn_probabilities_kwargs: Resampling::SCORES,
            architecture: self.architecture(&topology),
            batch_dice: false,
            next_stage: None,
            previous_stage: None,
        }
    }

    /// Number of values in the feature maps of the U-Net for one patch.
    fn estimate(&self, topology: &Topology) -> f64 {
        let classes = self.request.info.label_entries();
        let features = features(topology);
        feature_values(
            &topology.patch,
            &topology.strides,
            &features,
            &self.blocks(topology.strides.len()),
            self.rules.decoder_convs,
            self.rules.residual,
            classes,
        ) as f64
    }

    fn blocks(&self, stages: usize) -> Vec<usize> {
        let blocks = self.rules.blocks;
        (0..stages)
            .map(|s| blocks[s.min(blocks.len() - 1)])
            .collect()
    }

    fn architecture(&self, topology: &Topology) -> Architecture {
        let dims = topology.patch.len();
        let stages = topology.strides.len();
        let blocks = Some(self.blocks(stages));
        let rest: IndexMap<String, Value> = [
            (
                "conv_op",
                json!(format!("torch.nn.modules.conv.Conv{dims}d")),
            ),
            ("conv_bias", json!(true)),
            (
                "norm_op",
                json!(format!("torch.nn.modules.instancenorm.InstanceNorm{dims}d")),
            ),
            ("norm_op_kwargs", json!({"eps": 1e-5, "affine": true})),
            ("dropout_op", Value::Null),
            ("dropout_op_kwargs", Value::Null),
            ("nonlin", json!("torch.nn.LeakyReLU")),
            ("nonlin_kwargs", json!({"inplace": true})),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .collect();
        Architecture {
            network_class_name: format!(
                "dynamic_network_architectures.architectures.unet.{}",
                self.rules.network
            ),
            arch_kwargs: UNetArguments {
                n_stages: stages,
                features_per_stage: features(topology),
                kernel_sizes: topology.kernel_sizes.clone(),
                strides: topology.strides.clone(),
                n_conv_per_stage: blocks.clone().filter(|_| !self.rules.residual),
                n_blocks_per_stage: blocks.filter(|_| self.rules.residual),
                n_conv_per_stage_decoder: vec![self.rules.decoder_convs; stages - 1],
                rest,
            },
            kw_requires_import: ["conv_op", "norm_op", "dropout_op", "nonlin"]
                .map(str::to_owned)
                .to_vec(),
        }
    }
}

fn features(topology: &Topology) -> Vec<usize> {
    let most = match topology.patch.len() {
        2 => 512,
        _ => 320,
    };
    (0..topology.strides.len() as u32)
        .map(|stage| (BASE_FEATURES << stage.min(16)).min(most))
        .collect()
}

/// Values in all feature maps that a U-Net's convolutions write for one patch. Heads of deep supervision are not counted.
pub fn feature_values(
    patch: &[usize],
    strides: &[Vec<usize>],
    features: &[usize],
    blocks: &[usize],
    decoder_convs: usize,
    residual: bool,
    classes: usize,
) -> u64 {
    let voxels = |size: &[usize]| size.iter().map(|n| *n as u64).product::<u64>();
    let mut size = patch.to_vec();
    let mut sum = 0;
    let mut sizes = Vec::new();
    let mut previous = features.first().copied().unwrap_or(0);
    if residual {
        // the stem
        sum += previous as u64 * voxels(&size);
    }
    for ((stride, &width), &blocks) in strides.iter().zip(features).zip(blocks) {
        let before = size.clone();
        size.iter_mut().zip(stride).for_each(|(n, s)| *n /= s);
        let map = width as u64 * voxels(&size);
        sum += match residual {
            // two convolutions a block, and a third where the first block changes size or width
            true => {
                let changes = previous != width || before != size;
                map * (2 * blocks as u64 + u64::from(changes))
            }
            false => map * blocks as u64,
        };
        previous = width;
        sizes.push(voxels(&size));
    }
    // each decoder stage: its convolutions and the transposed one before them
    for (&width, &voxels) in features
        .iter()
        .zip(&sizes)
        .take(sizes.len().saturating_sub(1))
    {
        sum += width as u64 * voxels * (decoder_convs as u64 + 1);
    }
    sum + classes as u64 * sizes.first().copied().unwrap_or(0)
}

/// The axis of the largest spacing, the first of equals.
fn coarsest(spacing: [f64; 3]) -> usize {
    (1..3).fold(
        0,
        |best, a| if spacing[a] > spacing[best] { a } else { best },
    )
}

/// The coarsest axis first, the others in their order; and the way back.
fn transpose(spacing: [f64; 3]) -> ([usize; 3], [usize; 3]) {
    let first = coarsest(spacing);
    let mut forward = [first; 3];
    for (slot, axis) in forward[1..].iter_mut().zip((0..3).filter(|a| *a != first)) {
        *slot = axis;
    }
    let mut backward = [0; 3];
    for (position, &axis) in forward.iter().enumerate() {
        backward[axis] = position;
    }
    (forward, backward)
}

/// The class by which nnU-Net would read such files.
fn reader_of(ending: &str) -> &'static str {
    match ending {
        ".png" | ".bmp" | ".jpg" | ".jpeg" => "NaturalImage2DIO",
        ".tif" | ".tiff" => "Tiff3DIO",
        _ => "SimpleITKIO",
    }
}
