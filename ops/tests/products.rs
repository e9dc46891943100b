//! Products are kept, each once, and can be run again.

#![allow(clippy::unwrap_used)]

use tch::{Device, Kind, Tensor};
use vision_mamba_ops::{causal_conv1d, Activation, Meter, Products};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

#[test]
fn products_and_convolutions_are_kept_and_run_again() {
    let (x, w) = (Tensor::ones([64, 256], F32), Tensor::ones([128, 256], F32));
    let image = Tensor::ones([2, 8, 40, 40], F32);
    let kernel = Tensor::ones([8, 8, 3, 3], F32);
    let line = Tensor::ones([2, 8, 40], F32);
    let taps = Tensor::ones([8, 4], F32);
    let work = || {
        let products = x.linear(&w, None::<&Tensor>).sum(Kind::Float);
        let convolved = image.conv2d(&kernel, None::<&Tensor>, [1, 1], [1, 1], [1, 1], 1);
        let causal = causal_conv1d(&line, &taps, None, Activation::None).unwrap();
        products + convolved.sum(Kind::Float) + causal.sum(Kind::Float)
    };
    let (products, sum) = Products::of(work).unwrap();
    assert!(sum.double_value(&[]) > 0.0);
    assert_eq!(products.count(), 3);
    let counted = |work: &dyn Fn()| {
        let meter = Meter::start().unwrap();
        work();
        meter.cost().product_multiply_adds
    };
    let alone = counted(&|| products.run().unwrap());
    assert!(alone > 0.0);
    assert_eq!(alone, counted(&|| drop(work())));
    let (again, done) = Products::of(|| products.run()).unwrap();
    assert!(done.is_ok());
    assert_eq!(again.count(), 3);
}

#[test]
fn nested_work_is_refused_and_the_thread_is_free_after_a_panic() {
    let (_, inner) = Products::of(|| Products::of(|| ()).err()).unwrap();
    assert!(inner.unwrap().to_string().contains("already"));
    assert!(std::panic::catch_unwind(|| Products::of(|| panic!("inside"))).is_err());
    assert!(Products::of(|| ()).is_ok());
}
