//! Which network, with which sizes: plain data that a preset, a run's `config.json` and the command line share.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::suggest::nearest;
use crate::unet::{
    MambaUnetConfig, MixedConfig, NnUnetConfig, UMambaConfig, UvmLiteConfig, UvmNetConfig,
};
use crate::vision::{VimConfig, VmambaConfig};
use crate::{ModelError, Task};

/// A network before it is built. The key `arch` names the variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "arch", rename_all = "snake_case", deny_unknown_fields)]
pub enum NetworkSpec {
    /// U-Mamba, 2-D and 3-D.
    Umamba(UMambaConfig),
    /// Mamba-UNet, 2-D.
    MambaUnet(MambaUnetConfig),
    /// UVM-Net, 2-D.
    Uvmnet(UvmNetConfig),
    /// UVM-lite, 2-D.
    Uvmlite(UvmLiteConfig),
    /// nnU-Net's plain and residual-encoder U-Nets, 2-D and 3-D.
    Nnunet(NnUnetConfig),
    /// VMamba, a classifier, 2-D.
    Vmamba(VmambaConfig),
    /// Vim, a classifier, 2-D.
    Vim(VimConfig),
    /// Any backbone under any decoder, 2-D.
    Mixed(MixedConfig),
}

impl NetworkSpec {
    /// Reads a preset. `base = "NAME"` takes every key of another preset, whose text `find` knows, before those stated
    /// beside it; a key that states what the base has anyway is an error, as is `arch`.
    pub(crate) fn from_toml<'t>(
        what: &str,
        text: &str,
        find: &dyn Fn(&str) -> Result<&'t str, ModelError>,
    ) -> Result<Self, ModelError> {
        let table = preset_table(what, text, find, MOST_BASES)?;
        table
            .try_into()
            .map_err(|e: toml::de::Error| unreadable(what, e.message()))
    }

    /// What the network is for.
    pub fn task(&self) -> Task {
        match self {
            NetworkSpec::Umamba(_)
            | NetworkSpec::MambaUnet(_)
            | NetworkSpec::Nnunet(_)
            | NetworkSpec::Mixed(_) => Task::Segmentation,
            NetworkSpec::Uvmnet(_) | NetworkSpec::Uvmlite(_) => Task::Restoration,
            NetworkSpec::Vmamba(_) | NetworkSpec::Vim(_) => Task::Classification,
        }
    }

    /// Number of spatial axes.
    pub fn spatial_dims(&self) -> usize {
        match self {
            NetworkSpec::Umamba(c) => c.spatial_dims(),
            NetworkSpec::Nnunet(c) => c.spatial_dims(),
            NetworkSpec::MambaUnet(_)
            | NetworkSpec::Uvmnet(_)
            | NetworkSpec::Uvmlite(_)
            | NetworkSpec::Vmamba(_)
            | NetworkSpec::Vim(_)
            | NetworkSpec::Mixed(_) => 2,
        }
    }

    /// Channels of the images it takes.
    pub fn in_channels(&self) -> i64 {
        match self {
            NetworkSpec::Umamba(c) => c.input_channels,
            NetworkSpec::MambaUnet(c) => c.input_channels,
            NetworkSpec::Uvmnet(c) => c.input_channels,
            NetworkSpec::Uvmlite(c) => c.input_channels,
            NetworkSpec::Nnunet(c) => c.input_channels,
            NetworkSpec::Vmamba(c) => c.input_channels,
            NetworkSpec::Vim(c) => c.input_channels,
            NetworkSpec::Mixed(c) => c.input_channels,
        }
    }

    /// Classes it tells apart, background included; for restoration the channels of the image it gives.
    pub fn num_classes(&self) -> i64 {
        match self {
            NetworkSpec::Umamba(c) => c.num_classes,
            NetworkSpec::MambaUnet(c) => c.num_classes,
            NetworkSpec::Uvmnet(c) => c.output_channels,
            NetworkSpec::Uvmlite(c) => c.output_channels,
            NetworkSpec::Nnunet(c) => c.num_classes,
            NetworkSpec::Vmamba(c) => c.num_classes,
            NetworkSpec::Vim(c) => c.num_classes,
            NetworkSpec::Mixed(c) => c.num_classes,
        }
    }

    /// The spatial size it is made for, where there is one.
    pub fn training_patch(&self) -> Option<&[i64]> {
        match self {
            NetworkSpec::Umamba(c) => Some(&c.training_patch),
            NetworkSpec::Nnunet(c) => Some(&c.training_patch),
            NetworkSpec::MambaUnet(_)
            | NetworkSpec::Uvmnet(_)
            | NetworkSpec::Uvmlite(_)
            | NetworkSpec::Vmamba(_)
            | NetworkSpec::Vim(_)
            | NetworkSpec::Mixed(_) => None,
        }
    }

    /// The spec with some keys replaced. Values are JSON (`[8, 16]`, `0.1`, `true`); what is not JSON is taken as text.
    pub fn with_overrides<K: AsRef<str>, V: AsRef<str>>(
        &self,
        overrides: &[(K, V)],
    ) -> Result<Self, ModelError> {
        let parse = |e: serde_json::Error| ModelError::Parse {
            what: "network spec".into(),
            reason: e.to_string(),
        };
        let mut spec = self.clone();
        for (key, value) in overrides {
            let (key, text) = (key.as_ref(), value.as_ref());
            let mut tree = serde_json::to_value(&spec).map_err(parse)?;
            let fields = tree
                .as_object_mut()
                .filter(|f| f.contains_key(key) && key != "arch");
            let Some(fields) = fields else {
                return Err(spec.unknown_key(key));
            };
            let value = match (key, serde_json::from_str(text)) {
                // another backbone by the name of its preset
                ("backbone", Err(_)) => {
                    serde_json::to_value(crate::preset(text)?).map_err(parse)?
                }
                (_, Ok(value)) => value,
                (_, Err(_)) => Value::String(text.to_string()),
            };
            fields.insert(key.to_string(), value);
            spec = serde_json::from_value(tree).map_err(|e| ModelError::BadValue {
                key: key.to_string(),
                value: text.to_string(),
                reason: e.to_string(),
            })?;
        }
        spec.validate()?;
        Ok(spec)
    }

    fn unknown_key(&self, key: &str) -> ModelError {
        let tree = serde_json::to_value(self).unwrap_or_default();
        let keys: Vec<String> = tree
            .as_object()
            .into_iter()
            .flat_map(|f| f.keys())
            .filter(|k| *k != "arch")
            .cloned()
            .collect();
        ModelError::UnknownKey {
            key: key.to_string(),
            nearest: nearest(key, keys.iter().map(String::as_str)),
            known: keys.join(", "),
        }
    }

    /// Fits the fields that depend on the data, the same spacing along all axes assumed.
    pub fn for_data(
        &self,
        in_channels: i64,
        num_classes: i64,
        spatial_dims: usize,
        training_patch: &[i64],
    ) -> Result<Self, ModelError> {
        if training_patch.len() != spatial_dims {
            let message = format!(
                "{training_patch:?} for {spatial_dims} spatial axes, expected one size an axis"
            );
            return Err(ModelError::config("training_patch", message));
        }
        self.for_spaced_data(in_channels, num_classes, training_patch, None)
    }

    /// [`for_data`](Self::for_data) with the voxel spacing along the axes of the training patch, which decides on
    /// anisotropic kernels and strides.
    pub fn for_spaced_data(
        &self,
        in_channels: i64,
        num_classes: i64,
        training_patch: &[i64],
        spacing: Option<&[f64]>,
    ) -> Result<Self, ModelError> {
        let spec = match self {
            NetworkSpec::Umamba(c) => NetworkSpec::Umamba(c.for_data(
                in_channels,
                num_classes,
                training_patch,
                spacing,
            )?),
            NetworkSpec::MambaUnet(c) => {
                NetworkSpec::MambaUnet(c.for_data(in_channels, num_classes, training_patch)?)
            }
            NetworkSpec::Uvmnet(c) => {
                NetworkSpec::Uvmnet(c.for_data(in_channels, num_classes, training_patch)?)
            }
            NetworkSpec::Uvmlite(c) => {
                NetworkSpec::Uvmlite(c.for_data(in_channels, num_classes, training_patch)?)
            }
            NetworkSpec::Nnunet(c) => NetworkSpec::Nnunet(c.for_data(
                in_channels,
                num_classes,
                training_patch,
                spacing,
            )?),
            NetworkSpec::Vmamba(c) => NetworkSpec::Vmamba(VmambaConfig {
                input_channels: in_channels,
                num_classes,
                ..c.clone()
            }),
            NetworkSpec::Vim(c) => NetworkSpec::Vim(VimConfig {
                input_channels: in_channels,
                num_classes,
                ..c.clone()
            }),
            NetworkSpec::Mixed(c) => {
                NetworkSpec::Mixed(c.for_data(in_channels, num_classes, training_patch)?)
            }
        };
        spec.validate()?;
        Ok(spec)
    }

    /// Checks that the values go together.
    pub fn validate(&self) -> Result<(), ModelError> {
        match self {
            NetworkSpec::Umamba(c) => c.resolve().map(drop),
            NetworkSpec::MambaUnet(c) => c.validate(),
            NetworkSpec::Uvmnet(c) => c.validate(),
            NetworkSpec::Uvmlite(c) => c.validate(),
            NetworkSpec::Nnunet(c) => c.resolve().map(drop),
            NetworkSpec::Vmamba(c) => c.validate(),
            NetworkSpec::Vim(c) => c.validate(),
            NetworkSpec::Mixed(c) => c.validate(),
        }
    }
}

/// How many presets may stand on each other.
const MOST_BASES: usize = 4;

fn unreadable(what: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Parse {
        what: what.to_string(),
        reason: reason.into(),
    }
}

fn preset_table<'t>(
    what: &str,
    text: &str,
    find: &dyn Fn(&str) -> Result<&'t str, ModelError>,
    bases_left: usize,
) -> Result<toml::Table, ModelError> {
    let mut own: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| unreadable(what, e.message()))?;
    // a backbone by the name of its preset
    if let Some(toml::Value::String(name)) = own.get("backbone") {
        let bases_left = bases_left.saturating_sub(1);
        let table = preset_table(&format!("preset `{name}`"), find(name)?, find, bases_left)?;
        own.insert("backbone".to_string(), toml::Value::Table(table));
    }
    let name = match own.remove("base") {
        None => return Ok(own),
        Some(toml::Value::String(name)) => name,
        Some(other) => {
            return Err(unreadable(
                what,
                format!("base = {other}, expected the name of a preset"),
            ))
        }
    };
    if bases_left == 0 {
        let reason =
            format!("more than {MOST_BASES} presets stand on each other, `{name}` among them");
        return Err(unreadable(what, reason));
    }
    if own.contains_key("arch") {
        return Err(unreadable(
            what,
            format!("`arch` beside `base`: it is that of `{name}`"),
        ));
    }
    let mut table = preset_table(
        &format!("preset `{name}`"),
        find(&name)?,
        find,
        bases_left - 1,
    )?;
    for (key, value) in own {
        if table.get(&key) == Some(&value) {
            return Err(unreadable(
                what,
                format!("`{key}` repeats what `{name}` says"),
            ));
        }
        table.insert(key, value);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = include_str!("../presets/umamba_bot_tiny_2d.toml");

    fn read(text: &str) -> Result<NetworkSpec, ModelError> {
        let find = |name: &str| match name {
            "whole" => Ok(WHOLE),
            "loop" => Ok("base = \"loop\""),
            _ => Err(ModelError::UnknownPreset {
                name: name.into(),
                nearest: "whole".into(),
            }),
        };
        NetworkSpec::from_toml("preset `test`", text, &find)
    }

    #[test]
    fn a_variant_is_its_base_but_for_what_it_states() {
        let whole = read(WHOLE).unwrap();
        assert_eq!(read("base = \"whole\"").unwrap(), whole);
        assert_eq!(
            read("base = \"whole\"\nd_state = 5").unwrap(),
            whole.with_overrides(&[("d_state", "5")]).unwrap()
        );
    }

    #[test]
    fn a_variant_that_contradicts_itself_is_refused() {
        for (text, words) in [
            (
                "base = \"whole\"\narch = \"umamba\"",
                "`arch` beside `base`",
            ),
            ("base = \"whole\"\nd_state = 16", "`d_state` repeats"),
            ("base = \"whole\"\nd_stat = 5", "d_stat"),
            ("base = \"whole\"\nd_state = \"many\"", "string"),
            ("base = \"hole\"", "whole"),
            ("base = 3", "name of a preset"),
            ("base = \"loop\"", "stand on each other"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(
                message.contains(words),
                "`{message}` does not say `{words}`"
            );
        }
    }
}
