//! The decisions about a data set, as a file (`plans.json`) in nnU-Net v2's form: one that nnU-Net wrote can be used as it is, the flat form
//! of its version 2.1 that U-Mamba carries included, and ours can be read there.

use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use crate::io::atomically;
use crate::preprocess::{Intensity, Normalisation, Resampling};
use crate::{DataError, Result};

/// What `plans.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the data set.
    pub dataset_name: String,
    /// Name of this set of decisions.
    #[serde(default = "default_name")]
    pub plans_name: String,
    /// Median spacing of the training cases.
    #[serde(default)]
    pub original_median_spacing_after_transp: Vec<f64>,
    /// Median size of the training cases after cropping.
    #[serde(default)]
    pub original_median_shape_after_transp: Vec<f64>,
    /// nnU-Net's class for the files; kept for it.
    #[serde(default)]
    pub image_reader_writer: String,
    /// Axis of the file that each axis of a preprocessed case is: the coarsest first.
    pub transpose_forward: [usize; 3],
    /// The way back.
    pub transpose_backward: [usize; 3],
    /// Ways to train: `2d`, and for volumes `3d_fullres`, perhaps `3d_lowres` and `3d_cascade_fullres`.
    pub configurations: IndexMap<String, Configuration>,
    /// Who planned.
    #[serde(default)]
    pub experiment_planner_used: String,
    /// nnU-Net's class for labels; kept for it.
    #[serde(default = "default_label_manager")]
    pub label_manager: String,
    /// Foreground intensities of each channel, by number.
    #[serde(default, alias = "foreground_intensity_properties_by_modality")]
    pub foreground_intensity_properties_per_channel: BTreeMap<String, Intensity>,
}

fn default_name() -> String {
    "nnUNetPlans".into()
}

fn default_label_manager() -> String {
    "LabelManager".into()
}

/// One way to train on a data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// Name of the folder of its preprocessed cases.
    pub data_identifier: String,
    /// nnU-Net's class; kept for it.
    #[serde(default = "default_preprocessor")]
    pub preprocessor_name: String,
    /// Patches in a batch.
    pub batch_size: usize,
    /// Size of a patch, two axes for training slice by slice.
    pub patch_size: Vec<usize>,
    /// Median size of the cases on this grid.
    #[serde(default)]
    pub median_image_size_in_voxels: Vec<f64>,
    /// Spacing cases are resampled to; two axes leave the slices' distance as it is.
    pub spacing: Vec<f64>,
    /// How each channel is normalised.
    pub normalization_schemes: Vec<Normalisation>,
    /// Whether a channel's statistics are of the body alone.
    pub use_mask_for_norm: Vec<bool>,
    /// nnU-Net's function; only its default is known here.
    #[serde(default = "default_resampling")]
    pub resampling_fn_data: String,
    /// The same for label maps.
    #[serde(default = "default_resampling")]
    pub resampling_fn_seg: String,
    /// How images are resampled.
    #[serde(default = "data_kwargs")]
    pub resampling_fn_data_kwargs: Resampling,
    /// How label maps are resampled.
    #[serde(default = "seg_kwargs")]
    pub resampling_fn_seg_kwargs: Resampling,
    /// The same for class scores.
    #[serde(default = "default_resampling")]
    pub resampling_fn_probabilities: String,
    /// How class scores are resampled back.
    #[serde(default = "score_kwargs")]
    pub resampling_fn_probabilities_kwargs: Resampling,
    /// The U-Net that fits.
    pub architecture: Architecture,
    /// Whether Dice sums run over the batch.
    pub batch_dice: bool,
    /// The configuration that refines this one's predictions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_stage: Option<String>,
    /// The configuration whose predictions this one refines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_stage: Option<String>,
}

fn default_preprocessor() -> String {
    "DefaultPreprocessor".into()
}

fn default_resampling() -> String {
    RESAMPLING.into()
}

fn data_kwargs() -> Resampling {
    Resampling::DATA
}

fn seg_kwargs() -> Resampling {
    Resampling::SEG
}

fn score_kwargs() -> Resampling {
    Resampling::SCORES
}

/// The one resampling function that plans may name.
pub(crate) const RESAMPLING: &str = "resample_data_or_seg_to_shape";

/// The configuration that a cascade's second stage takes after.
const FULL: &str = "3d_fullres";

/// A network as nnU-Net describes it: a class and its arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Python name of the network's class.
    pub network_class_name: String,
    /// Its arguments.
    pub arch_kwargs: UNetArguments,
    /// Arguments that are Python names.
    #[serde(rename = "_kw_requires_import", default)]
    pub kw_requires_import: Vec<String>,
}

/// Arguments of nnU-Net's U-Nets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UNetArguments {
    /// Resolutions.
    pub n_stages: usize,
    /// Features per stage.
    pub features_per_stage: Vec<usize>,
    /// Kernel per stage.
    pub kernel_sizes: Vec<Vec<usize>>,
    /// Stride per stage.
    pub strides: Vec<Vec<usize>>,
    /// Convolutions per encoder stage of a plain U-Net.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_conv_per_stage: Option<Vec<usize>>,
    /// Residual blocks per encoder stage of a ResEnc U-Net.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_blocks_per_stage: Option<Vec<usize>>,
    /// Convolutions per decoder stage.
    pub n_conv_per_stage_decoder: Vec<usize>,
    /// The rest, as Python has it: operations, norms, activation.
    #[serde(flatten)]
    pub rest: IndexMap<String, Value>,
}

impl Configuration {
    /// 2 or 3. With 2, volumes are trained and predicted slice by slice along axis 0.
    pub fn spatial_dims(&self) -> usize {
        self.patch_size.len()
    }

    /// Channels that are 0 outside the body: normalised within it alone.
    pub fn masked_channels(&self) -> Vec<usize> {
        (0..)
            .zip(&self.use_mask_for_norm)
            .filter_map(|(channel, masked)| masked.then_some(channel))
            .collect()
    }

    /// The spacing a case of the given one is resampled to.
    pub fn target_spacing(&self, current: [f64; 3]) -> [f64; 3] {
        match self.spacing[..] {
            [z, y, x] => [z, y, x],
            [y, x] => [current[0], y, x],
            _ => current,
        }
    }

    /// The patch rounded up to multiples of what a network needs. One divisor serves all axes.
    pub fn training_patch_for(&self, divisor: &[usize]) -> Vec<usize> {
        let divisor_of = |axis: usize| {
            divisor
                .get(axis)
                .or(divisor.last())
                .copied()
                .unwrap_or(1)
                .max(1)
        };
        self.patch_size
            .iter()
            .enumerate()
            .map(|(axis, size)| size.next_multiple_of(divisor_of(axis)))
            .collect()
    }
}

impl Plan {
    /// Reads a `plans.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| DataError::reading(path, e))?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| DataError::json(path, "(whole file)", e.to_string()))?;
        Self::from_json(json).map_err(|(field, problem)| DataError::json(path, &field, problem))
    }

    /// From the content of a `plans.json`; errors are a field and what is wrong with it.
    pub fn from_json(mut json: Value) -> std::result::Result<Self, (String, String)> {
        let whole = |problem: String| ("(whole file)".to_owned(), problem);
        let configurations = json
            .get_mut("configurations")
            .and_then(Value::as_object_mut)
            .ok_or_else(|| {
                (
                    "configurations".to_owned(),
                    "it is missing; is this a plans file of nnU-Net v2?".to_owned(),
                )
            })?;
        let raw = std::mem::take(configurations);
        for name in raw.keys() {
            let field = format!("configurations.{name}");
            let mut complete =
                inherited(&raw, name, 0).map_err(|problem| (field.clone(), problem))?;
            modern(&mut complete).map_err(|problem| (field, problem))?;
            spread(&mut complete);
            configurations.insert(name.clone(), Value::Object(complete));
        }
        let plan: Self = serde_json::from_value(json).map_err(|e| whole(e.to_string()))?;
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> std::result::Result<(), (String, String)> {
        let mut sorted = self.transpose_forward;
        sorted.sort_unstable();
        let back = self.transpose_forward.iter().enumerate();
        if sorted != [0, 1, 2]
            || back
                .into_iter()
                .any(|(i, &a)| self.transpose_backward.get(a) != Some(&i))
        {
            let problem = format!(
                "{:?} and transpose_backward {:?} are not an order of three axes and its inverse",
                self.transpose_forward, self.transpose_backward
            );
            return Err(("transpose_forward".into(), problem));
        }
        for (name, configuration) in &self.configurations {
            configuration
                .check()
                .map_err(|(field, problem)| (format!("configurations.{name}.{field}"), problem))?;
        }
        Ok(())
    }

    /// Writes a `plans.json`, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomically(path, |out| {
            Ok(serde_json::to_writer_pretty(out, &self.to_json())?)
        })
    }

    /// The content of `plans.json`: a configuration that refines another's predictions states what it adds to `3d_fullres`, as nnU-Net has it.
    pub fn to_json(&self) -> Value {
        // numbers, strings and lists, which JSON has
        let mut json = serde_json::to_value(self).unwrap_or_default();
        for (name, configuration) in &self.configurations {
            let Some(previous) = &configuration.previous_stage else {
                continue;
            };
            let same = |full: &Configuration| {
                Configuration {
                    previous_stage: None,
                    ..configuration.clone()
                } == *full
            };
            if self.configurations.get(FULL).is_some_and(same) {
                json["configurations"][name] =
                    json!({"inherits_from": FULL, "previous_stage": previous});
            }
        }
        json
    }

    /// A configuration by name.
    pub fn configuration(&self, name: &str) -> Result<&Configuration> {
        self.configurations.get(name).ok_or_else(|| {
            let known: Vec<_> = self.configurations.keys().map(String::as_str).collect();
            DataError::Setting {
                field: "configuration".into(),
                found: name.into(),
                expected: format!("the plan has {}", known.join(", ")),
            }
        })
    }

    /// Foreground intensities of a channel.
    pub fn intensity(&self, channel: usize) -> Option<&Intensity> {
        self.foreground_intensity_properties_per_channel
            .get(&channel.to_string())
    }
}

impl Configuration {
    fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let want =
            |ok: bool, field, problem: String| if ok { Ok(()) } else { Err((field, problem)) };
        let dims = self.patch_size.len();
        want(
            (2..=3).contains(&dims) && self.patch_size.iter().all(|&s| s > 0),
            "patch_size",
            format!(
                "{:?} does not have two or three sizes above 0",
                self.patch_size
            ),
        )?;
        want(
            self.batch_size > 0,
            "batch_size",
            "0 is too small, the least is 1".into(),
        )?;
        want(
            self.spacing.len() == dims && self.spacing.iter().all(|s| s.is_finite() && *s > 0.0),
            "spacing",
            format!("{:?} does not have {dims} entries above 0", self.spacing),
        )?;
        let channels = self.normalization_schemes.len();
        want(
            channels > 0 && self.use_mask_for_norm.len() == channels,
            "use_mask_for_norm",
            format!(
                "{} entries for {channels} channels",
                self.use_mask_for_norm.len()
            ),
        )?;
        for (field, name) in [
            ("resampling_fn_data", &self.resampling_fn_data),
            ("resampling_fn_seg", &self.resampling_fn_seg),
            (
                "resampling_fn_probabilities",
                &self.resampling_fn_probabilities,
            ),
        ] {
            want(
                name == RESAMPLING,
                field,
                format!("`{name}` is not known here, only {RESAMPLING}; plan the data set anew or change the field"),
            )?;
        }
        for (field, how) in [
            ("resampling_fn_data_kwargs", &self.resampling_fn_data_kwargs),
            ("resampling_fn_seg_kwargs", &self.resampling_fn_seg_kwargs),
            (
                "resampling_fn_probabilities_kwargs",
                &self.resampling_fn_probabilities_kwargs,
            ),
        ] {
            how.check().map_err(|problem| (field, problem))?;
        }
        let unet = &self.architecture.arch_kwargs;
        let n = unet.n_stages;
        let lengths = [
            unet.features_per_stage.len(),
            unet.kernel_sizes.len(),
            unet.strides.len(),
        ];
        want(
            lengths.iter().all(|l| *l == n),
            "architecture",
            format!("lists of {lengths:?} entries for {n} stages"),
        )?;
        want(
            unet.n_conv_per_stage.is_some() != unet.n_blocks_per_stage.is_some(),
            "architecture",
            "it has to have either n_conv_per_stage or n_blocks_per_stage".into(),
        )
    }
}

/// Writes out what nnU-Net lets one value stand for: convolutions of all stages, kernels of all axes, the one next stage.
fn spread(configuration: &mut Map<String, Value>) {
    if let Some(Value::Array(next)) = configuration.get_mut("next_stage") {
        let first = next.first().cloned().unwrap_or_default();
        configuration.insert("next_stage".into(), first);
    }
    let dims = configuration
        .get("patch_size")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    let Some(kwargs) = configuration
        .get_mut("architecture")
        .and_then(|a| a.get_mut("arch_kwargs"))
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    // more stages than any network has are left to the check of the lists' lengths
    let stages = kwargs.get("n_stages").and_then(Value::as_u64).unwrap_or(0);
    let stages = usize::try_from(stages).unwrap_or(0).min(MOST_STAGES);
    let lists = [
        ("n_conv_per_stage", stages),
        ("n_blocks_per_stage", stages),
        ("n_conv_per_stage_decoder", stages.saturating_sub(1)),
        ("features_per_stage", stages),
        ("kernel_sizes", stages),
        ("strides", stages),
    ];
    for (key, length) in lists {
        let Some(value) = kwargs.get_mut(key) else {
            continue;
        };
        if value.is_number() {
            *value = vec![value.clone(); length].into();
        }
        if matches!(key, "kernel_sizes" | "strides") {
            for row in value.as_array_mut().into_iter().flatten() {
                if row.is_number() {
                    *row = vec![row.clone(); dims].into();
                }
            }
        }
    }
}

/// Halvings of an axis beyond which no image is left.
const MOST_STAGES: usize = 64;

/// Configurations inherit what they do not state; chains of more are circles.
const LONGEST_CHAIN: usize = 16;

fn inherited(
    all: &Map<String, Value>,
    name: &str,
    depth: usize,
) -> std::result::Result<Map<String, Value>, String> {
    let own = all
        .get(name)
        .and_then(Value::as_object)
        .ok_or_else(|| format!("there is no configuration `{name}` to inherit from"))?;
    let Some(parent) = own.get("inherits_from") else {
        return Ok(own.clone());
    };
    let parent = parent
        .as_str()
        .filter(|_| depth < LONGEST_CHAIN)
        .ok_or("`inherits_from` does not lead to a complete configuration")?;
    let mut complete = inherited(all, parent, depth + 1)?;
    for (key, value) in own.iter().filter(|(key, _)| *key != "inherits_from") {
        complete.insert(key.clone(), value.clone());
    }
    Ok(complete)
}

/// Brings the flat form of nnU-Net 2.1 (`UNet_class_name`, `pool_op_kernel_sizes`, ...) to the present one.
fn modern(configuration: &mut Map<String, Value>) -> std::result::Result<(), String> {
    if configuration.contains_key("architecture") {
        return Ok(());
    }
    let Some(class) = configuration.get("UNet_class_name").cloned() else {
        return Err("it names no network: neither `architecture` nor `UNet_class_name`".into());
    };
    let class = class.as_str().unwrap_or_default().to_owned();
    let mut take = |key: &str| {
        configuration
            .remove(key)
            .ok_or_else(|| format!("`{key}` is missing"))
    };
    let strides = take("pool_op_kernel_sizes")?;
    let kernels = take("conv_kernel_sizes")?;
    let encoder = take("n_conv_per_stage_encoder")?;
    let decoder = take("n_conv_per_stage_decoder")?;
    let number = |value: Value, key: &str| {
        value
            .as_u64()
            .ok_or_else(|| format!("`{key}` is {value}, expected a whole number"))
    };
    let base = number(take("UNet_base_num_features")?, "UNet_base_num_features")?;
    let most = number(take("unet_max_num_features")?, "unet_max_num_features")?;
    configuration.remove("UNet_class_name");
    configuration.remove("num_pool_per_axis");
    let stages = strides.as_array().map_or(0, Vec::len);
    let dims = strides.get(0).and_then(Value::as_array).map_or(3, Vec::len);
    let features: Vec<u64> = (0..stages as u32)
        .map(|i| base.saturating_mul(2u64.saturating_pow(i)).min(most))
        .collect();
    let residual = class.contains("Residual") || class.contains("ResEnc");
    let blocks = match residual {
        true => "n_blocks_per_stage",
        false => "n_conv_per_stage",
    };
    let mut kwargs = json!({
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": format!("torch.nn.modules.conv.Conv{dims}d"),
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage_decoder": decoder,
        "conv_bias": true,
        "norm_op": format!("torch.nn.modules.instancenorm.InstanceNorm{dims}d"),
        "norm_op_kwargs": {"eps": 1e-5, "affine": true},
        "dropout_op": null,
        "dropout_op_kwargs": null,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": true},
    });
    kwargs[blocks] = encoder;
    configuration.insert(
        "architecture".into(),
        json!({
            "network_class_name": format!("dynamic_network_architectures.architectures.unet.{class}"),
            "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }),
    );
    Ok(())
}
