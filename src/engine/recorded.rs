//! A training step recorded once as a CUDA graph and then played: the host launches one thing, not thousands. What differs from step to step (the batch,
//! the random numbers' seed) is changed in place; learning rate, clipping and the update stay outside.
//!
//! *Sources*: Nguyen et al., *Accelerating PyTorch with CUDA Graphs*, 2021 (whole-network capture).

use std::panic::{catch_unwind, AssertUnwindSafe};

use anyhow::{bail, Context, Result};
use tch::{no_grad, Device, Tensor};
use vision_mamba_ops::Graph;

use super::optimizer::Optimizer;
use super::task::Task;

/// Steps done as usual first, in which libraries choose their algorithms and layers make what they keep.
const WARM_UP: u32 = 2;

/// What can be done again as it was recorded.
pub trait Record: Sized {
    /// Records what `body` has the device do, which is not done.
    fn record(device: Device, body: impl FnOnce() -> Result<Tensor>) -> Result<(Self, Tensor)>;

    /// Does it.
    fn play(&self) -> Result<()>;
}

impl Record for Graph {
    fn record(device: Device, body: impl FnOnce() -> Result<Tensor>) -> Result<(Self, Tensor)> {
        Graph::record(device, body)
    }

    fn play(&self) -> Result<()> {
        Ok(Graph::play(self)?)
    }
}

/// Records a step when it has been done often enough, and plays it afterwards.
pub struct Recorder<T: Task, R: Record = Graph> {
    device: Device,
    done: u32,
    kept: Option<Kept<T, R>>,
}

struct Kept<T: Task, R> {
    graph: R,
    /// The batch whose memory the graph reads.
    batch: T::Loaded,
    /// The loss that it writes.
    loss: Tensor,
}

impl<T: Task, R: Record> Recorder<T, R> {
    /// For steps on a GPU.
    pub fn new(device: Device) -> Self {
        Self {
            device,
            done: 0,
            kept: None,
        }
    }

    /// The gradients of one batch, and its loss. `pass` computes both; it begins without gradients, or with gradients of zero.
    pub fn step(
        &mut self,
        optimizer: &mut Optimizer,
        batch: T::Loaded,
        pass: impl Fn(&T::Loaded) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match &self.kept {
            Some(kept) if fits::<T>(&kept.batch, &batch) => {
                no_grad(|| -> Result<()> {
                    for (to, from) in T::tensors(&kept.batch).iter().zip(T::tensors(&batch)) {
                        to.shallow_clone().f_copy_(from)?;
                    }
                    Ok(())
                })?;
                kept.graph.play()?;
                // the next play writes over it
                Ok(kept.loss.copy())
            }
            Some(_) => {
                // An odd batch is done as usual, with its gradients where the graph writes them too.
                optimizer.clear_gradients();
                pass(&batch)
            }
            None if self.done < WARM_UP => {
                self.done += 1;
                optimizer.zero_grad()?;
                pass(&batch)
            }
            None => {
                // Without gradients from before, the graph makes its own at places that stay.
                optimizer.zero_grad()?;
                let recorded =
                    catch_unwind(AssertUnwindSafe(|| R::record(self.device, || pass(&batch))));
                let (graph, loss) = match recorded {
                    Ok(result) => result.context(ADVICE)?,
                    Err(_) => bail!("{ADVICE}; why stands above"),
                };
                graph.play()?;
                let told = loss.copy();
                self.kept = Some(Kept { graph, batch, loss });
                Ok(told)
            }
        }
    }

    /// Something else has been done with the network, such as a validation, after which what its layers keep may lie elsewhere.
    pub fn forget(&mut self) {
        self.done = 0;
        self.kept = None;
    }
}

const ADVICE: &str = "--cuda-graph: a step of this network cannot be recorded; train without it";

/// Whether a step recorded for one batch serves the other.
fn fits<T: Task>(a: &T::Loaded, b: &T::Loaded) -> bool {
    let (ours, theirs) = (T::tensors(a), T::tensors(b));
    T::alike(a, b)
        && ours.len() == theirs.len()
        && (ours.iter().zip(&theirs)).all(|(a, b)| a.size() == b.size() && a.kind() == b.kind())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::ops::Range;

    use tch::Kind;
    use vision_mamba_datasets::Prefetch;
    use vision_mamba_models::Built;

    use super::super::optimizer::{OptimizerConfig, Trained};
    use super::super::profile::Watch;
    use super::super::segmentation::DiceScores;
    use super::super::task::Validation;
    use super::*;
    use crate::cli::args::OptimizerChoice;

    /// A batch is a row; the loss is its product with the weights.
    struct Rows;

    impl Task for Rows {
        type Batch = ();
        type Loaded = Tensor;
        type Scores = DiceScores;
        fn batches(&self, _: Range<u64>, _: usize) -> Result<Prefetch<()>> {
            bail!("none")
        }
        fn load(&self, (): &()) -> Result<Tensor> {
            bail!("none")
        }
        fn loss(&self, _: &Built, _: &Tensor, _: &Watch) -> Result<Tensor> {
            bail!("none")
        }
        fn tensors(batch: &Tensor) -> Vec<&Tensor> {
            vec![batch]
        }
        fn validate(&self, _: &Built, _: Option<f64>) -> Result<Validation<DiceScores>> {
            bail!("none")
        }
    }

    thread_local! {
        /// Weights and row of the last pass.
        static LAST: RefCell<Vec<Tensor>> = const { RefCell::new(vec![]) };
        static RECORDED: Cell<u32> = const { Cell::new(0) };
    }

    fn pass(weights: &Tensor, row: &Tensor) -> Result<Tensor> {
        LAST.set(vec![weights.shallow_clone(), row.shallow_clone()]);
        let loss = (weights * row).sum(Kind::Float);
        loss.f_backward()?;
        Ok(loss.detach())
    }

    /// As a graph would: numbers are written where they were when it was recorded, from what stands where it was then.
    struct Double {
        weights: Tensor,
        row: Tensor,
        gradient: Tensor,
        loss: Tensor,
    }

    impl Record for Double {
        fn record(_: Device, body: impl FnOnce() -> Result<Tensor>) -> Result<(Self, Tensor)> {
            RECORDED.set(RECORDED.get() + 1);
            let mut loss = body()?;
            let [weights, row] = LAST.take().try_into().unwrap();
            let mut gradient = weights.grad();
            // recorded, and not done
            for written in [&mut gradient, &mut loss] {
                let _ = no_grad(|| written.fill_(f64::NAN));
            }
            let told = loss.shallow_clone();
            let double = Self {
                weights,
                row,
                gradient,
                loss,
            };
            Ok((double, told))
        }

        fn play(&self) -> Result<()> {
            no_grad(|| {
                self.gradient.shallow_clone().copy_(&self.row);
                let loss = (&self.weights * &self.row).sum(Kind::Float);
                self.loss.shallow_clone().copy_(&loss);
            });
            Ok(())
        }
    }

    #[test]
    fn steps_are_played_odd_batches_are_not_and_what_was_forgotten_is_recorded_anew() {
        let weights = Tensor::from_slice(&[1f32, 2.0]).set_requires_grad(true);
        let config = OptimizerConfig {
            kind: OptimizerChoice::Sgd,
            weight_decay: 0.0,
            momentum: 0.0,
            betas: (0.9, 0.999),
            eps: 1e-8,
            grad_clip: 1e9,
        };
        let trained = Trained {
            name: "weights".into(),
            tensor: weights.shallow_clone(),
            decays: false,
        };
        let mut optimizer = Optimizer::new(config, vec![trained]);
        let mut recorder = Recorder::<Rows, Double>::new(Device::Cpu);
        let mut expected = [1f32, 2.0];
        let mut losses = vec![];
        for n in 0..12u8 {
            // one number for both weights, once: a batch of another shape
            let odd = n == 6;
            let row = if odd { [1.0, 1.0] } else { [f32::from(n), 1.0] };
            let batch = Tensor::from_slice(if odd { &row[1..] } else { &row });
            let loss = recorder
                .step(&mut optimizer, batch, |row| pass(&weights, row))
                .unwrap();
            losses.push((loss, expected[0] * row[0] + expected[1] * row[1]));
            optimizer.step(0.5, None).unwrap();
            for (w, x) in expected.iter_mut().zip(row) {
                *w -= 0.5 * x;
            }
            assert!(weights.equal(&Tensor::from_slice(&expected)), "step {n}");
            if n == 7 {
                recorder.forget();
            }
        }
        for (n, (loss, product)) in losses.iter().enumerate() {
            assert_eq!(loss.double_value(&[]), f64::from(*product), "step {n}");
        }
        assert_eq!(RECORDED.get(), 2);
    }
}
