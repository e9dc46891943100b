//! Listings of state dicts: names, order, shapes, element types, shared storage and the number of parameters.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use vision_mamba_models::describe::state_entries;
use vision_mamba_models::unet::nnunet::EncoderKind;
use vision_mamba_models::vision::{VimBackbone, VmambaBackbone};
use vision_mamba_models::{outline, preset, NetworkSpec, ParamStore, Scope};

use crate::case::Fallible;
use crate::compare::Report;
use crate::config::Config;
use crate::modules;
use crate::nnunet::nnunet;
use crate::umamba::umamba;

#[derive(Deserialize)]
struct Listing {
    model: String,
    config: Map<String, Value>,
    num_parameters: i64,
    tensors: Vec<Value>,
}

/// The presets that are these networks exactly.
const PRESETS: &[(&str, &str)] = &[
    ("umamba_bot_2d", "umamba_bot_2d"),
    ("umamba_bot_3d", "umamba_bot_3d"),
    ("umamba_enc_2d", "umamba_enc_2d"),
    ("umamba_enc_3d", "umamba_enc_3d"),
    ("unet_plain_2d", "unet_plain_2d"),
    ("unet_plain_3d", "unet_plain_3d"),
    ("unet_resenc_m_3d", "unet_resenc_m_3d"),
    ("mambaunet_in3_d2222", "mamba_unet"),
    ("uvmnet", "uvmnet_upstream"),
    ("vim_tiny_patch16_224", "vim_tiny"),
    ("vim_small_patch16_224", "vim_small"),
    ("vim_base_patch16_224", "vim_base"),
    ("vim_tiny_patch16_stride8_224", "vim_tiny_stride8"),
    ("vim_small_patch16_stride8_224", "vim_small_stride8"),
    ("vmambav0_tiny", "vmambav0_tiny"),
    ("vmambav0_small", "vmambav0_small"),
    ("vmambav0_base", "vmambav0_base"),
    ("vmambav2_tiny", "vmambav2_tiny"),
    ("vmambav2_small", "vmambav2_small"),
    ("vmambav2_base", "vmambav2_base"),
    ("vmambav2v_tiny", "vmambav2v_tiny"),
    ("vmambav2v_small", "vmambav2v_small"),
    ("vmambav2v_base", "vmambav2v_base"),
];

/// Builds the network from the listing's configuration, and the preset of the same network, and compares both.
pub fn run(json: &Path) -> Fallible<Report> {
    let text = std::fs::read_to_string(json)?;
    let listing: Listing = serde_json::from_str(&text).map_err(|e| {
        format!("neither a case with a safetensors file nor a listing of a state dict: {e}")
    })?;
    let mut report = Report::default();
    if listing.config.contains_key("out_indices") {
        compare(&listing, &backbone(&listing)?, "config", &mut report);
        return Ok(report);
    }
    compare(
        &listing,
        &outline(&spec(&listing)?)?.params,
        "config",
        &mut report,
    );
    if let Some((_, name)) = PRESETS.iter().find(|(model, _)| *model == listing.model) {
        compare(
            &listing,
            &outline(&preset(name)?)?.params,
            "preset",
            &mut report,
        );
    }
    Ok(report)
}

/// A network without its head.
fn backbone(listing: &Listing) -> Fallible<ParamStore> {
    let config = Config::new(&listing.config);
    if listing.model.starts_with("vim") {
        let (sizes, features) = crate::vim::backbone(&config)?;
        config.finish()?;
        return Ok(Scope::outline(|scope| VimBackbone::new(scope, &sizes, &features))?.1);
    }
    let indices: Vec<usize> = config.required("out_indices")?;
    let sizes = crate::vmamba::vmamba(&config)?;
    config.finish()?;
    Ok(Scope::outline(|scope| VmambaBackbone::new(scope, &sizes, &indices))?.1)
}

fn spec(listing: &Listing) -> Fallible<NetworkSpec> {
    let config = Config::new(&listing.config);
    let spec = match listing.model.as_str() {
        "umamba_bot_2d" => NetworkSpec::Umamba(umamba(&config, "Bot", 2)?),
        "umamba_bot_3d" => NetworkSpec::Umamba(umamba(&config, "Bot", 3)?),
        "umamba_enc_2d" => NetworkSpec::Umamba(umamba(&config, "Enc", 2)?),
        "umamba_enc_3d" => NetworkSpec::Umamba(umamba(&config, "Enc", 3)?),
        "unet_plain_2d" => NetworkSpec::Nnunet(nnunet(&config, EncoderKind::Plain, 2)?),
        "unet_plain_3d" => NetworkSpec::Nnunet(nnunet(&config, EncoderKind::Plain, 3)?),
        "unet_resenc_2d" => NetworkSpec::Nnunet(nnunet(&config, EncoderKind::Residual, 2)?),
        "unet_resenc_m_3d" => NetworkSpec::Nnunet(nnunet(&config, EncoderKind::Residual, 3)?),
        name if name.starts_with("mambaunet_") => {
            NetworkSpec::MambaUnet(modules::mamba_unet(&config)?)
        }
        name if name.starts_with("vim") => NetworkSpec::Vim(crate::vim::vim(&config)?),
        name if name.starts_with("vmamba") => NetworkSpec::Vmamba(crate::vmamba::vmamba(&config)?),
        "uvmnet" => NetworkSpec::Uvmnet(crate::uvmnet::uvmnet(&config)?),
        other => return Err(format!("unknown model `{other}`").into()),
    };
    config.finish()?;
    Ok(spec)
}

fn compare(listing: &Listing, params: &ParamStore, from: &str, report: &mut Report) {
    let (parameters, state_dict) = (params.num_parameters(), state_entries(params));
    if parameters != listing.num_parameters {
        report.fault(format!(
            "{from}: {parameters} parameters, expected {}",
            listing.num_parameters
        ));
    }
    if state_dict.len() != listing.tensors.len() {
        report.fault(format!(
            "{from}: {} entries, expected {}",
            state_dict.len(),
            listing.tensors.len()
        ));
    }
    for (place, (ours, theirs)) in state_dict.iter().zip(&listing.tensors).enumerate() {
        let mut line = vec![
            Value::from(ours.name.as_str()),
            Value::from(ours.shape.clone()),
            Value::from(ours.dtype),
        ];
        line.extend(ours.alias_of.as_deref().map(Value::from));
        if Value::from(line.clone()) == *theirs {
            report.agrees(&ours.name);
        } else {
            report.fault(format!(
                "{from}: entry {place} is {}, expected {theirs}",
                Value::from(line)
            ));
        }
    }
}
