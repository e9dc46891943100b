//! Exit codes: 0 done, 1 the work failed, 2 misuse, 130 interrupted (the shell's convention for Ctrl-C).

use std::fmt;

/// The work failed: bad data, a full disk, a device that is not there.
pub const FAILED: u8 = 1;
/// The command was not meant that way: unknown preset, contradicting options, an output folder that is taken.
pub const MISUSE: u8 = 2;
/// Stopped by Ctrl-C or a termination signal after everything was put in order.
pub const INTERRUPTED: u8 = 130;

/// An error the person can mend by typing something else; ends with [`MISUSE`].
#[derive(Debug)]
pub struct Misuse(String);

impl Misuse {
    /// Wraps `message` as an error for `anyhow`.
    pub fn error(message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self(message.into()))
    }
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// Stopped on request; what to do next has been printed already.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// The exit code that belongs to `error`.
pub fn code_of(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Interrupted>()) {
        INTERRUPTED
    } else if error.chain().any(|cause| cause.is::<Misuse>()) {
        MISUSE
    } else {
        FAILED
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn codes_survive_context() {
        let misuse = Err::<(), _>(Misuse::error("no such preset")).context("while reading options");
        assert_eq!(misuse.map_err(|e| code_of(&e)), Err(MISUSE));
        assert_eq!(code_of(&anyhow::anyhow!("disk full")), FAILED);
        assert_eq!(code_of(&anyhow::Error::new(Interrupted)), INTERRUPTED);
    }
}
