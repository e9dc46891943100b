//! Everything that can go wrong in this crate, each with the value found and what was expected.

use std::path::PathBuf;

/// Error of configuration, construction, forward pass or weight files.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No preset of that name.
    #[error("unknown preset `{name}`, did you mean `{nearest}`? (`models list` names them all)")]
    UnknownPreset {
        /// Name asked for.
        name: String,
        /// Existing name closest to it.
        nearest: String,
    },
    /// A configuration has no such key.
    #[error("unknown key `{key}`, did you mean `{nearest}`? (known keys: {known})")]
    UnknownKey {
        /// Key asked for.
        key: String,
        /// Existing key closest to it.
        nearest: String,
        /// All keys, comma separated.
        known: String,
    },
    /// A configuration key holds a value of the wrong type.
    #[error("key `{key}` cannot take `{value}`: {reason}")]
    BadValue {
        /// The key.
        key: String,
        /// The value given.
        value: String,
        /// What the parser said.
        reason: String,
    },
    /// A preset or configuration text that cannot be read.
    #[error("{what} cannot be read: {reason}")]
    Parse {
        /// Which text.
        what: String,
        /// What the parser said.
        reason: String,
    },
    /// Values of a configuration that do not go together.
    #[error("{field}: {message}")]
    Config {
        /// The offending field.
        field: &'static str,
        /// What was found and what was expected.
        message: String,
    },
    /// An input the network cannot take.
    #[error("network input of shape {shape:?}: {message}")]
    Input {
        /// Shape of the input.
        shape: Vec<i64>,
        /// What was expected.
        message: String,
    },
    /// Two parameters of one name.
    #[error("the name `{0}` is given to two tensors of one network")]
    DuplicateName(String),
    /// An alias of a tensor that does not exist.
    #[error("`{alias}` is to share storage with `{of}`, which does not exist")]
    DanglingAlias {
        /// The alias.
        alias: String,
        /// The missing name.
        of: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A weight file whose bytes are not what its name promises.
    #[error("{path}: {reason}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A weight file whose tensors are not those of the network.
    #[error(
        "{path}: does not fit the network: {}",
        mismatch(missing, unexpected, misshaped)
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Names of the network that the file lacks.
        missing: Vec<String>,
        /// Names of the file that the network lacks.
        unexpected: Vec<String>,
        /// Names of both, with the file's shape or kind and the network's.
        misshaped: Vec<String>,
    },
    /// From the scan or convolution operator.
    #[error(transparent)]
    Ops(#[from] vision_mamba_ops::OpsError),
    /// From libtorch.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

impl ModelError {
    /// A [`ModelError::Config`].
    pub fn config(field: &'static str, message: impl Into<String>) -> Self {
        ModelError::Config {
            field,
            message: message.into(),
        }
    }
}

/// How many names of each list a message shows.
const SHOWN: usize = 6;

fn mismatch(missing: &[String], unexpected: &[String], misshaped: &[String]) -> String {
    [
        ("missing", missing),
        ("unexpected", unexpected),
        ("misshaped", misshaped),
    ]
    .iter()
    .filter(|(_, names)| !names.is_empty())
    .map(|(what, names)| {
        let shown = names
            .iter()
            .take(SHOWN)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let more = names.len().saturating_sub(SHOWN);
        let tail = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        format!("{} {what} ({shown}{tail})", names.len())
    })
    .collect::<Vec<_>>()
    .join("; ")
}
