//! What a scan must do whatever its numbers are: it is linear in `u`, can be cut anywhere, does not care how often it is turned round, and keeps its
//! accuracy at lengths around powers of two, at extremes, and in half precision.

#![allow(clippy::unwrap_used)]

mod util;

use tch::{Device, Kind, Tensor};
use util::{call, cotangents, error, results, widen, Case, Rng};
use vision_mamba_ops::{native, reference, CrossScan};

type Inputs = Vec<(&'static str, Tensor)>;

fn of<'a>(inputs: &'a Inputs, name: &str) -> &'a Tensor {
    &inputs.iter().find(|(n, _)| *n == name).unwrap().1
}

fn with(inputs: &Inputs, changed: &[(&str, Tensor)]) -> Inputs {
    let change = |name: &str, t: &Tensor| {
        let found = changed.iter().find(|(n, _)| *n == name);
        found.map_or_else(|| t.detach(), |(_, t)| t.detach())
    };
    (inputs.iter())
        .map(|(name, t)| (*name, change(name, t)))
        .collect()
}

fn scan(inputs: &Inputs) -> (Tensor, Tensor) {
    let result = call(native::selective_scan, inputs, true).unwrap();
    (result.out, result.last_state)
}

#[test]
fn it_is_linear_in_u() {
    let mut rng = Rng(31);
    for states in [1, 7, 16] {
        let inputs = Case::plain(2, 37, 70, states).inputs(&mut rng);
        let first = of(&inputs, "u").detach();
        let second = (rng.tensor(&[2, 37, 70], -1.0, 1.0)).to_kind(Kind::Float);
        let (a, b) = (scan(&inputs), scan(&with(&inputs, &[("u", second.copy())])));
        let sum = scan(&with(&inputs, &[("u", &first * 2.0 - &second * 3.0)]));
        // three roundings of sums of up to 70 terms that partly cancel: 4e-7 measured
        assert!(error(&sum.0, &(&a.0 * 2.0 - &b.0 * 3.0)) < 4e-6);
        assert!(error(&sum.1, &(&a.1 * 2.0 - &b.1 * 3.0)) < 4e-6);
    }
}

/// The state at the cut reaches the second part by a first step of its own: of size one, with no decay, and the state as its input.
#[test]
fn cutting_a_sequence_is_carrying_the_state() {
    let mut rng = Rng(32);
    let (b, d, n, length) = (2, 19, 1, 90);
    let case = Case {
        z: false,
        d: false,
        bias: false,
        ..Case::plain(b, d, length, n)
    };
    let inputs = case.inputs(&mut rng);
    let raw = |inputs: &Inputs| {
        let result = call(native::selective_scan, inputs, false).unwrap();
        (result.out, result.last_state)
    };
    // steps without softplus must not be negative
    let inputs = with(&inputs, &[("delta", of(&inputs, "delta").abs())]);
    let (whole, last) = raw(&inputs);
    let timed = ["u", "delta", "B", "C"];
    for cut in [1, 31, 32, 33, 64, 89] {
        let part = |start: i64, count: i64| -> Inputs {
            let cut_out = |name: &str, t: &Tensor| match timed.contains(&name) && t.dim() >= 3 {
                true => t.narrow(-1, start, count),
                false => t.detach(),
            };
            (inputs.iter())
                .map(|(name, t)| (*name, cut_out(name, t)))
                .collect()
        };
        let (left, state) = raw(&part(0, cut));
        let rest = part(cut, length - cut);
        // one step in front, whose input times step times B is the state (N = 1)
        let front = |t: &Tensor, first: Tensor| Tensor::cat(&[&first.to_kind(t.kind()), t], -1);
        let one = |t: &Tensor| Tensor::ones_like(&t.narrow(-1, 0, 1));
        let carried: Inputs = (rest.iter())
            .map(|(name, t)| {
                let t = match *name {
                    "u" => front(t, state.view([b, d, 1])),
                    "delta" | "B" | "C" => front(t, one(t)),
                    _ => t.detach(),
                };
                (*name, t)
            })
            .collect();
        let (right, end) = raw(&carried);
        assert!(error(&left, &whole.narrow(-1, 0, cut)) < 1e-6, "cut {cut}");
        let right = right.narrow(-1, 1, length - cut);
        assert!(
            error(&right, &whole.narrow(-1, cut, length - cut)) < 2e-6,
            "cut {cut}"
        );
        assert!(error(&end, &last) < 2e-6, "cut {cut}");
    }
}

/// A direction that walks from the end over reversed tokens is the forward direction, reversed; reversed again it is the same bits.
#[test]
fn reversing_twice_changes_nothing() {
    let mut rng = Rng(33);
    let (b, d, n, rank) = (2, 21, 4, 3);
    let f32s = |t: Tensor| t.to_kind(Kind::Float);
    for length in [1, 2, 31, 32, 33, 100] {
        let u = f32s(rng.tensor(&[b, length, d], -1.0, 1.0));
        let weights = f32s(rng.tensor(&[b, length, 1, rank + 2 * n], -1.0, 1.0));
        let dt_weight = f32s(rng.tensor(&[1, d, rank], -0.5, 0.5));
        let a = f32s(rng.tensor(&[1, d, n], -4.0, -0.1));
        let forwards = Tensor::arange(length, (Kind::Int, Device::Cpu)).unsqueeze(0);
        let walk = |u: &Tensor, weights: &Tensor, orders: &Tensor| {
            native::cross_selective_scan(&CrossScan {
                u,
                weights,
                dt_weight: &dt_weight,
                a: &a,
                d: None,
                delta_bias: None,
                orders,
                delta_softplus: true,
            })
            .unwrap()
        };
        let plain = walk(&u, &weights, &forwards);
        let turned = walk(&u.flip([1]), &weights.flip([1]), &forwards.flip([1]));
        assert!(turned.flip([1]).equal(&plain), "length {length}");
    }
}

/// Outputs and gradients are sums whose terms partly cancel, by chance almost wholly: an error is held against the same sums of the inputs' sizes, where
/// nothing cancels. The largest seen was 3.3e-7; the tensor reference's in float32, 1.7e-7.
#[test]
fn lengths_around_powers_of_two() {
    let mut rng = Rng(34);
    let powers = [4, 8, 16, 32, 64, 128, 256, 1024];
    let around = powers.iter().flat_map(|k| [k - 1, *k, k + 1]);
    let sizes = |inputs: &Inputs| -> Inputs {
        let signed = ["A", "delta", "delta_bias"];
        (inputs.iter())
            .map(|(name, t)| match signed.contains(name) {
                true => (*name, t.shallow_clone()),
                false => (*name, t.detach().abs().set_requires_grad(true)),
            })
            .collect()
    };
    for length in [1, 2].into_iter().chain(around) {
        for states in [1, 16] {
            let case = Case::plain(1, 18, length, states);
            let inputs = case.inputs(&mut rng);
            let cot = cotangents(&mut rng, &case);
            let wide = widen(&inputs);
            let exact = results(reference::selective_scan, &wide, true, &cot);
            let whole = results(
                reference::selective_scan,
                &sizes(&wide),
                true,
                &[cot[0].abs(), cot[1].abs()],
            );
            let ours = results(native::selective_scan, &inputs, true, &cot);
            for (i, (name, exact)) in exact.iter().enumerate() {
                let size = |t: &Tensor| t.abs().max().double_value(&[]);
                let scale = size(exact).max(size(&whole[i].1)).max(1e-30);
                let off = size(&(ours[i].1.to_kind(Kind::Double) - exact)) / scale;
                assert!(
                    off <= 1e-6,
                    "{name} at length {length}, N {states}: {off:e}"
                );
            }
        }
    }
}

/// The root mean square error of a scan in half precision, against that of the tensor reference all of whose steps round to the same type.
#[test]
fn half_precision_is_no_worse_than_plain_tensors() {
    let mut rng = Rng(35);
    for kind in [Kind::BFloat16, Kind::Half] {
        for states in [1, 16] {
            let rounded: Inputs = (Case::plain(2, 48, 200, states).inputs(&mut rng).iter())
                .map(|(name, t)| (*name, t.detach().to_kind(kind)))
                .collect();
            // the operator takes what belongs to channels in float32
            let inputs: Inputs = (rounded.iter())
                .map(|(name, t)| match *name {
                    "A" | "D" | "delta_bias" => (*name, t.to_kind(Kind::Float)),
                    _ => (*name, t.shallow_clone()),
                })
                .collect();
            let wide: Inputs = (inputs.iter())
                .map(|(name, t)| (*name, t.to_kind(Kind::Double)))
                .collect();
            let exact = call(reference::selective_scan, &wide, true).unwrap().out;
            let rms = |t: &Tensor| {
                let off = t.to_kind(Kind::Double) - &exact;
                off.square().mean(Kind::Double).sqrt().double_value(&[])
            };
            let ours = rms(&scan(&inputs).0);
            let plain = rms(&step_by_step(&rounded));
            assert!(
                ours <= 2.0 * plain,
                "{kind:?} N {states}: {ours:e}, plain {plain:e}"
            );
        }
    }
}

/// The definition in the inputs' own type, every operation rounding to it.
fn step_by_step(inputs: &Inputs) -> Tensor {
    let get = |name: &str| of(inputs, name);
    let step = (get("delta") + get("delta_bias").unsqueeze(-1)).softplus();
    let (u, a) = (get("u"), get("A"));
    let mut h = Tensor::zeros_like(&(u.select(-1, 0).unsqueeze(-1) * a));
    let out: Vec<Tensor> = (0..u.size()[2])
        .map(|t| {
            let at = |x: &Tensor| x.select(-1, t);
            let dt = at(&step).unsqueeze(-1);
            let input = at(u).unsqueeze(-1) * &dt * at(get("B")).unsqueeze(1);
            h = (&dt * a).exp() * &h + input;
            let c = at(get("C")).unsqueeze(1);
            (&h * c).sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>)
        })
        .collect();
    let y = Tensor::stack(&out, -1) + get("D").unsqueeze(-1) * u;
    y * get("z").silu()
}
