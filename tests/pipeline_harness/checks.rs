//! Named comparisons, what each gave, and the count of them.

use std::fmt::Debug;
use std::process::ExitCode;

pub type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Collects and prints the outcome of every check.
pub struct Checks {
    words: Vec<String>,
    section: String,
    passed: usize,
    failed: usize,
}

impl Checks {
    /// Only checks whose name contains one of the words are run; without words, all.
    pub fn new(words: Vec<String>) -> Self {
        Self {
            words,
            section: String::new(),
            passed: 0,
            failed: 0,
        }
    }

    /// Names of the checks that follow begin with this.
    pub fn enter(&mut self, section: &str) {
        self.section = section.to_string();
    }

    /// Runs one check: `Ok` tells what was compared, `Err` what disagrees. A panic fails it alone.
    pub fn run(&mut self, name: &str, check: impl FnOnce() -> Fallible<String>) {
        let name = format!("{}/{name}", self.section);
        if !self.words.is_empty() && !self.words.iter().any(|word| name.contains(word)) {
            return;
        }
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)) {
            Ok(Ok(told)) => {
                self.passed += 1;
                println!("ok      {name}: {told}");
            }
            Ok(Err(e)) => self.failed(&name, &e.to_string()),
            Err(_) => self.failed(&name, "it panicked"),
        }
    }

    /// Something that is wrong without a comparison.
    pub fn fault(&mut self, name: &str, text: String) {
        self.failed(&format!("{}/{name}", self.section), &text);
    }

    fn failed(&mut self, name: &str, text: &str) {
        self.failed += 1;
        println!("FAILED  {name}: {text}");
    }

    /// Prints the count. Nothing compared is a failure.
    pub fn finish(self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        match self.failed == 0 && self.passed > 0 {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}

/// The largest difference of pairs of numbers and what it belongs to. Two NaNs agree, as do equal infinities.
#[derive(Default)]
pub struct Worst {
    error: f64,
    at: String,
    compared: usize,
    faults: Vec<String>,
}

impl Worst {
    /// `|ours - theirs| <= tolerance`, or the same bits of infinity, or both NaN.
    pub fn number(&mut self, at: &str, ours: f64, theirs: f64, tolerance: f64) {
        self.compared += 1;
        if ours == theirs || (ours.is_nan() && theirs.is_nan()) {
            return;
        }
        let error = (ours - theirs).abs();
        if error > tolerance || error.is_nan() {
            self.faults.push(format!(
                "{at} is {ours}, expected {theirs} within {tolerance:e}"
            ));
        }
        if error > self.error {
            self.error = error;
            self.at = at.to_string();
        }
    }

    /// A difference found within tolerance elsewhere.
    pub fn close(&mut self, error: f64, at: &str) {
        self.compared += 1;
        if error > self.error {
            self.error = error;
            self.at = at.to_string();
        }
    }

    /// Equal in every respect.
    pub fn same<T: PartialEq + Debug>(&mut self, at: &str, ours: &T, theirs: &T) {
        self.compared += 1;
        if ours != theirs {
            self.faults
                .push(format!("{at} is {ours:?}, expected {theirs:?}"));
        }
    }

    /// What was compared and how close it is, or every disagreement, up to a few.
    pub fn verdict(self) -> Fallible<String> {
        if self.compared == 0 {
            return Err("nothing was compared".into());
        }
        if self.faults.is_empty() {
            let at = match self.at.is_empty() {
                true => String::new(),
                false => format!(" ({})", self.at),
            };
            return Ok(format!(
                "{} values, largest difference {:.2e}{at}",
                self.compared, self.error
            ));
        }
        const SHOWN: usize = 5;
        let mut text = self.faults[..self.faults.len().min(SHOWN)].join("; ");
        if self.faults.len() > SHOWN {
            text += &format!("; and {} more", self.faults.len() - SHOWN);
        }
        Err(text.into())
    }
}
