//! The one table of presets, and building a network from a spec.

use tch::Device;

use crate::suggest::nearest;
use crate::unet::{MambaUnet, Mixed, NnUnet, UMamba, UvmLite, UvmNet};
use crate::vision::{Vim, Vmamba};
use crate::{Built, ModelError, Network, NetworkSpec, Scope};

/// A named configuration.
#[derive(Debug, Clone, Copy)]
pub struct PresetEntry {
    /// What `--model` takes.
    pub name: &'static str,
    /// One line for `models list`.
    pub summary: &'static str,
    toml: &'static str,
}

macro_rules! preset_entry {
    ($name:literal, $summary:literal) => {
        PresetEntry {
            name: $name,
            summary: $summary,
            toml: include_str!(concat!("../presets/", $name, ".toml")),
        }
    };
}

static PRESETS: &[PresetEntry] = &[
    preset_entry!("umamba_bot_2d", "U-Mamba Bot, 2-D, the published size"),
    preset_entry!("umamba_bot_3d", "U-Mamba Bot, 3-D, the published size"),
    preset_entry!(
        "umamba_bot_small_2d",
        "U-Mamba Bot, 2-D, 16 to 128 features, for a laptop"
    ),
    preset_entry!(
        "umamba_bot_small_3d",
        "U-Mamba Bot, 3-D, 16 to 128 features, for a laptop"
    ),
    preset_entry!(
        "umamba_bot_tiny_2d",
        "U-Mamba Bot, 2-D, 4 to 8 features, for tests"
    ),
    preset_entry!(
        "umamba_bot_tiny_3d",
        "U-Mamba Bot, 3-D, 4 to 8 features, for tests"
    ),
    preset_entry!(
        "umamba_bot_nomamba_2d",
        "U-Mamba Bot without its Mamba layer, 2-D, for comparison"
    ),
    preset_entry!(
        "umamba_bot_nomamba_3d",
        "U-Mamba Bot without its Mamba layer, 3-D, for comparison"
    ),
    preset_entry!("umamba_enc_2d", "U-Mamba Enc, 2-D, the published size"),
    preset_entry!("umamba_enc_3d", "U-Mamba Enc, 3-D, the published size"),
    preset_entry!(
        "umamba_enc_small_2d",
        "U-Mamba Enc, 2-D, 16 to 128 features, for a laptop"
    ),
    preset_entry!(
        "umamba_enc_small_3d",
        "U-Mamba Enc, 3-D, 16 to 128 features, for a laptop"
    ),
    preset_entry!(
        "umamba_enc_tiny_2d",
        "U-Mamba Enc, 2-D, 4 to 16 features, for tests"
    ),
    preset_entry!(
        "umamba_enc_tiny_3d",
        "U-Mamba Enc, 3-D, 4 to 8 features, for tests"
    ),
    preset_entry!(
        "umamba_enc_nomamba_2d",
        "U-Mamba Enc without its Mamba layers, 2-D, for comparison"
    ),
    preset_entry!(
        "umamba_enc_nomamba_3d",
        "U-Mamba Enc without its Mamba layers, 3-D, for comparison"
    ),
    preset_entry!(
        "umamba_bot_s4_2d",
        "U-Mamba Bot with S4 in the place of Mamba, 2-D, for comparison"
    ),
    preset_entry!(
        "umamba_bot_s4_3d",
        "U-Mamba Bot with S4 in the place of Mamba, 3-D, for comparison"
    ),
    preset_entry!(
        "umamba_bot_s4d_2d",
        "U-Mamba Bot with S4D in the place of Mamba, 2-D, for comparison"
    ),
    preset_entry!(
        "umamba_bot_s4d_3d",
        "U-Mamba Bot with S4D in the place of Mamba, 3-D, for comparison"
    ),
    preset_entry!(
        "umamba_enc_s4_2d",
        "U-Mamba Enc with S4 in the place of Mamba, 2-D, for comparison"
    ),
    preset_entry!(
        "umamba_enc_s4_3d",
        "U-Mamba Enc with S4 in the place of Mamba, 3-D, for comparison"
    ),
    preset_entry!(
        "umamba_enc_s4d_2d",
        "U-Mamba Enc with S4D in the place of Mamba, 2-D, for comparison"
    ),
    preset_entry!(
        "umamba_enc_s4d_3d",
        "U-Mamba Enc with S4D in the place of Mamba, 3-D, for comparison"
    ),
    preset_entry!("mamba_unet", "Mamba-UNet, the published size"),
    preset_entry!(
        "mamba_unet_small",
        "Mamba-UNet, 32 to 256 features, one block a level, for a laptop"
    ),
    preset_entry!("mamba_unet_tiny", "Mamba-UNet, 8 to 64 features, for tests"),
    preset_entry!("uvmnet", "UVM-Net for dehazing, corrected, any image size"),
    preset_entry!(
        "uvmnet_upstream",
        "UVM-Net exactly as its code was published, 1.0e9 parameters"
    ),
    preset_entry!("uvmnet_tiny", "UVM-Net, 4 to 64 features, for tests"),
    preset_entry!(
        "uvmlite",
        "UVM-lite, small and quick, for photographs of any size"
    ),
    preset_entry!("uvmlite_tiny", "UVM-lite, 4 features, for tests"),
    preset_entry!("unet_plain_2d", "nnU-Net's plain U-Net, 2-D"),
    preset_entry!("unet_plain_3d", "nnU-Net's plain U-Net, 3-D"),
    preset_entry!(
        "unet_resenc_m_2d",
        "nnU-Net's residual-encoder U-Net M (8 GB), 2-D"
    ),
    preset_entry!(
        "unet_resenc_m_3d",
        "nnU-Net's residual-encoder U-Net M (8 GB), 3-D"
    ),
    preset_entry!(
        "unet_resenc_l_2d",
        "nnU-Net's residual-encoder U-Net L (24 GB), 2-D"
    ),
    preset_entry!(
        "unet_resenc_l_3d",
        "nnU-Net's residual-encoder U-Net L (24 GB), 3-D"
    ),
    preset_entry!(
        "unet_plain_tiny_2d",
        "nnU-Net's plain U-Net, 2-D, 4 to 8 features, for tests"
    ),
    preset_entry!(
        "unet_plain_tiny_3d",
        "nnU-Net's plain U-Net, 3-D, 4 to 8 features, for tests"
    ),
    preset_entry!(
        "unet_resenc_tiny_2d",
        "nnU-Net's residual-encoder U-Net, 2-D, 4 to 8 features, for tests"
    ),
    preset_entry!(
        "unet_resenc_tiny_3d",
        "nnU-Net's residual-encoder U-Net, 3-D, 4 to 8 features, for tests"
    ),
    preset_entry!("vmambav0_tiny", "VMamba-T, first version, no MLP"),
    preset_entry!("vmambav0_small", "VMamba-S, first version, no MLP"),
    preset_entry!("vmambav0_base", "VMamba-B, first version, no MLP"),
    preset_entry!(
        "vmambav2_tiny",
        "VMamba-T, two inner channels a channel, 5 blocks at stage 3"
    ),
    preset_entry!(
        "vmambav2_small",
        "VMamba-S, two inner channels a channel, 15 blocks at stage 3"
    ),
    preset_entry!(
        "vmambav2_base",
        "VMamba-B, two inner channels a channel, 15 blocks at stage 3"
    ),
    preset_entry!(
        "vmambav2v_tiny",
        "VMamba-T, the newest: one inner channel a channel, 8 blocks at stage 3"
    ),
    preset_entry!(
        "vmambav2v_small",
        "VMamba-S, the newest: one inner channel a channel, 20 blocks at stage 3"
    ),
    preset_entry!(
        "vmambav2v_base",
        "VMamba-B, the newest: one inner channel a channel, 20 blocks at stage 3"
    ),
    preset_entry!(
        "vmamba_unet",
        "VMamba-T (newest series) under a U-Net decoder"
    ),
    preset_entry!(
        "vmamba_unet_small",
        "The same, 24 to 192 features, for a laptop"
    ),
    preset_entry!("vmamba_unet_tiny", "The same, 8 to 64 features, for tests"),
    preset_entry!(
        "vmamba_mamba_unet",
        "VMamba-T (newest series) under Mamba-UNet's decoder"
    ),
    preset_entry!(
        "vmamba_mamba_unet_tiny",
        "The same, 8 to 64 features, for tests"
    ),
    preset_entry!("vim_unet", "Vim-Ti under a U-Net decoder"),
    preset_entry!("vim_unet_tiny", "The same, 12 features, for tests"),
    preset_entry!("vim_tiny", "Vim-Ti, patches of 16 side by side"),
    preset_entry!("vim_small", "Vim-S, patches of 16 side by side"),
    preset_entry!("vim_base", "Vim-B, patches of 16 side by side"),
    preset_entry!("vim_tiny_stride8", "Vim-Ti, patches of 16 every 8 pixels"),
    preset_entry!("vim_small_stride8", "Vim-S, patches of 16 every 8 pixels"),
    preset_entry!("vim_nano", "Vim, 12 features, for tests"),
    preset_entry!("vmamba_micro", "VMamba, 24 to 192 features, for a laptop"),
    preset_entry!("vmamba_nano", "VMamba, 8 to 64 features, for tests"),
];

impl PresetEntry {
    /// The configuration behind the name.
    pub fn spec(&self) -> Result<NetworkSpec, ModelError> {
        let find = |name: &str| entry(name).map(|base| base.toml);
        NetworkSpec::from_toml(&format!("preset `{}`", self.name), self.toml, &find)
    }
}

/// All presets.
pub fn presets() -> &'static [PresetEntry] {
    PRESETS
}

/// The configuration of that name; an unknown one is an error that suggests the nearest.
pub fn preset(name: &str) -> Result<NetworkSpec, ModelError> {
    entry(name)?.spec()
}

fn entry(name: &str) -> Result<&'static PresetEntry, ModelError> {
    let found = PRESETS.iter().find(|p| p.name == name);
    found.ok_or_else(|| ModelError::UnknownPreset {
        name: name.to_string(),
        nearest: nearest(name, PRESETS.iter().map(|p| p.name)),
    })
}

/// Builds and initialises a network. Initial values come from libtorch's global generator, which the caller seeds.
pub fn build(spec: &NetworkSpec, device: Device) -> Result<Built, ModelError> {
    assemble(spec, device, false)
}

/// The network with names and shapes but without values, to be described and not to be run: it takes no memory,
/// however many parameters it has.
pub fn outline(spec: &NetworkSpec) -> Result<Built, ModelError> {
    assemble(spec, Device::Cpu, true)
}

fn assemble(spec: &NetworkSpec, device: Device, outline: bool) -> Result<Built, ModelError> {
    let (net, params) = Scope::build_as(device, outline, |root| {
        Ok::<Box<dyn Network>, _>(match spec {
            NetworkSpec::Umamba(config) => Box::new(UMamba::new(root, config)?),
            NetworkSpec::MambaUnet(config) => Box::new(MambaUnet::new(root, config)?),
            NetworkSpec::Uvmnet(config) => Box::new(UvmNet::new(root, config)?),
            NetworkSpec::Uvmlite(config) => Box::new(UvmLite::new(root, config)?),
            NetworkSpec::Nnunet(config) => Box::new(NnUnet::new(root, config)?),
            NetworkSpec::Vmamba(config) => Box::new(Vmamba::new(root, config)?),
            NetworkSpec::Vim(config) => Box::new(Vim::new(root, config)?),
            NetworkSpec::Mixed(config) => Box::new(Mixed::new(root, config)?),
        })
    })?;
    Ok(Built {
        net,
        params,
        spec: spec.clone(),
    })
}
