//! Speed of the native scan, in one run and one table, beside two plain-tensor loops: the best one known (`reference.rs`, which
//! prepares a chunk of steps at a time, to stay in cache) and the common one that prepares and unbinds all steps at once.
//!
//! `cargo bench -p vision-mamba-ops` (a minute or two). Every figure is the fastest of several runs; `ns` is nanoseconds for one
//! (batch, channel, step), all states together. Other programs at work spoil the figures: look at the ratios, or wait.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::Instant;
use tch::{Device, Kind, Tensor};
use vision_mamba_ops::{native, reference, status, OpsError, ScanOutput, SelectiveScan};

type Scan = fn(&SelectiveScan) -> Result<ScanOutput, OpsError>;

struct Problem {
    batch: i64,
    channels: i64,
    length: i64,
    states: i64,
    kind: Kind,
    channels_last: bool,
    gated: bool,
}

impl Problem {
    fn plain(batch: i64, channels: i64, length: i64, states: i64) -> Self {
        Problem {
            batch,
            channels,
            length,
            states,
            kind: Kind::Float,
            channels_last: false,
            gated: false,
        }
    }

    fn elements(&self) -> f64 {
        (self.batch * self.channels * self.length) as f64
    }

    fn inputs(&self, gradients: bool) -> Vec<Tensor> {
        let Problem {
            batch: b,
            channels: d,
            length: l,
            states: n,
            kind,
            ..
        } = *self;
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
        let steps = (Tensor::rand([b, d, l], (Kind::Float, Device::Cpu)) * 0.5).to_kind(kind);
        let a = Tensor::rand([d, n], (Kind::Float, Device::Cpu)) * -4.0 - 0.1;
        let mut all = vec![
            random(&[b, d, l]),
            steps,
            a,
            random(&[b, n, l]),
            random(&[b, n, l]),
            random(&[b, d, l]),
        ];
        if self.channels_last {
            for i in [0, 1, 3, 4, 5] {
                all[i] = all[i].transpose(1, 2).contiguous().transpose(1, 2);
            }
        }
        all.into_iter()
            .map(|t| t.detach().set_requires_grad(gradients))
            .collect()
    }

    fn call(&self, scan: Scan, t: &[Tensor]) -> Tensor {
        let z = self.gated.then_some(&t[5]);
        let (d, delta_bias, delta_softplus) = (None, None, self.gated);
        let args = SelectiveScan {
            u: &t[0],
            delta: &t[1],
            a: &t[2],
            b: &t[3],
            c: &t[4],
            d,
            z,
            delta_bias,
            delta_softplus,
        };
        scan(&args).unwrap().out
    }

    /// Seconds of the forward pass, and of the forward and backward pass.
    fn times(&self, scan: Scan, budget: f64) -> (f64, f64) {
        let inputs = self.inputs(false);
        let forward = tch::no_grad(|| fastest(budget, || drop(self.call(scan, &inputs))));
        let inputs = self.inputs(true);
        let leaves = &inputs[..if self.gated { 6 } else { 5 }];
        let both = fastest(budget, || {
            let loss = self.call(scan, &inputs).sum(Kind::Float);
            drop(Tensor::run_backward(&[loss], leaves, false, false));
        });
        (forward, both)
    }

    fn row(&self, name: &str) -> (f64, f64) {
        let (forward, both) = self.times(native::selective_scan, 1.0);
        let ns = |seconds: f64| seconds * 1e9 / self.elements();
        println!(
            "  {name:<28} {:9.3} ms {:7.2} ns {:9.3} ms {:7.2} ns",
            forward * 1e3,
            ns(forward),
            both * 1e3,
            ns(both)
        );
        (forward, both)
    }
}

/// Decays and inputs of all steps at once, unbound once: linear in the length, but out of cache.
fn unbound(args: &SelectiveScan) -> Result<ScanOutput, OpsError> {
    // (B, D, L) -> (L, B, D, 1), (B, N, L) -> (L, B, 1, N)
    let rows = |t: &Tensor| t.permute([2, 0, 1]).unsqueeze(-1);
    let weights = |t: &Tensor| t.permute([2, 0, 1]).unsqueeze(2);
    let decays = (rows(args.delta) * args.a).exp();
    let inputs = rows(&(args.delta * args.u)) * weights(args.b);
    let mut last_state = Tensor::zeros(
        [decays.size()[1], decays.size()[2], decays.size()[3]],
        (Kind::Float, Device::Cpu),
    );
    let mut outputs = Vec::new();
    for ((decay, input), c) in decays
        .unbind(0)
        .iter()
        .zip(&inputs.unbind(0))
        .zip(&weights(args.c).unbind(0))
    {
        last_state = input.f_addcmul(decay, &last_state)?;
        outputs.push((&last_state * c).sum_dim_intlist(-1, false, Kind::Float));
    }
    Ok(ScanOutput {
        out: Tensor::stack(&outputs, 2),
        last_state,
    })
}

/// The shortest time, over `budget` seconds but at least three runs after a first one.
fn fastest(budget: f64, mut work: impl FnMut()) -> f64 {
    work();
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || start.elapsed().as_secs_f64() < budget {
        let begin = Instant::now();
        work();
        best = best.min(begin.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// The process's largest memory so far, in MB, from the system's own account.
fn peak_memory() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|kb| kb.parse::<f64>().ok())
        .unwrap_or(f64::NAN)
        / 1024.0
}

fn main() {
    println!(
        "{}; libtorch's threads: {}",
        status(),
        tch::get_num_threads()
    );
    assert!(native::is_ready(), "nothing to measure");
    tch::manual_seed(1);
    tch::set_num_threads(1);

    let standard = Problem::plain(2, 384, 1024, 16);
    let before = peak_memory();
    println!("\n(B 2, D 384, L 1024, N 16) float32, one thread      forward                  forward + backward");
    let (native_forward, native_both) = standard.row("native");
    let after_native = peak_memory();
    for (name, scan) in [
        ("best plain-tensor loop", reference::selective_scan as Scan),
        ("loop unbound at once", unbound),
    ] {
        let (forward, both) = standard.times(scan, 2.0);
        println!(
            "  {name:<28} {:9.1} ms {:21.1} ms",
            forward * 1e3,
            both * 1e3
        );
        let (forward, both) = (forward / native_forward, both / native_both);
        println!(
            "  {:<28} {forward:9.1} times {both:18.1} times the native time",
            ""
        );
    }
    let (native, loops) = (after_native - before, peak_memory() - after_native);
    println!("  memory at its peak grew by {native:.0} MB with the native scan, then by {loops:.0} MB with the loops");

    println!("\nthreads, same sizes");
    for threads in [2, 4] {
        if std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= threads as usize) {
            tch::set_num_threads(1);
            let (forward, both) = standard.times(native::selective_scan, 1.0);
            tch::set_num_threads(threads);
            let (forward_n, both_n) = standard.times(native::selective_scan, 1.0);
            println!(
                "  {threads} threads are {:.2} (forward) and {:.2} (both) times faster than 1",
                forward / forward_n,
                both / both_n
            );
        }
    }
    tch::set_num_threads(1);

    println!("\nforms, (B 2, D 384, L 1024, N 16)");
    Problem {
        channels_last: true,
        ..Problem::plain(2, 384, 1024, 16)
    }
    .row("channels last");
    Problem {
        gated: true,
        ..Problem::plain(2, 384, 1024, 16)
    }
    .row("with z and softplus");
    for (name, kind) in [("bfloat16", Kind::BFloat16), ("float16", Kind::Half)] {
        Problem {
            kind,
            ..Problem::plain(2, 384, 1024, 16)
        }
        .row(name);
    }

    println!("\nstates, (B 2, D 384, L 1024), and in parentheses ns a state forward and both");
    for states in [1, 2, 4, 8, 16, 32, 64] {
        let problem = Problem::plain(2, 384, 1024, states);
        let (forward, both) = problem.row(&format!("N {states}"));
        let each = 1e9 / problem.elements() / states as f64;
        println!("  {:<28} ({:.3}, {:.3})", "", forward * each, both * each);
    }
    println!("\nin cache, (B 1, D 64, L 512)");
    for states in [1, 16] {
        Problem::plain(1, 64, 512, states).row(&format!("N {states}"));
    }

    println!("\nlength, (B 1, D 64, N 16): linear time keeps ns constant");
    for power in 6..=16 {
        let length = 1 << power;
        Problem::plain(1, 64, length, 16).row(&format!("L {length}"));
    }
}
