//! Results written over their inputs where nobody needs these any more: a prediction then touches half of the memory.
//!
//! Every function takes a tensor that its caller has made and will not look at again. While gradients are wanted, or the forward pass is
//! recorded for export, the result is a new tensor all the same. The numbers are the same bits either way.

use tch::Tensor;

use super::conv::is_recorded;
use super::Activation;

/// Whether a tensor may be written over: gradients are off and nothing is recorded.
fn may_overwrite() -> bool {
    // SAFETY: the function sets one flag of this thread and returns what it was; the second call puts it back.
    #[allow(unsafe_code)]
    let gradients = unsafe {
        let before = torch_sys::at_grad_set_enabled(0);
        torch_sys::at_grad_set_enabled(before);
        before != 0
    };
    !gradients && !is_recorded()
}

/// `x + y`
pub(crate) fn add(mut x: Tensor, y: &Tensor) -> Tensor {
    match may_overwrite() && alike(&x, y) {
        true => x.g_add_(y),
        false => x + y,
    }
}

/// `x * y`
pub(crate) fn multiply(mut x: Tensor, y: &Tensor) -> Tensor {
    match may_overwrite() && alike(&x, y) {
        true => x.g_mul_(y),
        false => x * y,
    }
}

/// An activation of every value.
pub(crate) fn activate(act: Activation, mut x: Tensor) -> Tensor {
    if !may_overwrite() {
        return act.apply(&x);
    }
    match act {
        Activation::Silu => x.silu_(),
        Activation::Gelu => x.gelu_("none"),
        Activation::Relu => x.relu_(),
        Activation::Sigmoid => x.sigmoid_(),
    }
}

/// [`leaky_relu`](super::leaky_relu).
pub(crate) fn leaky_relu(mut x: Tensor, slope: f64) -> Tensor {
    match may_overwrite() && slope == 0.01 {
        true => x.leaky_relu_(),
        false => super::leaky_relu(&x, slope),
    }
}

/// Whether the result of both has the shape and the element type of `x`.
fn alike(x: &Tensor, y: &Tensor) -> bool {
    x.kind() == y.kind() && x.size().ends_with(&y.size())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{no_grad, Device, Kind};

    #[test]
    fn the_same_bits_over_the_input_or_beside_it() {
        tch::manual_seed(1);
        let x = Tensor::randn([3, 5, 7], (Kind::Float, Device::Cpu));
        let y = Tensor::randn([3, 5, 7], (Kind::Float, Device::Cpu));
        let all: [&dyn Fn(Tensor) -> Tensor; 7] = [
            &|x| add(x, &y),
            &|x| multiply(x, &y),
            &|x| activate(Activation::Silu, x),
            &|x| activate(Activation::Gelu, x),
            &|x| activate(Activation::Relu, x),
            &|x| activate(Activation::Sigmoid, x),
            &|x| leaky_relu(x, 0.01),
        ];
        for work in all {
            let kept = x.copy();
            let beside = work(kept.shallow_clone());
            assert!(kept.equal(&x), "gradients are on: nothing is overwritten");
            let over = no_grad(|| work(kept.shallow_clone()));
            assert!(over.equal(&beside));
            assert_eq!(over.data_ptr(), kept.data_ptr());
        }
        let narrow = y.to_kind(Kind::BFloat16);
        let sum = no_grad(|| add(narrow, &x));
        assert_eq!(
            sum.kind(),
            Kind::Float,
            "the wider type cannot go over the narrower"
        );
    }
}
