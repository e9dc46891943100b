//! A checkpoint's tensors become a network's: the dictionary they lie in is found by their names, prefixes fall away, old names are
//! renewed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tch::{no_grad, Tensor};

use super::checkpoint::Checkpoint;
use crate::vision::vim::position::interpolate_checkpoint;
use crate::{Built, EntryKind, ModelError, NetworkSpec};

/// What came of matching a checkpoint with a network. Names are the network's, but for `unexpected`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Import {
    /// What stands before every name in the file.
    pub prefix: String,
    /// Tensors that took the file's values.
    pub loaded: Vec<String>,
    /// Tensors that the file lacks.
    pub missing: Vec<String>,
    /// Tensors of the same dictionary that the network lacks, under their names in the file.
    pub unexpected: Vec<String>,
    /// Tensors of another shape, both shapes stated.
    pub misshaped: Vec<String>,
    /// What was done to values so that they fit.
    pub adapted: Vec<String>,
}

impl Import {
    /// Whether every tensor of each side has its partner on the other.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshaped.is_empty()
    }
}

/// Wrappers whose names stand in the middle of a path.
const WRAPPERS: [&str; 1] = ["_orig_mod."];

/// Copies a checkpoint's values into the network. Unless `partial`, all names must be there and none besides, of the right shapes; otherwise
/// nothing is changed and the error lists what does not fit. Other float types are converted. If `partial`, a first layer that sees more channels
/// than the file's takes the file's for the first ones and nothing for the others, so that the network does what the file's did.
pub fn import(checkpoint: &Checkpoint, built: &Built, partial: bool) -> Result<Import, ModelError> {
    let mut plan = Plan::new(checkpoint, built);
    if partial {
        twice(&built.spec, &mut plan.names);
    }
    let mut outcome = Import {
        prefix: plan.prefix.clone(),
        ..Import::default()
    };
    let first = partial.then(|| first_layer(built)).flatten();
    let mut values = vec![];
    let mut used: BTreeSet<&str> = BTreeSet::new();
    let mut aliases: HashMap<&str, Vec<&str>> = HashMap::new();
    for (name, _, kind) in built.params.entries() {
        if let EntryKind::Alias(of) = kind {
            aliases.entry(of.as_str()).or_default().push(name);
        }
    }
    for (name, tensor, kind) in built.params.entries() {
        let source = plan.names.get(name);
        used.extend(source.map(String::as_str));
        if matches!(kind, EntryKind::Alias(_)) {
            continue;
        }
        // a shared tensor may stand in the file under its second name only
        let source = source.or_else(|| {
            let second = aliases.get(name)?;
            second.iter().find_map(|second| plan.names.get(*second))
        });
        let Some(source) = source else {
            outcome.missing.push(name.to_string());
            continue;
        };
        used.insert(source);
        let found = &checkpoint.tensors()[source].shape;
        let wanted = tensor.size();
        if *found == wanted {
            values.push((tensor, source, None));
        } else if let Some(how) = adaptation(&built.spec, name, found, &wanted)
            .or_else(|| widening(first == Some(name), found, &wanted))
        {
            outcome
                .adapted
                .push(format!("{name}: {}", how.told(&wanted)));
            values.push((tensor, source, Some(how)));
        } else {
            let text = format!("{name}: {found:?} in the file, {wanted:?} in the network");
            outcome.misshaped.push(text);
            continue;
        }
        outcome.loaded.push(name.to_string());
    }
    outcome.unexpected = (checkpoint.tensors().keys())
        .filter(|name| name.starts_with(&plan.prefix) && !used.contains(name.as_str()))
        .cloned()
        .collect();
    if !partial && !outcome.is_complete() {
        return Err(ModelError::Mismatch {
            path: checkpoint.path().to_path_buf(),
            missing: outcome.missing,
            unexpected: outcome.unexpected,
            misshaped: outcome.misshaped,
        });
    }
    // everything is read before anything is changed
    let mut read = vec![];
    for (tensor, source, how) in values {
        let mut value = checkpoint.read(source)?;
        if let Some(how) = how {
            value = how.apply(&value.f_to_kind(tensor.kind())?, &tensor.size())?;
        }
        read.push((tensor, value));
    }
    no_grad(|| {
        for (tensor, value) in read {
            tensor.shallow_clone().f_copy_(&value)?;
        }
        Ok::<_, ModelError>(())
    })?;
    Ok(outcome)
}

/// Where in the file each of the network's names lies.
struct Plan {
    prefix: String,
    names: BTreeMap<String, String>,
}

impl Plan {
    /// Takes the prefix below which most of the network's names lie; of several the shortest, and weights before their moving average.
    fn new(checkpoint: &Checkpoint, built: &Built) -> Self {
        let wanted: BTreeSet<&str> = built.params.entries().map(|(name, _, _)| name).collect();
        // the file's names as the network may know them
        let plain: Vec<(&str, String)> = (checkpoint.tensors().keys())
            .map(|name| {
                let mut text = name.clone();
                for wrapper in WRAPPERS {
                    text = text.replace(wrapper, "");
                }
                (name.as_str(), text)
            })
            .collect();
        // a network whose names all begin alike may stand in the file without that beginning
        let first = wanted.iter().next().and_then(|n| n.split_once('.'));
        let common = first
            .map(|(head, _)| format!("{head}."))
            .filter(|head| wanted.iter().all(|name| name.starts_with(head.as_str())))
            .unwrap_or_default();
        // how good a prefix is, the prefix, and the names below it
        let mut best = ((0, false, 0), String::new(), BTreeMap::new());
        // so does the backbone of a network that has one
        for beginning in [String::new(), common, "backbone.".to_string()] {
            let mut below: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
            for (name, text) in &plain {
                let starts = std::iter::once(0).chain(text.match_indices('.').map(|(i, _)| i + 1));
                for start in starts {
                    let (prefix, rest) = text.split_at(start);
                    let rest = format!("{beginning}{}", renewed(&built.spec, rest));
                    if wanted.contains(rest.as_str()) {
                        let names = below.entry(prefix.to_string()).or_default();
                        names.insert(rest, name.to_string());
                    }
                }
            }
            for (prefix, names) in below {
                let average = prefix.contains("ema");
                let key = (names.len(), !average, usize::MAX - prefix.len());
                if key > best.0 {
                    best = (key, prefix, names);
                }
            }
        }
        let (_, prefix, names) = best;
        Self {
            // as it is written in the file
            prefix: (names.values().next())
                .map(|source| with_wrappers(source, &prefix))
                .unwrap_or_default(),
            names,
        }
    }
}

/// The beginning of `source` that becomes `prefix` without wrappers.
fn with_wrappers(source: &str, prefix: &str) -> String {
    let mut end = 0;
    let mut rest = prefix;
    loop {
        if let Some(wrapper) = WRAPPERS.iter().find(|w| source[end..].starts_with(**w)) {
            end += wrapper.len();
        } else if let Some((part, after)) = rest.split_once('.') {
            end += part.len() + 1;
            rest = after;
        } else {
            return source[..end.min(source.len())].to_string();
        }
    }
}

/// A name as the network has it: VMamba's first files have others than its later ones, and Mamba-UNet kept those.
fn renewed(spec: &NetworkSpec, name: &str) -> String {
    let (tops, in_block): (&[(&str, &str)], _) = match spec {
        NetworkSpec::Vmamba(_) => (
            &[
                ("patch_embed.proj.", "patch_embed.0."),
                ("patch_embed.norm.", "patch_embed.2."),
                ("norm.", "classifier.norm."),
                ("head.", "classifier.head."),
            ],
            [(".ln_1.", ".norm."), (".self_attention.", ".op.")],
        ),
        NetworkSpec::MambaUnet(_) => (
            &[
                ("patch_embed.0.", "patch_embed.proj."),
                ("patch_embed.2.", "patch_embed.norm."),
            ],
            [(".norm.", ".ln_1."), (".op.", ".self_attention.")],
        ),
        _ => return name.to_string(),
    };
    for (old, new) in tops {
        if let Some(rest) = name.strip_prefix(old) {
            return format!("{new}{rest}");
        }
    }
    match name.contains(".blocks.") {
        true => in_block
            .iter()
            .fold(name.to_string(), |name, (old, new)| name.replace(old, new)),
        false => name.to_string(),
    }
}

/// Weights of a VMamba classifier begin Mamba-UNet's encoder and, as in its reference (`load_from`), the levels of its decoder.
fn twice(spec: &NetworkSpec, names: &mut BTreeMap<String, String>) {
    if !matches!(spec, NetworkSpec::MambaUnet(_)) {
        return;
    }
    const LAST: usize = 3;
    for level in 0..LAST {
        let (from, to) = (
            format!("mamba_unet.layers.{level}.blocks."),
            format!("mamba_unet.layers_up.{}.blocks.", LAST - level),
        );
        let copies: Vec<(String, String)> = (names.iter())
            .filter_map(|(name, source)| {
                Some((format!("{to}{}", name.strip_prefix(&from)?), source.clone()))
            })
            .collect();
        for (name, source) in copies {
            names.entry(name).or_insert(source);
        }
    }
}

/// What makes a tensor of another shape fit.
enum Adaptation {
    /// The same numbers in another shape: 1x1 convolutions as matrices.
    Reshape,
    /// Learned positions of another grid, after so many class tokens.
    Rows(i64),
    /// Learned positions as a map (1, C, h, w).
    Map,
    /// A convolution that sees this many channels, of more: zeros for those that the file does not know.
    Widen(i64),
}

impl Adaptation {
    fn told(&self, wanted: &[i64]) -> String {
        match self {
            Adaptation::Reshape => "a 1x1 convolution's weight taken as a matrix".to_owned(),
            Adaptation::Rows(_) | Adaptation::Map => {
                "positions interpolated to another grid".to_owned()
            }
            Adaptation::Widen(known) => format!(
                "the first layer sees {} channels, the file's {known}; zeros for the others, which count for nothing until they are trained",
                wanted[1]
            ),
        }
    }

    fn apply(&self, value: &Tensor, wanted: &[i64]) -> Result<Tensor, ModelError> {
        Ok(match self {
            Adaptation::Reshape => value.f_reshape(wanted)?,
            Adaptation::Rows(extra) => {
                let side = ((wanted[1] - extra) as f64).sqrt().round() as i64;
                interpolate_checkpoint(value, *extra, side)?
            }
            Adaptation::Map => {
                value.f_upsample_bicubic2d([wanted[2], wanted[3]], false, None, None)?
            }
            Adaptation::Widen(known) => {
                let wide = value.f_new_zeros(wanted, (value.kind(), value.device()))?;
                wide.f_narrow(1, 0, *known)?.f_copy_(value)?;
                wide
            }
        })
    }
}

/// The convolution that sees the image: the first that the network registers.
fn first_layer(built: &Built) -> Option<&str> {
    let mut entries = built.params.entries();
    entries.find_map(|(name, tensor, _)| (tensor.dim() >= 4).then_some(name))
}

fn widening(first: bool, found: &[i64], wanted: &[i64]) -> Option<Adaptation> {
    let alike = found.len() == wanted.len() && found.len() >= 4;
    (first && alike && found[0] == wanted[0] && found[2..] == wanted[2..] && found[1] < wanted[1])
        .then(|| Adaptation::Widen(found[1]))
}

fn adaptation(spec: &NetworkSpec, name: &str, found: &[i64], wanted: &[i64]) -> Option<Adaptation> {
    let as_matrix = found.len() == 4 && found[2..] == [1, 1] && found[..2] == *wanted;
    if as_matrix {
        return Some(Adaptation::Reshape);
    }
    match spec {
        NetworkSpec::Vim(c) if name == "pos_embed" && found.len() == 3 && found[2] == wanted[2] => {
            let extra = c.class_token.count();
            let square = |rows: i64| {
                let side = (rows as f64).sqrt().round() as i64;
                rows > 0 && side * side == rows
            };
            (square(found[1] - extra) && square(wanted[1] - extra))
                .then_some(Adaptation::Rows(extra))
        }
        NetworkSpec::Vmamba(_)
            if name == "pos_embed" && found.len() == 4 && found[1] == wanted[1] =>
        {
            Some(Adaptation::Map)
        }
        _ => None,
    }
}
