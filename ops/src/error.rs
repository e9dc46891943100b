//! What can go wrong in an operator call.

use tch::TchError;
use thiserror::Error;

/// An operator call that could not be carried out.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpsError {
    /// An argument has the wrong shape, element type or device.
    #[error("{op}: {message}")]
    Argument {
        /// The operator that was called.
        op: &'static str,
        /// The argument, what came and what was expected.
        message: String,
    },
    /// The native library was asked for by name but is not loaded.
    #[error("the native operator library is not in use: {status}")]
    Unavailable {
        /// The outcome of loading, with its remedy.
        status: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),
}

impl OpsError {
    /// Keeps the sentence that says what is wrong and drops libtorch's wrapping: `prefix` is what the
    /// library puts in front of its own messages.
    pub(crate) fn from_native(op: &'static str, error: TchError) -> Self {
        let text = match error {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        let marker = format!("vision_mamba::{op}: ");
        match text.find(&marker) {
            Some(at) => {
                let message = first_line(&text[at + marker.len()..]).to_owned();
                OpsError::Argument { op, message }
            }
            None => OpsError::Torch(meaningful_line(&text).to_owned()),
        }
    }
}

impl From<TchError> for OpsError {
    fn from(error: TchError) -> Self {
        match error {
            TchError::Torch(text) => OpsError::Torch(meaningful_line(&text).to_owned()),
            other => OpsError::Torch(other.to_string()),
        }
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_end()
}

/// TorchScript puts its own call stack before the cause, which it repeats after `RuntimeError: `.
fn meaningful_line(text: &str) -> &str {
    match text.find("RuntimeError: ") {
        Some(at) => first_line(&text[at + "RuntimeError: ".len()..]),
        None => first_line(text),
    }
}
