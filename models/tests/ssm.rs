//! State space models: the three views of one system, steps against sequences, and what parameters start as.

#![allow(clippy::unwrap_used)]

use tch::{no_grad, Device, Kind, Tensor};
use vision_mamba_models::ssm::hippo::{nplr, Hippo};
use vision_mamba_models::ssm::lti::{convolve, discretise, kernel, recur, Discretisation};
use vision_mamba_models::ssm::s4::{
    Kernel, S4Block, S4BlockConfig, S4Discretisation, S4Init, S4Kernel, S4KernelConfig,
};
use vision_mamba_models::{build, preset, Scope};
use vision_mamba_ops::{selective_scan, SelectiveScan};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

fn largest(t: &Tensor) -> f64 {
    t.abs().max().double_value(&[])
}

/// A diagonal system held over each step is a selective scan whose step size never changes, but for B: the scan takes dt B.
#[test]
fn recurrence_convolution_and_scan_are_one_system() {
    tch::manual_seed(1);
    let (n, length, dt) = (6, 50, 0.1);
    let diagonal = -Tensor::rand([n], DOUBLE) - 0.2;
    let (b, c) = (Tensor::randn([n, 1], DOUBLE), Tensor::randn([1, n], DOUBLE));
    let u = Tensor::randn([length], DOUBLE);
    let (da, _) = discretise(&diagonal.diag(0), &b, dt, Discretisation::ZeroOrderHold).unwrap();
    let db = &b * dt;
    let stepped = recur(&da, &db, &c, &u).unwrap();
    let convolved = convolve(&u, &kernel(&da, &db, &c, length).unwrap()).unwrap();
    let scanned = selective_scan(&SelectiveScan {
        u: &u.view([1, 1, length]),
        delta: &Tensor::full([1, 1, length], dt, DOUBLE),
        a: &diagonal.unsqueeze(0),
        b: &b.transpose(0, 1),
        c: &c,
        d: None,
        z: None,
        delta_bias: None,
        delta_softplus: false,
    })
    .unwrap();
    let scale = largest(&stepped);
    assert!(largest(&(&stepped - convolved)) < 1e-12 * scale);
    assert!(largest(&(&stepped - scanned.out.view([length]))) < 1e-12 * scale);
}

#[test]
fn the_low_rank_form_is_the_matrix() {
    for hippo in [Hippo::LegS, Hippo::LegT, Hippo::LagT, Hippo::Fourier] {
        for n in [8, 32] {
            let rank = if hippo == Hippo::LegT { 2 } else { 1 };
            let form = nplr(hippo, n, rank, None).unwrap();
            let (a, b) = hippo.transition(n);
            let whole = |x: &Tensor| form.v.matmul(x).real() * 2.0;
            let p = hippo.rank_correction(n, rank).unwrap();
            let normal = whole(
                &form
                    .w
                    .diag_embed(0, -2, -1)
                    .matmul(&form.v.conj_physical().transpose(0, 1)),
            );
            let again = normal - p.transpose(0, 1).matmul(&p);
            assert!(largest(&(again - &a)) < 1e-9 * largest(&a), "{hippo:?} {n}");
            let b_again = whole(&form.b.unsqueeze(1));
            assert!(
                largest(&(b_again - &b)) < 1e-9 * largest(&b),
                "{hippo:?} {n}"
            );
        }
    }
    assert!(nplr(Hippo::LegS, 7, 1, None).is_err());
    assert!(nplr(Hippo::LegT, 8, 1, None).is_err());
    assert!(nplr(Hippo::Lmu, 8, 2, None).is_err());
}

/// Kernels against the dense system's own taps, and layers against their steps; longer requests double the length that C is set up for.
#[test]
fn kernels_and_steps_agree() {
    tch::manual_seed(2);
    let dplr = S4Init::Hippo(Hippo::LegS);
    for (which, init, disc) in [
        (Kernel::Dplr, dplr, S4Discretisation::Bilinear),
        (Kernel::Diag, S4Init::DiagInv, S4Discretisation::Bilinear),
        (Kernel::Diag, S4Init::DiagLegs, S4Discretisation::Zoh),
    ] {
        let kernel = S4KernelConfig {
            d_state: 16,
            init,
            disc,
            n_ssm: Some(2),
            dt_min: 0.01,
            ..S4KernelConfig::new(6, which)
        };
        let config = S4BlockConfig {
            kernel,
            l_max: None,
            bidirectional: false,
        };
        let (net, _) = Scope::build(Device::Cpu, |s| S4Block::new(s, config)).unwrap();
        for length in [20, 33, 70] {
            let x = Tensor::randn([2, length, 6], (Kind::Float, Device::Cpu));
            let whole = no_grad(|| net.forward(&x)).unwrap();
            let system = no_grad(|| net.stepping()).unwrap();
            let mut state = system.start(2);
            let mut tokens = vec![];
            for token in x.unbind(1) {
                let (y, next) = no_grad(|| net.step(&token, &system, &state));
                tokens.push(y);
                state = next;
            }
            let error = largest(&(Tensor::stack(&tokens, 1) - &whole)) / largest(&whole);
            assert!(error < 1e-4, "{which:?} {init:?} {length}: {error:e}");
        }
    }
}

#[test]
fn s4_starts_as_the_reference() {
    tch::manual_seed(3);
    let (n, h) = (16i64, 200);
    let start = |kernel, init| {
        let config = S4KernelConfig {
            d_state: n,
            init,
            ..S4KernelConfig::new(h, kernel)
        };
        Scope::build(Device::Cpu, |s| S4Kernel::new(s, config))
            .unwrap()
            .1
    };
    let row = |t: &Tensor| Vec::<f64>::try_from(t.get(0).to_kind(Kind::Double)).unwrap();
    let close = |a: f64, b: f64| (a - b).abs() < 1e-4 * b.abs().max(1.0);
    let pi = std::f64::consts::PI;
    type Rule<'a> = (S4Init, &'a dyn Fn(f64, f64) -> f64);
    let rules: [Rule; 2] = [
        (S4Init::DiagLin, &|i, _| pi * i),
        (S4Init::DiagInv, &|i, n| {
            n / pi * (n / (2.0 * i + 1.0) - 1.0)
        }),
    ];
    for (init, imaginary) in rules {
        let real = 0.5f64;
        let params = start(Kernel::Diag, init);
        assert!(row(params.get("A_real").unwrap())
            .iter()
            .all(|a| close(*a, real.ln())));
        for (i, found) in row(params.get("A_imag").unwrap()).iter().enumerate() {
            let expected = imaginary(i as f64, n as f64).max(1e-4);
            assert!(
                close(*found, expected),
                "{init:?} {i}: {found}, expected {expected}"
            );
        }
        let b = params.get("B").unwrap();
        assert!(largest(&(b.select(-1, 0) - 1.0)) == 0.0 && largest(&b.select(-1, 1)) == 0.0);
        let dt = params.get("inv_dt").unwrap();
        assert!(dt.min().double_value(&[]) >= 0.001f64.ln() - 1e-6);
        assert!(dt.max().double_value(&[]) <= 0.1f64.ln() + 1e-6);
        // complex normal of variance one: each part a half
        let c = params.get("C").unwrap();
        assert!((c.square().mean(Kind::Double).double_value(&[]) - 0.5).abs() < 0.06);
        assert!(!params.takes_weight_decay("A_real") && params.takes_weight_decay("C"));
    }
    // LegS: real part a half, imaginary parts those of the normal matrix
    let params = start(Kernel::Dplr, S4Init::Hippo(Hippo::LegS));
    let w = nplr(Hippo::LegS, n, 1, None).unwrap().w;
    let wanted = Vec::<f64>::try_from(-w.imag()).unwrap();
    for (found, expected) in row(params.get("A_imag").unwrap()).iter().zip(wanted) {
        assert!(close(*found, expected), "{found}, expected {expected}");
    }
    assert_eq!(params.get("P").unwrap().size(), [1, h, n / 2, 2]);
    assert_eq!(params.get("l_kernel").unwrap().int64_value(&[]), 0);
}

#[test]
fn s4_stands_in_for_mamba() {
    for (name, kernel) in [
        ("umamba_bot_s4_2d", "l_kernel"),
        ("umamba_bot_s4d_2d", "A_real"),
    ] {
        let sizes = [
            ("training_patch", "[32,32]"),
            ("base_features", "4"),
            ("max_features", "8"),
        ];
        let spec = preset(name).unwrap().with_overrides(&sizes).unwrap();
        let built = build(&spec, Device::Cpu).unwrap();
        assert!(
            built.params.entries().any(|(n, _, _)| n.ends_with(kernel)),
            "{name}"
        );
        assert!(
            !built.params.entries().any(|(n, _, _)| n.contains("mamba.")),
            "{name}"
        );
        let odd = preset(name)
            .unwrap()
            .with_overrides(&[("d_state", "5")])
            .unwrap();
        let error = build(&odd, Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("even"), "{error}");
    }
}
