//! The one owner of the terminal: data goes to stdout, everything said about the work goes to stderr.

use std::io::{self, IsTerminal, Write};

/// Says things, as loudly as the person asked for.
#[derive(Debug, Clone)]
pub struct Printer {
    verbosity: i8,
    terminal: bool,
}

impl Printer {
    /// `verbose` and `quiet` count how often `-v` and `-q` were given.
    pub fn new(verbose: u8, quiet: u8) -> Self {
        let verbosity =
            i8::try_from(verbose).unwrap_or(i8::MAX) - i8::try_from(quiet).unwrap_or(i8::MAX);
        Self {
            verbosity,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// Whether stderr is a terminal, so that a bar can be drawn.
    pub fn draws_bars(&self) -> bool {
        self.terminal && self.verbosity >= 0
    }

    /// Data: the result of the command, on stdout. A reader that has gone away is no error.
    pub fn data(&self, text: &str) {
        let _ = writeln!(io::stdout().lock(), "{text}");
    }

    /// A message about the work, unless `-q`.
    pub fn message(&self, text: &str) {
        if self.verbosity >= 0 {
            Self::stderr(text);
        }
    }

    /// A detail, with `-v`.
    pub fn detail(&self, text: &str) {
        if self.verbosity >= 1 {
            Self::stderr(text);
        }
    }

    /// Something the person should know although the work goes on; only `-qq` silences it.
    pub fn warning(&self, text: &str) {
        if self.verbosity >= -1 {
            Self::stderr(&format!("warning: {text}"));
        }
    }

    /// A failure: one line with its causes. Always printed.
    pub fn error(&self, error: &anyhow::Error) {
        Self::stderr(&format!("error: {}", one_line(error)));
    }

    fn stderr(text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// The chain of causes in one line, leaving out a cause whose text its parent already ends with.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string().replace('\n', "; ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_joined_once() {
        let inner = anyhow::anyhow!("no space left");
        let error = inner
            .context("cannot write a.png: no space left")
            .context("saving overlays");
        assert_eq!(
            one_line(&error),
            "saving overlays: cannot write a.png: no space left"
        );
    }
}
