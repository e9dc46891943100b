//! The network of a plans file: a Python class and its arguments become a [`NetworkSpec`].
//!
//! Reference: `PlainConvUNet` and `ResidualEncoderUNet` of MIC-DKFZ/dynamic-network-architectures 0.4.4 with their defaults, and U-Mamba's
//! `nets/UMamba{Bot,Enc}_{2d,3d}.py` at 28459e33ca03, which take stages, features, kernels and strides from the plans and state the rest themselves.

use serde_json::Value;
use vision_mamba_datasets::{Configuration, UNetArguments};
use vision_mamba_models::unet::nnunet::EncoderKind;
use vision_mamba_models::unet::umamba::{Mixer, MixerStages};
use vision_mamba_models::unet::{NnUnetConfig, PerStage, UMambaConfig};
use vision_mamba_models::NetworkSpec;

use super::trainer::Family;

/// Added to the variance of an instance norm where the plans do not say: PyTorch's.
const NORM_EPS: f64 = 1e-5;
/// Slope of a leaky ReLU where the plans do not say: PyTorch's.
const NEGATIVE_SLOPE: f64 = 0.01;

/// Channels of the images, classes of the output.
pub type Ends = (i64, i64);

/// The network that a trainer of a family builds for a configuration; errors are a field and what is wrong with it.
pub fn network(
    family: Family,
    configuration: &Configuration,
    ends: Ends,
) -> Result<NetworkSpec, (String, String)> {
    let stages = Stages::of(&configuration.architecture.arch_kwargs);
    let spec = match family {
        Family::Plans => NetworkSpec::Nnunet(planned(configuration, stages, ends)?),
        Family::UMambaBot => {
            let mixers = MixerStages::Bottleneck;
            NetworkSpec::Umamba(umamba(configuration, stages, ends, mixers))
        }
        Family::UMambaEnc => {
            let mixers = match configuration.spatial_dims() {
                2 => MixerStages::EveryOther,
                _ => MixerStages::Every,
            };
            NetworkSpec::Umamba(umamba(configuration, stages, ends, mixers))
        }
    };
    spec.validate()
        .map_err(|e| ("architecture".to_owned(), e.to_string()))?;
    Ok(spec)
}

/// The preset whose network this is, but for its sizes.
pub fn preset_of(spec: &NetworkSpec) -> String {
    let name = match spec {
        NetworkSpec::Nnunet(c) if c.encoder == EncoderKind::Plain => "unet_plain",
        NetworkSpec::Nnunet(_) => "unet_resenc_m",
        NetworkSpec::Umamba(c) if c.mixer_stages == MixerStages::Bottleneck => "umamba_bot",
        _ => "umamba_enc",
    };
    format!("{name}_{}d", spec.spatial_dims())
}

/// The lists that both networks take from the plans.
struct Stages {
    features: Vec<i64>,
    kernels: Vec<Vec<i64>>,
    strides: Vec<Vec<i64>>,
    blocks: Vec<i64>,
    blocks_decoder: Vec<i64>,
}

impl Stages {
    fn of(unet: &UNetArguments) -> Self {
        let list = |values: &[usize]| values.iter().map(|v| *v as i64).collect::<Vec<_>>();
        let rows = |rows: &[Vec<usize>]| rows.iter().map(|row| list(row)).collect();
        let blocks = unet.n_blocks_per_stage.as_ref();
        Self {
            features: list(&unet.features_per_stage),
            kernels: rows(&unet.kernel_sizes),
            strides: rows(&unet.strides),
            blocks: list(
                blocks
                    .or(unet.n_conv_per_stage.as_ref())
                    .map_or(&[], |v| &v[..]),
            ),
            blocks_decoder: list(&unet.n_conv_per_stage_decoder),
        }
    }

    /// First and largest features, which stated lists make idle.
    fn span(&self) -> (i64, i64) {
        (
            self.features.first().copied().unwrap_or(1),
            self.features.iter().copied().max().unwrap_or(1),
        )
    }
}

fn patch(configuration: &Configuration) -> Vec<i64> {
    configuration.patch_size.iter().map(|n| *n as i64).collect()
}

fn umamba(
    configuration: &Configuration,
    stages: Stages,
    (input_channels, num_classes): Ends,
    mixer_stages: MixerStages,
) -> UMambaConfig {
    let (base_features, max_features) = stages.span();
    UMambaConfig {
        input_channels,
        num_classes,
        training_patch: patch(configuration),
        spacing: Some(configuration.spacing.clone()),
        max_stages: None,
        base_features,
        max_features,
        features_per_stage: stages.features,
        kernel_sizes: stages.kernels,
        strides: stages.strides,
        n_conv_per_stage: PerStage::Each(stages.blocks),
        n_conv_per_stage_decoder: PerStage::Each(stages.blocks_decoder),
        conv_bias: true,
        norm_eps: NORM_EPS,
        norm_affine: true,
        negative_slope: NEGATIVE_SLOPE,
        deep_supervision: true,
        full_resolution_skip: configuration.spatial_dims() == 3,
        mixer: Mixer::Mamba,
        mixer_stages,
        d_state: 16,
        d_conv: 4,
        expand: 2.0,
    }
}

fn planned(
    configuration: &Configuration,
    stages: Stages,
    (input_channels, num_classes): Ends,
) -> Result<NnUnetConfig, (String, String)> {
    let architecture = &configuration.architecture;
    let encoder = match last(&architecture.network_class_name) {
        "PlainConvUNet" => EncoderKind::Plain,
        "ResidualEncoderUNet" => EncoderKind::Residual,
        _ => {
            let problem = format!(
                "the network `{}` does not exist here, only PlainConvUNet and ResidualEncoderUNet",
                architecture.network_class_name
            );
            return Err(("architecture.network_class_name".into(), problem));
        }
    };
    let style = Style::of(&architecture.arch_kwargs, configuration.spatial_dims())
        .map_err(|(key, problem)| (format!("architecture.arch_kwargs.{key}"), problem))?;
    let (base_features, max_features) = stages.span();
    Ok(NnUnetConfig {
        input_channels,
        num_classes,
        encoder,
        training_patch: patch(configuration),
        spacing: Some(configuration.spacing.clone()),
        max_stages: None,
        base_features,
        max_features,
        features_per_stage: stages.features,
        kernel_sizes: stages.kernels,
        strides: stages.strides,
        n_conv_per_stage: PerStage::Each(stages.blocks),
        n_conv_per_stage_decoder: PerStage::Each(stages.blocks_decoder),
        conv_bias: style.conv_bias,
        norm_eps: style.norm_eps,
        norm_affine: style.norm_affine,
        negative_slope: style.negative_slope,
        deep_supervision: true,
    })
}

/// The last part of a Python name.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

struct Style {
    conv_bias: bool,
    norm_eps: f64,
    norm_affine: bool,
    negative_slope: f64,
}

impl Style {
    /// Reads the arguments beside the lists; what is not known here would make another network and is an error.
    fn of(unet: &UNetArguments, dims: usize) -> Result<Self, (String, String)> {
        // PyTorch's and the library's defaults
        let mut style = Self {
            conv_bias: false,
            norm_eps: NORM_EPS,
            norm_affine: false,
            negative_slope: NEGATIVE_SLOPE,
        };
        let (conv, norm) = (format!("Conv{dims}d"), format!("InstanceNorm{dims}d"));
        for (key, value) in &unet.rest {
            let bad = |expected: &str| {
                let problem =
                    format!("it is {value}, which does not exist here; expected {expected}");
                (key.clone(), problem)
            };
            let named = |expected: &str| match value.as_str().map(last) == Some(expected) {
                true => Ok(()),
                false => Err(bad(expected)),
            };
            match key.as_str() {
                "conv_op" => named(&conv)?,
                "norm_op" => named(&norm)?,
                "nonlin" => named("LeakyReLU")?,
                "block" if value.is_null() => {}
                "block" => named("BasicBlockD")?,
                "conv_bias" => style.conv_bias = value.as_bool().ok_or_else(|| bad("a truth"))?,
                "norm_op_kwargs" => {
                    for (option, value) in entries(value) {
                        match (option, value) {
                            ("eps", v) if v.is_f64() => {
                                style.norm_eps = v.as_f64().unwrap_or(NORM_EPS);
                            }
                            ("affine", Value::Bool(v)) => style.norm_affine = *v,
                            ("momentum", _) | ("track_running_stats", Value::Bool(false)) => {}
                            _ => return Err(bad("eps and affine")),
                        }
                    }
                }
                "nonlin_kwargs" => {
                    for (option, value) in entries(value) {
                        match (option, value.as_f64()) {
                            ("negative_slope", Some(v)) => style.negative_slope = v,
                            ("inplace", _) => {}
                            _ => return Err(bad("negative_slope and inplace")),
                        }
                    }
                }
                // what the trainer decides, or what changes nothing
                "deep_supervision" | "dropout_op_kwargs" => {}
                "dropout_op" | "stem_channels" | "bottleneck_channels" if value.is_null() => {}
                "nonlin_first" if *value == Value::Bool(false) => {}
                "dropout_op" | "stem_channels" | "bottleneck_channels" => {
                    return Err(bad("null"));
                }
                _ => {
                    let problem = format!("`{value}`: this argument is not known here");
                    return Err((key.clone(), problem));
                }
            }
        }
        for key in ["conv_op", "norm_op", "nonlin"] {
            if !unet.rest.contains_key(key) {
                let problem = "it is missing, and without it the network is another";
                return Err((key.into(), problem.into()));
            }
        }
        Ok(style)
    }
}

/// The entries of an object; of null none.
fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let object = value.as_object().into_iter().flatten();
    object.map(|(k, v)| (k.as_str(), v))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;
    use vision_mamba_datasets::Plan;

    use super::*;

    fn plan(change: impl FnOnce(&mut Value)) -> Plan {
        let mut kwargs = json!({
            "n_stages": 2, "features_per_stage": [4, 8],
            "conv_op": "torch.nn.modules.conv.Conv2d", "kernel_sizes": [[3, 3], [3, 3]], "strides": [[1, 1], [2, 2]],
            "n_conv_per_stage": [2, 2], "n_conv_per_stage_decoder": [2], "conv_bias": true,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d", "norm_op_kwargs": {"eps": 1e-5, "affine": true},
            "dropout_op": null, "dropout_op_kwargs": null, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": true}
        });
        change(&mut kwargs);
        let class = "dynamic_network_architectures.architectures.unet.PlainConvUNet";
        Plan::from_json(json!({
            "dataset_name": "D", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
            "configurations": {"2d": {
                "data_identifier": "d", "batch_size": 2, "patch_size": [16, 16], "spacing": [1.0, 1.0],
                "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [false], "batch_dice": true,
                "architecture": {"network_class_name": class, "arch_kwargs": kwargs, "_kw_requires_import": []}
            }}
        }))
        .unwrap()
    }

    fn built(change: impl FnOnce(&mut Value)) -> Result<NetworkSpec, (String, String)> {
        network(Family::Plans, &plan(change).configurations["2d"], (1, 3))
    }

    #[test]
    fn arguments_left_out_have_pythons_defaults() {
        let spec = built(|kwargs| {
            let kwargs = kwargs.as_object_mut().unwrap();
            kwargs.remove("conv_bias");
            kwargs["norm_op_kwargs"] = Value::Null;
            kwargs["nonlin_kwargs"] = json!({"negative_slope": 0.2});
        });
        let Ok(NetworkSpec::Nnunet(c)) = spec else {
            panic!("{spec:?}")
        };
        assert!(!c.conv_bias && !c.norm_affine);
        assert_eq!((c.norm_eps, c.negative_slope), (1e-5, 0.2));
    }

    #[test]
    fn one_number_stands_for_all_stages() {
        let one = built(|kwargs| kwargs["n_conv_per_stage"] = json!(2)).unwrap();
        assert_eq!(one, built(|_| {}).unwrap());
    }

    #[test]
    fn other_networks_are_refused_by_name() {
        for (key, value) in [
            ("norm_op", json!("torch.nn.modules.batchnorm.BatchNorm2d")),
            ("nonlin", json!("torch.nn.ReLU")),
            ("dropout_op", json!("torch.nn.Dropout2d")),
            ("conv_op", json!("torch.nn.modules.conv.Conv3d")),
            ("nonlin_first", json!(true)),
            ("squeeze_excitation", json!(true)),
        ] {
            let (field, _) = built(|kwargs| kwargs[key] = value.clone()).unwrap_err();
            assert_eq!(field, format!("architecture.arch_kwargs.{key}"));
        }
        let mut plan = plan(|_| {});
        let configuration = &mut plan.configurations["2d"];
        configuration.architecture.network_class_name = "a.b.PrimusM".into();
        let (field, problem) = network(Family::Plans, configuration, (1, 3)).unwrap_err();
        assert!(field.ends_with("network_class_name") && problem.contains("PrimusM"));
    }

    #[test]
    fn a_trainer_of_umamba_takes_stages_from_the_plans_and_the_rest_from_its_own_code() {
        let plan = plan(|kwargs| kwargs["conv_bias"] = json!(false));
        let spec = network(Family::UMambaEnc, &plan.configurations["2d"], (1, 3)).unwrap();
        let NetworkSpec::Umamba(c) = &spec else {
            panic!("{spec:?}")
        };
        assert!(c.conv_bias && !c.full_resolution_skip);
        assert_eq!(c.mixer_stages, MixerStages::EveryOther);
        assert_eq!(c.features_per_stage, [4, 8]);
        assert_eq!(preset_of(&spec), "umamba_enc_2d");
    }
}
