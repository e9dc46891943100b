//! One line of the table, for `scripts/bench` to set.

use serde::Serialize;

/// Times are milliseconds; what was not measured is left out.
#[derive(Default, Serialize)]
pub struct Row {
    /// The operator or preset.
    pub what: String,
    /// Sizes.
    pub size: String,
    /// Forward pass.
    pub forward: f64,
    /// Forward and backward pass, or training step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub both: Option<f64>,
    /// Images a second of the forward pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<f64>,
    /// MiB of tensors at the peak of the forward pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak: Option<f64>,
    /// The forward pass over its matrix products and convolutions alone, as libtorch computes them by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub products: Option<f64>,
    /// The same over these products and convolutions as they are computed here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_products: Option<f64>,
    /// What it is compared with in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<&'static str>,
    /// How many times as long that takes, forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times_forward: Option<f64>,
    /// The same of both passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times_both: Option<f64>,
}

#[allow(clippy::print_stdout)]
impl Row {
    pub fn print(&self) {
        println!(
            "{}",
            serde_json::to_string(self).expect("numbers and strings")
        );
    }
}
