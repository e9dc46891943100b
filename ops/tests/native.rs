//! The native operators against the reference, which is their specification.
//!
//! `cargo test --release -p vision-mamba-ops --test native`
#![allow(clippy::unwrap_used)]

mod util;

use std::process::Command;
use tch::{CModule, Kind, Tensor};
use util::{check, cotangents, error, results, Case, Form, Rng};
use vision_mamba_ops::{native, reference, status, Activation, LibraryStatus, OpsError};

#[test]
fn random_forms_shapes_strides_and_types() {
    let mut rng = Rng(1);
    for _ in 0..60 {
        let case = Case::random(&mut rng);
        check(native::selective_scan, &case, &mut rng);
    }
}

/// The tests above and below on the instruction sets that this processor would not choose.
#[test]
fn slower_instruction_sets_agree_too() {
    let LibraryStatus::Ready { isa: chosen, .. } = status() else {
        panic!("{}", status())
    };
    if std::env::var_os("VISION_MAMBA_OPS_ISA").is_some() {
        return assert_eq!(std::env::var("VISION_MAMBA_OPS_ISA").as_ref(), Ok(chosen));
        // a child of the below
    }
    let all = ["portable", "avx2", "avx512"];
    let best = all.iter().position(|isa| isa == chosen).unwrap();
    for isa in &all[..best] {
        let child = Command::new(std::env::current_exe().unwrap())
            .env("VISION_MAMBA_OPS_ISA", isa)
            .output()
            .unwrap();
        assert!(
            child.status.success(),
            "{isa}: {}",
            String::from_utf8_lossy(&child.stdout)
        );
    }
}

#[test]
fn mixed_forms_and_groups_of_b_and_c() {
    let mut rng = Rng(2);
    for b in [
        Form::Constant,
        Form::Shared,
        Form::Grouped(2),
        Form::Grouped(3),
    ] {
        for c in [
            Form::Constant,
            Form::Shared,
            Form::Grouped(2),
            Form::Grouped(3),
        ] {
            check(
                native::selective_scan,
                &Case {
                    b,
                    c,
                    ..Case::plain(2, 36, 37, 5)
                },
                &mut rng,
            );
        }
    }
}

#[test]
fn many_channels_share_the_tasks_between_blocks() {
    // 300 channels are split over several tasks with several blocks each, the last not full.
    let mut rng = Rng(3);
    check(
        native::selective_scan,
        &Case::plain(2, 300, 70, 16),
        &mut rng,
    );
    check(
        native::selective_scan,
        &Case {
            b: Form::Grouped(4),
            c: Form::Grouped(4),
            ..Case::plain(2, 600, 40, 1)
        },
        &mut rng,
    );
}

#[test]
fn a_long_sequence() {
    let case = Case {
        d: false,
        z: false,
        ..Case::plain(1, 2, 65536, 3)
    };
    check(native::selective_scan, &case, &mut Rng(4));
}

#[test]
fn decays_that_underflow_are_zero() {
    // exp(-4 * 3000) is zero in any type; the scan stays finite, and so do the gradients.
    let mut rng = Rng(5);
    for kind in [Kind::Float, Kind::Double] {
        check(
            native::selective_scan,
            &Case {
                step: 3000.0,
                kind,
                ..Case::plain(2, 20, 50, 6)
            },
            &mut rng,
        );
    }
}

#[test]
fn nan_stays_nan() {
    let mut inputs = Case::plain(1, 3, 40, 4).inputs(&mut Rng(6));
    for (name, t) in &mut inputs {
        *t = t.detach().contiguous();
        if *name == "delta" {
            let _ = t.narrow(1, 1, 1).narrow(2, 20, 1).fill_(f64::NAN);
        }
    }
    let out = util::call(native::selective_scan, &inputs, true)
        .unwrap()
        .out;
    let nan = |channel: i64, from: i64, count: i64| {
        out.narrow(1, channel, 1).narrow(2, from, count).isnan()
    };
    assert!(
        bool::try_from(nan(1, 20, 20).all()).unwrap(),
        "NaN reaches all later steps"
    );
    assert!(
        !bool::try_from(nan(1, 0, 20).any()).unwrap(),
        "and no earlier one"
    );
    assert!(
        !bool::try_from(nan(0, 0, 40).any()).unwrap()
            && !bool::try_from(nan(2, 0, 40).any()).unwrap()
    );
}

#[test]
fn half_types_keep_their_small_and_large_numbers() {
    for (kind, values) in [
        (
            Kind::Half,
            [
                6e-8f64,
                5.9e-5,
                6.2e-5,
                65504.0,
                -65504.0,
                0.1,
                -0.0,
                f64::INFINITY,
            ],
        ),
        (
            Kind::BFloat16,
            [
                2e-38,
                3e38,
                -3e38,
                0.1,
                1.0,
                -0.0,
                1.00390625,
                f64::INFINITY,
            ],
        ),
    ] {
        // A convolution of width 1 with weight 1 copies, through float32 and back.
        let x = Tensor::from_slice(&values).to_kind(kind).reshape([1, 1, 8]);
        let one = Tensor::ones([1, 1], (Kind::Float, tch::Device::Cpu));
        let y = native::causal_conv1d(&x, &one, None, Activation::None).unwrap();
        assert_eq!(
            Vec::<f64>::try_from(y.flatten(0, -1)).unwrap(),
            Vec::<f64>::try_from(x.flatten(0, -1)).unwrap()
        );
    }
}

#[test]
fn an_expanded_tensor_and_an_empty_batch() {
    let mut rng = Rng(7);
    let case = Case {
        z: false,
        d: false,
        bias: false,
        ..Case::plain(2, 18, 20, 4)
    };
    let mut inputs = case.inputs(&mut rng);
    inputs[0].1 = rng
        .tensor(&[1, 18, 1], -1.0, 1.0)
        .to_kind(Kind::Float)
        .expand([2, 18, 20], false);
    inputs[3].1 = rng
        .tensor(&[1, 1, 20], -1.0, 1.0)
        .to_kind(Kind::Float)
        .expand([2, 4, 20], false);
    let ours = util::call(native::selective_scan, &inputs, true)
        .unwrap()
        .out;
    let expected = util::call(reference::selective_scan, &util::widen(&inputs), true)
        .unwrap()
        .out;
    assert!(error(&ours, &expected) < 1e-5);

    let empty: Vec<_> = Case::plain(0, 5, 6, 3).inputs(&mut rng);
    let results = results(
        native::selective_scan,
        &empty,
        true,
        &cotangents(&mut rng, &Case::plain(0, 5, 6, 3)),
    );
    assert_eq!(results[0].1.size(), [0, 5, 6]);
    assert_eq!(results[1].1.size(), [0, 5, 3]);
    assert!(
        results[4].0.ends_with('A') && results[4].1.abs().sum(Kind::Float).double_value(&[]) == 0.0
    );
}

#[test]
fn gradients_are_the_same_bits_every_time_and_for_any_number_of_threads() {
    let mut rng = Rng(8);
    for case in [
        Case::plain(2, 300, 130, 16),
        Case {
            b: Form::Grouped(2),
            ..Case::plain(3, 66, 257, 1)
        },
    ] {
        let inputs = case.inputs(&mut rng);
        let cot = cotangents(&mut rng, &case);
        tch::set_num_threads(1);
        let first = results(native::selective_scan, &inputs, true, &cot);
        for threads in [1, 2, 3, 7] {
            tch::set_num_threads(threads);
            for ((name, a), (_, b)) in
                first
                    .iter()
                    .zip(&results(native::selective_scan, &inputs, true, &cot))
            {
                assert_eq!(a, b, "{name} with {threads} threads");
            }
        }
    }
}

#[test]
fn convolutions() {
    let mut rng = Rng(9);
    for (i, width) in [1i64, 2, 3, 4, 5, 70, 4, 4, 4].into_iter().enumerate() {
        for length in [1i64, 2, 63, 64, 65, 200] {
            let kind = if i < 6 {
                Kind::Float
            } else {
                [Kind::Double, Kind::BFloat16, Kind::Half][i - 6]
            };
            let channels = rng.pick(&[1, 7, 16, 37]);
            let activation = rng.pick(&[Activation::None, Activation::Silu]);
            let mut leaf = |shape: &[i64]| rng.tensor(shape, -1.0, 1.0).to_kind(kind);
            let (x, weight, bias) = (
                leaf(&[2, channels, length]),
                leaf(&[channels, width]),
                leaf(&[channels]),
            );
            let x = rng.restride(&x);
            let with_bias = rng.next().is_multiple_of(2);
            let cot = rng.tensor(&[2, channels, length], -1.0, 1.0).to_kind(kind);
            let run = |op: fn(
                &Tensor,
                &Tensor,
                Option<&Tensor>,
                Activation,
            ) -> Result<Tensor, OpsError>,
                       kind: Kind| {
                let leaf = |t: &Tensor| t.to_kind(kind).detach().set_requires_grad(true);
                let (x, weight, bias) = (leaf(&x), leaf(&weight), leaf(&bias));
                let y = op(&x, &weight, with_bias.then_some(&bias), activation).unwrap();
                let mut leaves = vec![&x, &weight];
                if with_bias {
                    leaves.push(&bias);
                }
                let loss = (&y * cot.to_kind(kind)).sum(Kind::Double);
                let mut all = vec![y.detach()];
                all.extend(Tensor::run_backward(&[loss], &leaves, false, false));
                all
            };
            let expected = run(reference::causal_conv1d, Kind::Double);
            for (k, (ours, expected)) in run(native::causal_conv1d, kind)
                .iter()
                .zip(&expected)
                .enumerate()
            {
                let allowed = Case {
                    kind,
                    ..Case::plain(1, 1, 1, 1)
                }
                .tolerance();
                let error = error(ours, expected);
                assert!(
                    error <= allowed,
                    "result {k}: {error:e} at width {width}, length {length}, {kind:?}"
                );
            }
        }
    }
}

#[test]
fn complaints_name_the_argument_what_came_and_what_was_expected() {
    let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, tch::Device::Cpu));
    let float = |shape: &[i64]| zeros(shape, Kind::Float);
    let cases: Vec<(&str, Tensor, &str)> = vec![
        ("u", float(&[4, 10]), "u has shape [4, 10], expected three dimensions (B, D, L)"),
        ("u", float(&[2, 4, 0]), "u has shape [2, 4, 0], expected D and L of at least 1"),
        ("u", zeros(&[2, 4, 10], Kind::Int64), "u has"),
        ("delta", float(&[2, 4, 9]), "delta has shape [2, 4, 9], expected [2, 4, 10]"),
        ("delta", zeros(&[2, 4, 10], Kind::Bool), "delta has"),
        ("A", float(&[5, 3]), "A has shape [5, 3], expected (4, N) with N of at least 1"),
        ("A", float(&[4, 0]), "A has shape [4, 0], expected (4, N) with N of at least 1"),
        ("B", float(&[2, 3, 3, 10]), "B has shape [2, 3, 3, 10], expected (2, 3, 10), (2, G, 3, 10) with G dividing 4, or (4, 3)"),
        ("C", float(&[2, 3]), "C has shape [2, 3], expected"),
        ("C", zeros(&[2, 3, 10], Kind::Int), "C has"),
        ("D", float(&[3]), "D has shape [3], expected [4]"),
        ("z", float(&[2, 4, 11]), "z has shape [2, 4, 11], expected [2, 4, 10]"),
        ("delta_bias", float(&[4, 1]), "delta_bias has shape [4, 1], expected [4]"),
    ];
    for (name, bad, message) in cases {
        let mut inputs = vec![
            ("u", float(&[2, 4, 10])),
            ("delta", float(&[2, 4, 10])),
            ("A", float(&[4, 3])),
            ("B", float(&[2, 3, 10])),
            ("C", float(&[2, 3, 10])),
        ];
        inputs.retain(|(n, _)| *n != name);
        inputs.push((name, bad));
        for scan in [native::selective_scan, reference::selective_scan] {
            let found = util::call(scan, &inputs, false).unwrap_err();
            assert!(
                matches!(
                    found,
                    OpsError::Argument {
                        op: "selective_scan",
                        ..
                    }
                ),
                "{found:?}"
            );
            let text = found.to_string();
            assert!(
                text.starts_with("selective_scan: ") && text.contains(message),
                "{text:?} lacks {message:?}"
            );
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
    let (x, weight) = (float(&[2, 4, 10]), float(&[4, 3]));
    for conv in [native::causal_conv1d, reference::causal_conv1d] {
        let text = conv(&x, &float(&[5, 3]), None, Activation::None)
            .unwrap_err()
            .to_string();
        assert_eq!(
            text,
            "causal_conv1d: weight has shape [5, 3], expected (4, W) with W of at least 1"
        );
        let text = conv(&x, &weight, Some(&float(&[2])), Activation::Silu)
            .unwrap_err()
            .to_string();
        assert_eq!(text, "causal_conv1d: bias has shape [2], expected [4]");
    }
    // A double among singles would make the result depend on which came first.
    let mut inputs = Case::plain(1, 2, 3, 4).inputs(&mut Rng(10));
    inputs[2].1 = inputs[2].1.to_kind(Kind::Double);
    let text = util::call(native::selective_scan, &inputs, false)
        .unwrap_err()
        .to_string();
    assert_eq!(text, "selective_scan: A has dtype Double, expected float32");
}

#[test]
fn double_backward_says_that_it_is_not_there() {
    let inputs = Case::plain(1, 4, 10, 3).inputs(&mut Rng(11));
    let out = util::call(native::selective_scan, &inputs, true)
        .unwrap()
        .out;
    let first = Tensor::run_backward(&[out.sum(Kind::Float)], &[&inputs[0].1], true, true);
    let text = Tensor::f_run_backward(
        &[first[0].square().sum(Kind::Float)],
        &[&inputs[1].1],
        false,
        false,
    )
    .unwrap_err()
    .to_string();
    assert!(text.contains("vision_mamba::selective_scan: the second derivative (double backward) is not implemented"), "{text}");

    let x = Rng(12)
        .tensor(&[1, 2, 5], -1.0, 1.0)
        .set_requires_grad(true);
    let weight = Rng(13).tensor(&[2, 3], -1.0, 1.0);
    let y = native::causal_conv1d(&x, &weight, None, Activation::Silu).unwrap();
    let first = Tensor::run_backward(&[y.sum(Kind::Double)], &[&x], true, true);
    let text = Tensor::f_run_backward(&[first[0].square().sum(Kind::Double)], &[&x], false, false)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("vision_mamba::causal_conv1d: the second derivative"),
        "{text}"
    );
}

#[test]
fn a_trace_records_the_operators_and_runs_at_other_lengths() {
    let model = |t: &[Tensor]| {
        let x = native::causal_conv1d(&t[0], &t[3], None, Activation::Silu).unwrap();
        let inputs = [
            ("u", x),
            ("delta", t[0].abs()),
            ("A", t[1].shallow_clone()),
            ("B", t[2].shallow_clone()),
            ("C", t[2].shallow_clone()),
        ];
        util::call(native::selective_scan, &inputs, true)
            .unwrap()
            .out
    };
    let make = |length: i64, rng: &mut Rng| {
        let mut t = |shape: &[i64]| rng.tensor(shape, -1.0, -0.1).to_kind(Kind::Float);
        [
            t(&[1, 6, length]),
            t(&[6, 4]),
            t(&[1, 4, length]),
            t(&[6, 4]),
        ]
    };
    let mut rng = Rng(14);
    let traced = CModule::create_by_tracing("Model", "forward", &make(9, &mut rng), &mut |t| {
        vec![model(t)]
    })
    .unwrap();
    let other = make(33, &mut rng);
    assert_eq!(traced.method_ts("forward", &other).unwrap(), model(&other));

    let file =
        std::env::temp_dir().join(format!("vision-mamba-ops-trace-{}.pt", std::process::id()));
    traced.save(&file).unwrap();
    let mut archive = zip::ZipArchive::new(std::fs::File::open(&file).unwrap()).unwrap();
    let mut saved = String::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).unwrap();
        if entry.name().ends_with(".py") {
            std::io::Read::read_to_string(&mut entry, &mut saved).unwrap();
        }
    }
    std::fs::remove_file(&file).unwrap();
    for op in [
        "ops.vision_mamba.selective_scan(",
        "ops.vision_mamba.causal_conv1d(",
    ] {
        assert!(saved.contains(op), "the trace lacks {op}");
    }
}

/// Meta tensors have shapes and no data; tch cannot make them, TorchScript can.
#[test]
fn meta_tensors_give_shapes() {
    assert!(native::is_ready(), "{}", status());
    let code = "\
class Probe(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def forward(self: __torch__.Probe, x: Tensor) -> List[int]:
    m = torch.device(\"meta\")
    u = torch.ones([2, 3, 7], dtype=None, layout=None, device=m)
    A = torch.ones([3, 5], dtype=None, layout=None, device=m)
    B = torch.ones([2, 5, 7], dtype=None, layout=None, device=m)
    y, h = ops.vision_mamba.selective_scan(u, u, A, B, B, None, None, None, False)
    z = ops.vision_mamba.causal_conv1d(y, A, None, \"silu\")
    return torch.add(torch.size(z), torch.size(h))
";
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in [
        (
            "m/data.pkl",
            b"\x80\x02c__torch__\nProbe\n)\x81}X\x08\x00\x00\x00training\x89sb.".as_slice(),
        ),
        ("m/code/__torch__.py", code.as_bytes()),
        ("m/constants.pkl", b"\x80\x02).".as_slice()),
        ("m/version", b"3\n".as_slice()),
    ] {
        let stored =
            zip::write::FileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(name, stored).unwrap();
        std::io::Write::write_all(&mut zip, content).unwrap();
    }
    let bytes = zip.finish().unwrap().into_inner();
    let module = CModule::load_data(&mut bytes.as_slice()).unwrap();
    let x = tch::IValue::Tensor(Tensor::zeros([1], (Kind::Float, tch::Device::Cpu)));
    assert_eq!(
        module.method_is("forward", &[x]).unwrap(),
        tch::IValue::IntList(vec![2, 3, 7, 2, 3, 5])
    );
}
