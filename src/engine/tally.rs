//! What steps came to, counted where they are computed: a GPU is asked for it now and then, and not waited for in every step.

use std::time::{Duration, Instant};

use anyhow::Result;
use tch::{no_grad, Device, Kind, Tensor};

use super::state::Progress;

/// A GPU that is asked more often is kept waiting.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Sums over the steps of an epoch, and counts over the run.
pub struct Tally {
    /// Sum of losses, their number, steps skipped, steps skipped in a row: float64 on the device.
    sums: Tensor,
    /// How far apart answers may be; none: they cost nothing.
    every: Option<Duration>,
    asked: Instant,
}

/// What a tally says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Told {
    /// Sum of the losses of the epoch's taken steps.
    pub loss_sum: f64,
    /// Their number.
    pub loss_count: u64,
    /// Steps of the run that were not taken.
    pub skipped: u64,
    /// Those since the last that was.
    pub in_a_row: u64,
}

impl Tally {
    /// Goes on from where a run stands.
    pub fn new(progress: &Progress, device: Device) -> Self {
        Self {
            sums: Tensor::from_slice(&[
                progress.loss_sum,
                progress.loss_count as f64,
                progress.skipped as f64,
                0.0,
            ])
            .to_device(device),
            every: (device != Device::Cpu).then_some(ASK_EVERY),
            asked: Instant::now(),
        }
    }

    /// Counts a step: its loss, and whether it was taken, both scalars.
    pub fn add(&mut self, loss: &Tensor, taken: &Tensor) {
        no_grad(|| {
            let taken = taken.to_kind(Kind::Double);
            let loss = loss
                .detach()
                .to_kind(Kind::Double)
                .nan_to_num(0.0, 0.0, 0.0)
                * &taken;
            let skipped = 1.0 - &taken;
            let in_a_row = (self.sums.get(3) + 1.0) * &skipped;
            let new = Tensor::stack(
                &[
                    self.sums.get(0) + loss,
                    self.sums.get(1) + taken,
                    self.sums.get(2) + skipped,
                    in_a_row,
                ],
                0,
            );
            self.sums = new;
        });
    }

    /// Whether it is time to look: always on a CPU, now and then on a GPU.
    pub fn is_due(&self) -> bool {
        self.every.is_none_or(|every| self.asked.elapsed() >= every)
    }

    /// Waits for the device, and tells.
    pub fn tell(&mut self) -> Result<Told> {
        let sums: Vec<f64> = Vec::try_from(self.sums.to_device(Device::Cpu))?;
        self.asked = Instant::now();
        Ok(Told {
            loss_sum: sums[0],
            loss_count: sums[1] as u64,
            skipped: sums[2] as u64,
            in_a_row: sums[3] as u64,
        })
    }

    /// Begins another epoch.
    pub fn next_epoch(&mut self) {
        let _ = self.sums.narrow(0, 0, 2).zero_();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn skipped_steps_leave_no_loss_and_are_counted_in_a_row() {
        let progress = Progress {
            loss_sum: 1.0,
            loss_count: 2,
            skipped: 3,
            ..Default::default()
        };
        let mut tally = Tally::new(&progress, Device::Cpu);
        let (yes, no) = (Tensor::from(true), Tensor::from(false));
        tally.add(&Tensor::from(0.5f32), &yes);
        tally.add(&Tensor::from(f32::NAN), &no);
        tally.add(&Tensor::from(f32::INFINITY), &no);
        let told = tally.tell().unwrap();
        let want = Told {
            loss_sum: 1.5,
            loss_count: 3,
            skipped: 5,
            in_a_row: 2,
        };
        assert_eq!(told, want);
        tally.next_epoch();
        tally.add(&Tensor::from(0.25f32), &yes);
        let told = tally.tell().unwrap();
        assert_eq!((told.loss_sum, told.loss_count), (0.25, 1));
        assert_eq!((told.skipped, told.in_a_row), (5, 0));
    }
}
