//! One case as it lies on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tch::Tensor;

/// Any failure of a case, as text.
pub type Fallible<T> = Result<T, Box<dyn Error>>;

/// How far the reference in float32 is from itself in float64.
#[derive(Debug, Default, Deserialize)]
pub struct Spread {
    /// Largest difference relative to the largest value of its tensor.
    #[serde(default)]
    pub max_rel: f64,
    /// Gradients that vanish identically.
    #[serde(default)]
    pub zero_in_fp64: BTreeSet<String>,
}

impl Spread {
    /// Twenty times the reference's own resolution, and never below 1e-5.
    pub fn tolerance(&self) -> f64 {
        (20.0 * self.max_rel).max(1e-5)
    }
}

/// [`Spread`] of each kind of result.
#[derive(Debug, Default, Deserialize)]
pub struct Spreads {
    /// Outputs.
    #[serde(default)]
    pub out: Spread,
    /// Gradients of parameters.
    #[serde(default)]
    pub grad: Spread,
    /// Gradients of inputs.
    #[serde(default)]
    pub grad_in: Spread,
}

#[derive(Deserialize)]
struct Json {
    model: String,
    config: Map<String, Value>,
    mode: String,
    #[serde(default)]
    fp32_vs_fp64: Spreads,
    #[serde(default)]
    params_without_grad: BTreeSet<String>,
    grad_subset: Option<Value>,
}

/// A case with its tensors by section and name.
pub struct Case {
    /// What to build.
    pub model: String,
    /// From what.
    pub config: Map<String, Value>,
    /// Training mode.
    pub train: bool,
    /// Resolution of the reference.
    pub spreads: Spreads,
    /// Parameters that take no part in this configuration.
    pub params_without_grad: BTreeSet<String>,
    /// Whether only some gradients are stored.
    pub grad_subset: bool,
    sections: BTreeMap<String, BTreeMap<String, Tensor>>,
    none: BTreeMap<String, Tensor>,
}

/// Sections that the comparison knows; any other fails the case.
const SECTIONS: &[&str] = &[
    "param",
    "in",
    "out",
    "cot",
    "grad",
    "grad_in",
    "after",
    "out64",
    "grad_in64",
];

impl Case {
    /// Reads both files.
    pub fn read(json: &Path, tensors: &Path) -> Fallible<Self> {
        let text = std::fs::read_to_string(json)?;
        let json: Json =
            serde_json::from_str(&text).map_err(|e| format!("{}: {e}", json.display()))?;
        let train = match json.mode.as_str() {
            "eval" => false,
            "train" => true,
            other => return Err(format!("unknown mode `{other}`").into()),
        };
        let mut sections: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (key, tensor) in vision_mamba_models::weights::read_tensors(tensors)? {
            let (section, name) = key
                .split_once('/')
                .ok_or_else(|| format!("tensor `{key}` belongs to no section"))?;
            sections
                .entry(section.to_string())
                .or_default()
                .insert(name.to_string(), tensor);
        }
        Ok(Self {
            model: json.model,
            config: json.config,
            train,
            spreads: json.fp32_vs_fp64,
            params_without_grad: json.params_without_grad,
            grad_subset: json.grad_subset.is_some(),
            sections,
            none: BTreeMap::new(),
        })
    }

    /// The tensors of a section by name.
    pub fn section(&self, name: &str) -> &BTreeMap<String, Tensor> {
        self.sections.get(name).unwrap_or(&self.none)
    }

    /// Nothing in the file may go unread.
    pub fn check_sections(&self) -> Fallible<()> {
        match self
            .sections
            .keys()
            .find(|name| !SECTIONS.contains(&name.as_str()))
        {
            Some(name) => {
                Err(format!("section `{name}` is not compared for {}", self.model).into())
            }
            None => Ok(()),
        }
    }

    /// An input.
    pub fn input(&self, name: &str) -> Fallible<&Tensor> {
        self.section("in")
            .get(name)
            .ok_or_else(|| format!("input `{name}` is missing").into())
    }
}
