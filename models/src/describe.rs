//! What `models show` prints, as data.

use serde::Serialize;

use crate::{Built, EntryKind, ParamStore};

/// A network in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// Trainable values, shared ones counted once.
    pub parameters: i64,
    /// Shape of the features after each stage.
    pub stages: Vec<StageShape>,
    /// The state dict in order.
    pub state_dict: Vec<StateEntry>,
}

/// Features for one image, without the batch axis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StageShape {
    /// Name of the module that makes them.
    pub name: String,
    /// Channels, then spatial sides.
    pub shape: Vec<i64>,
}

/// One line of the state dict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateEntry {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its element type, by PyTorch's name.
    pub dtype: &'static str,
    /// The entry it shares storage with, if it is a second name.
    pub alias_of: Option<String>,
}

/// The smallest spatial size that the network takes and that is not below the given one. A last side stands for all that are missing.
pub fn takeable_size(built: &Built, input_size: &[i64]) -> Vec<i64> {
    let side = |(axis, by): (usize, &i64)| {
        let given = input_size
            .get(axis)
            .or(input_size.last())
            .copied()
            .unwrap_or(*by);
        (given.max(1) + by - 1) / by * by
    };
    built.net.divisor().iter().enumerate().map(side).collect()
}

/// Describes a network for images of the given spatial size, which is rounded up to a multiple the network can take.
pub fn describe(built: &Built, input_size: &[i64]) -> Description {
    let size = takeable_size(built, input_size);
    let shape_of = |channels: i64, reduction: &[i64]| {
        std::iter::once(channels)
            .chain(reduction.iter().enumerate().map(|(axis, r)| size[axis] / r))
            .collect()
    };
    Description {
        parameters: built.params.num_parameters(),
        stages: built
            .net
            .stages()
            .into_iter()
            .map(|s| StageShape {
                shape: shape_of(s.channels, &s.reduction),
                name: s.name,
            })
            .collect(),
        state_dict: state_entries(&built.params),
    }
}

/// The entries of a state dict, in the reference's order.
pub fn state_entries(params: &ParamStore) -> Vec<StateEntry> {
    params
        .entries()
        .map(|(name, tensor, kind)| StateEntry {
            name: name.to_string(),
            shape: tensor.size(),
            dtype: dtype_name(tensor.kind()),
            alias_of: match kind {
                EntryKind::Alias(of) => Some(of.clone()),
                _ => None,
            },
        })
        .collect()
}

fn dtype_name(kind: tch::Kind) -> &'static str {
    match kind {
        tch::Kind::Float => "float32",
        tch::Kind::Double => "float64",
        tch::Kind::Half => "float16",
        tch::Kind::BFloat16 => "bfloat16",
        tch::Kind::Int64 => "int64",
        tch::Kind::Int => "int32",
        tch::Kind::Bool => "bool",
        _ => "other",
    }
}
