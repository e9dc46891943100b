//! Comparing tensors and remembering the worst.

use std::collections::BTreeMap;
use std::fmt;

use tch::{Kind, Tensor};

use crate::case::Spread;

/// One compared tensor.
struct Line {
    name: String,
    error: f64,
    tolerance: f64,
}

impl Line {
    /// Also false when the error is no number.
    fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// What a case's comparisons gave.
#[derive(Default)]
pub struct Report {
    lines: Vec<Line>,
    faults: Vec<String>,
}

impl Report {
    /// Something was compared, and all of it agrees.
    pub fn passed(&self) -> bool {
        self.faults.is_empty() && !self.lines.is_empty() && self.lines.iter().all(Line::passed)
    }

    /// A disagreement that is no number: a name, a shape, a missing gradient.
    pub fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    /// Notes that something without numbers agrees.
    pub fn agrees(&mut self, name: &str) {
        self.lines.push(Line {
            name: name.to_string(),
            error: 0.0,
            tolerance: 0.0,
        });
    }

    /// `max|ours - theirs| <= tolerance * scale`, the scale being the largest value of theirs unless given.
    fn compare(
        &mut self,
        name: String,
        ours: &Tensor,
        theirs: &Tensor,
        tolerance: f64,
        scale: Option<f64>,
    ) {
        if ours.size() != theirs.size() {
            return self.fault(format!(
                "{name} has shape {:?}, expected {:?}",
                ours.size(),
                theirs.size()
            ));
        }
        let (ours, theirs) = (
            ours.detach().to_kind(Kind::Double),
            theirs.to_kind(Kind::Double),
        );
        let scale = scale.unwrap_or_else(|| largest(&theirs));
        let difference = largest(&(ours - theirs));
        let error = if difference == 0.0 {
            0.0
        } else {
            difference / scale
        };
        self.lines.push(Line {
            name,
            error,
            tolerance,
        });
    }

    /// Compares two sets of named tensors. Those that vanish identically are measured by the largest of the others.
    pub fn compare_all(
        &mut self,
        section: &str,
        ours: &BTreeMap<String, Tensor>,
        theirs: &BTreeMap<String, Tensor>,
        spread: &Spread,
        tolerance: f64,
    ) {
        let vanishes =
            |name: &str, t: &Tensor| spread.zero_in_fp64.contains(name) || largest(t) == 0.0;
        let others = theirs
            .iter()
            .filter(|(name, t)| !vanishes(name, t))
            .map(|(_, t)| largest(t))
            .fold(0.0, f64::max);
        for (name, theirs) in theirs {
            let label = format!("{section}/{name}");
            match ours.get(name) {
                Some(ours) => {
                    let scale = (vanishes(name, theirs) && others > 0.0).then_some(others);
                    self.compare(label, ours, theirs, tolerance, scale);
                }
                None => self.fault(format!("{label} is missing")),
            }
        }
    }
}

fn largest(t: &Tensor) -> f64 {
    if t.numel() == 0 {
        return 0.0;
    }
    t.abs().max().to_kind(Kind::Double).double_value(&[])
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |line: &&Line| {
            if line.passed() {
                line.error / line.tolerance.max(f64::MIN_POSITIVE)
            } else {
                f64::INFINITY
            }
        };
        let worst = self
            .lines
            .iter()
            .max_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        write!(f, "{} tensors", self.lines.len())?;
        if let Some(Line {
            name,
            error,
            tolerance,
        }) = worst
        {
            write!(
                f,
                ", worst {name}: error {error:.1e}, tolerance {tolerance:.1e}"
            )?;
        }
        let beyond: Vec<_> = self.lines.iter().filter(|l| !l.passed()).collect();
        for line in beyond.iter().take(8) {
            write!(
                f,
                "\n          {}: error {:.2e} above {:.1e}",
                line.name, line.error, line.tolerance
            )?;
        }
        if beyond.len() > 8 {
            write!(f, "\n          and {} more", beyond.len() - 8)?;
        }
        self.faults
            .iter()
            .try_for_each(|fault| write!(f, "\n          {fault}"))
    }
}
