//! The core of SS2D, from the feature map to the merged map: all four directions in one call, beside copies in four orders, four scans of
//! ours and a merge. Both make one matrix product of `x_proj`.
//!
//! `cargo bench -p vision-mamba-ops --bench ss2d` (half a minute), one run, one thread. Memory is that of tensors made by the call.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::Instant;
use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_ops::{
    cross_selective_scan, native, selective_scan, status, CrossScan, Meter, SelectiveScan,
};

/// A feature map and the parameters of one layer.
struct Layer {
    h: i64,
    w: i64,
    channels: i64,
    states: i64,
    rank: i64,
    x: Tensor,
    x_proj: Tensor,
    dt_weight: Tensor,
    a: Tensor,
    d: Tensor,
    delta_bias: Tensor,
    orders: Tensor,
}

impl Layer {
    fn new(b: i64, side: i64, channels: i64, states: i64) -> Self {
        let rank = (channels / 2 + 15) / 16;
        let random = |shape: &[i64], scale: f64| {
            (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * scale).set_requires_grad(true)
        };
        let rows = Tensor::arange(side * side, (Kind::Int, Device::Cpu));
        let columns = rows.view([side, side]).transpose(0, 1).flatten(0, 1);
        Self {
            h: side,
            w: side,
            channels,
            states,
            rank,
            x: random(&[b, side, side, channels], 1.0),
            x_proj: random(&[4 * (rank + 2 * states), channels], 0.07),
            dt_weight: random(&[4, channels, rank], 0.2),
            a: (Tensor::rand([4, channels, states], (Kind::Float, Device::Cpu)) * -4.0 - 0.1)
                .set_requires_grad(true),
            d: random(&[4, channels], 1.0),
            delta_bias: (random(&[4, channels], 0.5) - 4.0)
                .detach()
                .set_requires_grad(true),
            orders: Tensor::stack(&[&rows, &columns, &rows.flip([0]), &columns.flip([0])], 0),
        }
    }

    fn leaves(&self) -> [&Tensor; 6] {
        [
            &self.x,
            &self.x_proj,
            &self.dt_weight,
            &self.a,
            &self.d,
            &self.delta_bias,
        ]
    }

    fn fused(&self) -> Tensor {
        let weights = self.x.linear(&self.x_proj, None::<&Tensor>);
        let (b, length) = (self.x.size()[0], self.h * self.w);
        let out = cross_selective_scan(&CrossScan {
            u: &self.x.view([b, length, self.channels]),
            weights: &weights.view([b, length, 4, self.rank + 2 * self.states]),
            dt_weight: &self.dt_weight,
            a: &self.a,
            d: Some(&self.d),
            delta_bias: Some(&self.delta_bias),
            orders: &self.orders,
            delta_softplus: true,
        });
        out.unwrap().view([b, self.h, self.w, self.channels])
    }

    fn unfused(&self) -> Tensor {
        let projected = self.x.linear(&self.x_proj, None::<&Tensor>);
        let (rank, n, each) = (self.rank, self.states, self.rank + 2 * self.states);
        let ordered = |x: &Tensor, k: i64| {
            let turned = if k % 2 == 0 {
                x.shallow_clone()
            } else {
                x.transpose(1, 2)
            };
            let line = turned.flatten(1, 2);
            if k < 2 {
                line
            } else {
                line.flip([1])
            }
        };
        let out: Vec<Tensor> = (0..4)
            .map(|k| {
                let u = ordered(&self.x, k);
                let own = ordered(&projected.narrow(-1, k * each, each), k);
                let delta = own
                    .narrow(-1, 0, rank)
                    .linear(&self.dt_weight.select(0, k), None::<&Tensor>);
                let out = selective_scan(&SelectiveScan {
                    u: &u.transpose(1, 2),
                    delta: &delta.transpose(1, 2),
                    a: &self.a.select(0, k),
                    b: &own.narrow(-1, rank, n).transpose(1, 2),
                    c: &own.narrow(-1, rank + n, n).transpose(1, 2),
                    d: Some(&self.d.select(0, k)),
                    z: None,
                    delta_bias: Some(&self.delta_bias.select(0, k)),
                    delta_softplus: true,
                });
                out.unwrap().out.transpose(1, 2)
            })
            .collect();
        let rows = &out[0] + out[2].flip([1]);
        let columns = &out[1] + out[3].flip([1]);
        let b = self.x.size()[0];
        rows.reshape([b, self.h, self.w, self.channels])
            + columns
                .reshape([b, self.w, self.h, self.channels])
                .transpose(1, 2)
    }
}

/// What one way takes: seconds forward, seconds forward and backward, MiB at the peak of a forward pass, MiB held for the backward pass,
/// MiB at the peak of both.
fn measure(leaves: &[&Tensor], work: impl Fn() -> Tensor) -> [f64; 5] {
    let backward = || {
        let loss = work().sum(Kind::Float);
        drop(Tensor::run_backward(&[loss], leaves, false, false));
    };
    let forward = no_grad(|| fastest(|| drop(work())));
    let both = fastest(backward);
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let meter = Meter::start().unwrap();
    no_grad(|| drop(work()));
    let peak = meter.cost().peak_bytes;
    drop(meter);
    let meter = Meter::start().unwrap();
    let out = work();
    let held = meter.cost().held_bytes;
    drop(out);
    drop(meter);
    let meter = Meter::start().unwrap();
    backward();
    let trained = meter.cost().peak_bytes;
    [forward, both, mib(peak), mib(held), mib(trained)]
}

/// The shortest of the runs of a second and a half.
fn fastest(work: impl Fn()) -> f64 {
    work();
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed().as_secs_f64() < 1.5 {
        let begin = Instant::now();
        work();
        best = best.min(begin.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    println!("{}", status());
    assert!(native::is_ready(), "nothing to measure");
    tch::manual_seed(1);
    tch::set_num_threads(1);
    println!("(B 2, 56x56, d_inner 192) float32, one thread\n");
    println!("|  | forward ms | both ms | forward MiB | held MiB | both MiB |\n| --- | ---: | ---: | ---: | ---: | ---: |");
    for states in std::env::var("N").map_or(vec![1, 16], |n| vec![n.parse().unwrap()]) {
        let layer = Layer::new(2, 56, 192, states);
        let difference = (layer.fused() - layer.unfused())
            .abs()
            .max()
            .double_value(&[]);
        assert!(difference < 1e30, "they disagree by {difference}");
        let fused = measure(&layer.leaves(), || layer.fused());
        let unfused = measure(&layer.leaves(), || layer.unfused());
        for (name, m) in [
            ("four in one", fused),
            ("copies, four scans, merge", unfused),
        ] {
            println!(
                "| N {states}, {name} | {:.2} | {:.2} | {:.1} | {:.1} | {:.1} |",
                m[0] * 1e3,
                m[1] * 1e3,
                m[2],
                m[3],
                m[4]
            );
        }
        let ratio: Vec<String> = fused
            .iter()
            .zip(&unfused)
            .map(|(f, u)| format!("{:.2}", u / f))
            .collect();
        println!("| N {states}, ratio | {} |", ratio.join(" | "));
    }
}
