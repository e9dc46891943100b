//! Where a step's time goes: its phases, then libtorch's operators. `train --profile` prints it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use tch::Device;
use vision_mamba_ops::{device, Profiler};

use crate::report::columns::columns;

/// Steps before anything is timed: the first ones allocate, and choose algorithms.
const WARM_UP: u64 = 3;
/// Operators that the table has.
const SHOWN: usize = 16;

/// The phases of a step, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for the workers that prepare batches.
    Data,
    /// Moving a batch to the device.
    Transfer,
    /// The network.
    Forward,
    /// The loss.
    Loss,
    /// Gradients.
    Backward,
    /// Clipping, the optimiser's rule, the average of the weights.
    Update,
    /// Counting, progress.
    Rest,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Data => "waiting for data",
            Self::Transfer => "transfer",
            Self::Forward => "forward",
            Self::Loss => "loss",
            Self::Backward => "backward",
            Self::Update => "optimiser",
            Self::Rest => "rest",
        }
    }
}

/// Times the phases of steps, while it is asked to.
pub struct Watch {
    device: Device,
    /// Steps that each of the two tables is made of.
    steps: u64,
    state: RefCell<State>,
}

struct State {
    seen: u64,
    phases: BTreeMap<Phase, f64>,
    began: Instant,
    seconds: f64,
    operators: Option<Profiler>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Profile {
    /// The device.
    pub device: String,
    /// Steps timed.
    pub steps: u64,
    /// Seconds a step.
    pub seconds: f64,
    /// Seconds a step of every phase; on a GPU each was waited for.
    pub phases: Vec<(Phase, f64)>,
    /// Operators, the longest first: name, calls a step, seconds a step.
    pub operators: Vec<(String, f64, f64)>,
}

impl Watch {
    /// Times `steps` steps by phases and as many by operators; `None` times nothing.
    pub fn new(device: Device, steps: Option<u64>) -> Self {
        Self {
            device,
            steps: steps.unwrap_or(0),
            state: RefCell::new(State {
                seen: 0,
                phases: BTreeMap::new(),
                began: Instant::now(),
                seconds: 0.0,
                operators: None,
            }),
        }
    }

    fn times_phases(&self) -> bool {
        let seen = self.state.borrow().seen;
        self.steps > 0 && (WARM_UP..WARM_UP + self.steps).contains(&seen)
    }

    /// Does a part of a step.
    pub fn phase<R>(&self, phase: Phase, body: impl FnOnce() -> R) -> R {
        if !self.times_phases() {
            return body();
        }
        let begin = Instant::now();
        let result = body();
        // what goes wrong on the device is told by the next operation
        let _ = device::synchronize(self.device);
        *self.state.borrow_mut().phases.entry(phase).or_default() += begin.elapsed().as_secs_f64();
        result
    }

    /// A step is over. What was found, when that was the last one needed.
    pub fn step_done(&self) -> Result<Option<Profile>> {
        if self.steps == 0 {
            return Ok(None);
        }
        let mut state = self.state.borrow_mut();
        state.seen += 1;
        if state.seen == WARM_UP {
            device::synchronize(self.device)?;
            state.began = Instant::now();
        } else if state.seen == WARM_UP + self.steps {
            state.seconds = state.began.elapsed().as_secs_f64() / self.steps as f64;
            state.operators = Some(Profiler::start(self.device)?);
        } else if state.seen == WARM_UP + 2 * self.steps {
            let operators = state.operators.take().map(Profiler::stop).transpose()?;
            let a_step = 1.0 / self.steps as f64;
            let mut phases: Vec<(Phase, f64)> = std::mem::take(&mut state.phases)
                .into_iter()
                .map(|(phase, seconds)| (phase, seconds * a_step))
                .collect();
            let named: f64 = phases.iter().map(|p| p.1).sum();
            phases.push((Phase::Rest, (state.seconds - named).max(0.0)));
            let operators = operators.unwrap_or_default().into_iter();
            return Ok(Some(Profile {
                device: format!("{:?}", self.device),
                steps: self.steps,
                seconds: state.seconds,
                phases,
                operators: operators
                    .map(|o| (o.name, o.calls as f64 * a_step, o.seconds * a_step))
                    .collect(),
            }));
        }
        Ok(None)
    }
}

impl Profile {
    /// Two tables to read.
    pub fn told(&self) -> String {
        let ms = |seconds: f64| format!("{:.2}", seconds * 1e3);
        let share = |seconds: f64, of: f64| format!("{:.1} %", 100.0 * seconds / of.max(1e-12));
        let phases = self.phases.iter().map(|(phase, seconds)| {
            vec![
                phase.name().to_owned(),
                ms(*seconds),
                share(*seconds, self.seconds),
            ]
        });
        let all: f64 = self.operators.iter().map(|o| o.2).sum();
        let shown = self
            .operators
            .iter()
            .take(SHOWN)
            .map(|(name, calls, seconds)| {
                vec![
                    name.clone(),
                    format!("{calls:.0}"),
                    ms(*seconds),
                    share(*seconds, all),
                ]
            });
        let rest = self.operators.get(SHOWN..).unwrap_or_default();
        let rest = (!rest.is_empty()).then(|| {
            let (calls, seconds) = rest.iter().fold((0.0, 0.0), |t, o| (t.0 + o.1, t.1 + o.2));
            vec![
                format!("{} others", rest.len()),
                format!("{calls:.0}"),
                ms(seconds),
                share(seconds, all),
            ]
        });
        format!(
            "a step on {} takes {} ms (mean of {}):\n{}\noperators, time of their own:\n{}",
            self.device,
            ms(self.seconds),
            self.steps,
            table(&["phase", "ms", "share"], phases),
            table(&["operator", "calls", "ms", "share"], shown.chain(rest)).trim_end()
        )
    }
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
