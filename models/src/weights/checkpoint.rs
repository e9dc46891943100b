//! Checkpoints as Python wrote them: every tensor by its dotted path, none of them read before it is asked for.
//!
//! The `.pth` formats are read by the `pytorch-reader` crate, which interprets the pickle as data: a file can name any Python function, and
//! none is ever called. Sizes are checked against the file's before memory is taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pytorch_reader::{DType, PickleValue, PytorchReader};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::safetensors::{read_index, read_one};
use crate::ModelError;

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Sizes.
    pub shape: Vec<i64>,
    /// Element type.
    pub kind: Kind,
}

enum Source {
    Pytorch(BTreeMap<String, pytorch_reader::Tensor>),
    Safetensors,
}

/// An open checkpoint.
pub struct Checkpoint {
    path: PathBuf,
    format: &'static str,
    tensors: BTreeMap<String, TensorInfo>,
    source: Source,
}

impl Checkpoint {
    /// Reads names and shapes of a `.safetensors` file or of anything that `torch.save` wrote.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io {
            path: path.to_path_buf(),
            source,
        };
        // what cannot be opened at all is told by the system's own words
        drop(std::fs::File::open(path).map_err(io)?);
        let safetensors = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
        if safetensors {
            return Ok(Self {
                path: path.to_path_buf(),
                format: "safetensors",
                tensors: read_index(path)?,
                source: Source::Safetensors,
            });
        }
        let reader = PytorchReader::new(path).map_err(|e| ModelError::BadFile {
            path: path.to_path_buf(),
            reason: format!("no checkpoint that can be trusted or read: {e}"),
        })?;
        let format = match reader.metadata().format_type {
            pytorch_reader::FileFormat::Zip => "PyTorch, zip",
            pytorch_reader::FileFormat::Legacy => "PyTorch, before 1.6",
            pytorch_reader::FileFormat::Tar => "PyTorch, tar",
            _ => "pickle",
        };
        let found: BTreeMap<String, pytorch_reader::Tensor> =
            reader.into_tensors().into_iter().collect();
        let tensors = found
            .iter()
            .map(|(name, tensor)| {
                let kind = kind_of(tensor.dtype()).ok_or_else(|| ModelError::BadFile {
                    path: path.to_path_buf(),
                    reason: format!(
                        "`{name}` has the element type {:?}, which libtorch lacks",
                        tensor.dtype()
                    ),
                })?;
                let shape = tensor.shape().iter().map(|n| *n as i64).collect();
                Ok((name.clone(), TensorInfo { shape, kind }))
            })
            .collect::<Result<BTreeMap<_, _>, ModelError>>()?;
        if tensors.is_empty() {
            return Err(ModelError::BadFile {
                path: path.to_path_buf(),
                reason: "there is no tensor in it".to_string(),
            });
        }
        Ok(Self {
            path: path.to_path_buf(),
            format,
            tensors,
            source: Source::Pytorch(found),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What wrote it.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// Every tensor by its dotted path through the file's dictionaries, in alphabetical order.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The values of one tensor.
    pub fn read(&self, name: &str) -> Result<Tensor, ModelError> {
        let bad = |reason: String| ModelError::BadFile {
            path: self.path.clone(),
            reason,
        };
        let info =
            (self.tensors.get(name)).ok_or_else(|| bad(format!("there is no `{name}` in it")))?;
        match &self.source {
            Source::Safetensors => read_one(&self.path, name, info.kind),
            Source::Pytorch(tensors) => {
                let tensor = (tensors.get(name))
                    .ok_or_else(|| bad(format!("there is no `{name}` in it")))?;
                let bytes = tensor.read().map_err(|e| bad(e.to_string()))?;
                Ok(Tensor::f_from_data_size(&bytes, &info.shape, info.kind)?)
            }
        }
    }
}

/// What a `torch.save` file of a dictionary says, as JSON: null for what JSON lacks (tensors, numpy's numbers, devices), and entries of inner
/// dictionaries in any order. Empty where the file is no dictionary.
pub fn read_values(path: &Path) -> Result<BTreeMap<String, Value>, ModelError> {
    let all = PytorchReader::read_pickle_data(path, None).map_err(|e| ModelError::BadFile {
        path: path.to_path_buf(),
        reason: format!("no checkpoint that can be trusted or read: {e}"),
    })?;
    Ok(match all {
        PickleValue::Dict(all) => (all.into_iter())
            .map(|(key, value)| (key, json_of(value, 0)))
            .collect(),
        _ => BTreeMap::new(),
    })
}

/// Data nested deeper than this is nobody's.
const DEEPEST: usize = 32;

fn json_of(value: PickleValue, depth: usize) -> Value {
    match value {
        _ if depth > DEEPEST => Value::Null,
        PickleValue::Bool(v) => v.into(),
        PickleValue::Int(v) => v.into(),
        PickleValue::Float(v) => v.into(),
        PickleValue::String(v) => v.into(),
        PickleValue::List(v) => v.into_iter().map(|v| json_of(v, depth + 1)).collect(),
        PickleValue::Dict(v) => {
            let entries = v.into_iter().map(|(k, v)| (k, json_of(v, depth + 1)));
            Value::Object(entries.collect())
        }
        PickleValue::None | PickleValue::Bytes(_) | PickleValue::Unsupported(_) => Value::Null,
    }
}

fn kind_of(dtype: DType) -> Option<Kind> {
    Some(match dtype {
        DType::F64 => Kind::Double,
        DType::F32 => Kind::Float,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::I64 => Kind::Int64,
        DType::I32 => Kind::Int,
        DType::I16 => Kind::Int16,
        DType::I8 => Kind::Int8,
        DType::U8 => Kind::Uint8,
        DType::Bool => Kind::Bool,
        DType::U64 | DType::U32 | DType::U16 => return None,
    })
}
