//! The operators beside their tensor reference, both in turn.

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_ops::{native, reference, Activation, CrossScan, Meter, SelectiveScan};

use crate::clock::Clock;
use crate::row::Row;

type Work<'a> = &'a dyn Fn(&[Tensor]) -> Tensor;

/// Times `native` and `plain` on `leaves`, which both take the gradient of.
fn compare(
    clock: Clock,
    what: &str,
    size: String,
    leaves: &[Tensor],
    native: Work,
    plain: Work,
) -> Row {
    let forward = |work: Work| no_grad(|| drop(work(leaves)));
    let both = |work: Work| {
        let loss = work(leaves).sum(Kind::Float);
        drop(Tensor::run_backward(&[loss], leaves, false, false));
    };
    let [ours, theirs] = clock.in_turn([&|| forward(native), &|| forward(plain)]);
    let [ours_both, theirs_both] = clock.in_turn([&|| both(native), &|| both(plain)]);
    Row {
        what: what.to_owned(),
        size,
        forward: ours * 1e3,
        both: Some(ours_both * 1e3),
        peak: peak(clock.device, || forward(native)),
        against: Some("tensor reference"),
        times_forward: Some(theirs / ours),
        times_both: Some(theirs_both / ours_both),
        ..Row::default()
    }
}

/// MiB of tensors at the peak; a GPU's memory is not counted.
pub fn peak(device: Device, work: impl Fn()) -> Option<f64> {
    let meter = Meter::start().ok().filter(|_| device == Device::Cpu)?;
    work();
    Some(meter.cost().peak_bytes / f64::from(1 << 20))
}

fn leaf(t: Tensor) -> Tensor {
    t.detach().set_requires_grad(true)
}

fn scan(clock: Clock, [b, d, length, n]: [i64; 4]) -> Row {
    let options = (Kind::Float, clock.device);
    let random = |shape: &[i64]| leaf(Tensor::randn(shape, options));
    let leaves = [
        random(&[b, d, length]),
        random(&[b, d, length]),
        leaf(-Tensor::rand([d, n], options) * n as f64 - 0.1),
        random(&[b, n, length]),
        random(&[b, n, length]),
        random(&[d]),
        random(&[b, d, length]),
        leaf(Tensor::randn([d], options) - 4.0),
    ];
    let args = |t: &[Tensor], run: &dyn Fn(&SelectiveScan) -> Tensor| {
        run(&SelectiveScan {
            u: &t[0],
            delta: &t[1],
            a: &t[2],
            b: &t[3],
            c: &t[4],
            d: Some(&t[5]),
            z: Some(&t[6]),
            delta_bias: Some(&t[7]),
            delta_softplus: true,
        })
    };
    compare(
        clock,
        "selective_scan",
        format!("B {b}, D {d}, L {length}, N {n}"),
        &leaves,
        &|t| args(t, &|args| native::selective_scan(args).unwrap().out),
        &|t| args(t, &|args| reference::selective_scan(args).unwrap().out),
    )
}

fn cross(clock: Clock, [b, side, d, n]: [i64; 4]) -> Row {
    let options = (Kind::Float, clock.device);
    let (length, rank) = (side * side, (d / 2 + 15) / 16);
    let rows = Tensor::arange(length, (Kind::Int, clock.device));
    let columns = rows.view([side, side]).transpose(0, 1).flatten(0, 1);
    let orders = Tensor::stack(&[&rows, &columns, &rows.flip([0]), &columns.flip([0])], 0);
    let leaves = [
        leaf(Tensor::randn([b, length, d], options)),
        leaf(Tensor::randn([b, length, 4, rank + 2 * n], options) * 0.5),
        leaf(Tensor::randn([4, d, rank], options) * 0.2),
        leaf(-Tensor::rand([4, d, n], options) * n as f64 - 0.1),
        leaf(Tensor::randn([4, d], options)),
        leaf(Tensor::randn([4, d], options) * 0.5 - 4.0),
    ];
    let args = |t: &[Tensor], run: &dyn Fn(&CrossScan) -> Tensor| {
        run(&CrossScan {
            u: &t[0],
            weights: &t[1],
            dt_weight: &t[2],
            a: &t[3],
            d: Some(&t[4]),
            delta_bias: Some(&t[5]),
            orders: &orders,
            delta_softplus: true,
        })
    };
    compare(
        clock,
        "cross_selective_scan",
        format!("B {b}, {side}x{side}, D {d}, N {n}, 4 directions"),
        &leaves,
        &|t| args(t, &|args| native::cross_selective_scan(args).unwrap()),
        &|t| args(t, &|args| reference::cross_selective_scan(args).unwrap()),
    )
}

fn convolution(clock: Clock, [b, d, length]: [i64; 3]) -> Row {
    let options = (Kind::Float, clock.device);
    let random = |shape: &[i64]| leaf(Tensor::randn(shape, options));
    let leaves = [random(&[b, d, length]), random(&[d, 4]), random(&[d])];
    let silu = Activation::Silu;
    compare(
        clock,
        "causal_conv1d",
        format!("B {b}, D {d}, L {length}, 4 taps, SiLU"),
        &leaves,
        &|t| native::causal_conv1d(&t[0], &t[1], Some(&t[2]), silu).unwrap(),
        &|t| reference::causal_conv1d(&t[0], &t[1], Some(&t[2]), silu).unwrap(),
    )
}

/// Every operator, at more sizes unless it should be quick.
pub fn print(clock: Clock, quick: bool) {
    let (scans, maps): (&[_], &[_]) = match (clock.device, quick) {
        (Device::Cpu, true) => (&[[2, 384, 256, 16]], &[[1, 28, 192, 1]]),
        (Device::Cpu, false) => (
            &[[2, 384, 1024, 16], [2, 384, 1024, 1], [1, 64, 8192, 16]],
            &[[2, 56, 192, 1], [2, 56, 192, 16]],
        ),
        (_, true) => (&[[8, 1536, 1024, 16]], &[[32, 28, 384, 1]]),
        (_, false) => (
            &[[8, 1536, 1024, 16], [8, 1536, 4096, 16], [8, 1536, 1024, 1]],
            &[[32, 56, 192, 1], [32, 56, 192, 16]],
        ),
    };
    scans.iter().for_each(|size| scan(clock, *size).print());
    maps.iter().for_each(|size| cross(clock, *size).print());
    convolution(clock, [2, 384, 1024]).print();
}
