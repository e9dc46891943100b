//! Parts of a network that need not keep their inner values for the backward pass.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;
use vision_mamba_ops::recompute::{is_enabled, recompute};

use crate::ModelError;

/// A part. Where [`is_enabled`] says so, only its inputs are kept, and it is computed again in the backward pass; else it just runs. The
/// backward pass may come after the network is gone, and on a GPU on another thread.
pub struct Part<B>(Arc<Mutex<B>>);

impl<B: 'static> Part<B> {
    /// Makes a part of it.
    pub fn new(part: B) -> Self {
        Self(Arc::new(Mutex::new(part)))
    }

    /// Looks at what it is made of.
    pub fn look<R>(&self, body: impl FnOnce(&B) -> R) -> R {
        body(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `body` on the part and one map.
    pub fn run(
        &self,
        x: &Tensor,
        body: impl Fn(&B, &Tensor) -> Result<Tensor, ModelError> + 'static,
    ) -> Result<Tensor, ModelError> {
        if !is_enabled() {
            return self.look(|part| body(part, x));
        }
        let [y] = self.run_all(&[x.shallow_clone()], move |part, inputs| {
            Ok([body(part, &inputs[0])?])
        })?;
        Ok(y)
    }

    /// Runs `body` on the part and several tensors, to several.
    pub fn run_all<const N: usize>(
        &self,
        inputs: &[Tensor],
        body: impl Fn(&B, &[Tensor]) -> Result<[Tensor; N], ModelError> + 'static,
    ) -> Result<[Tensor; N], ModelError> {
        if !is_enabled() {
            return self.look(|part| body(part, inputs));
        }
        let part = Self(self.0.clone());
        let failure: Rc<RefCell<Option<ModelError>>> = Rc::default();
        let told = failure.clone();
        let outputs = recompute(inputs, N, move |inputs| {
            match part.look(|part| body(part, inputs)) {
                Ok(outputs) => Some(outputs.into()),
                Err(error) => {
                    told.replace(Some(error));
                    None
                }
            }
        });
        if let Some(error) = failure.take() {
            return Err(error);
        }
        outputs?.try_into().map_err(|made: Vec<_>| {
            ModelError::config("", format!("a part gave {} tensors, not {N}", made.len()))
        })
    }
}
