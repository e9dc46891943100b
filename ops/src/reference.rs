//! The operators in plain tensor operations: their specification, and what is used where the native library is not.
//!
//! The scan is the fastest such loop found, since the speed of the native library is measured against it: decays and
//! inputs are formed for [`CHUNK`] steps at a time, laid out with time first and unbound once, so that a step is one
//! `addcmul` on contiguous memory and the backward pass stays linear in the length.

use crate::check::{self, Check};
use crate::{Activation, CrossScan, OpsError, ScanOutput, SelectiveScan};
use tch::{Kind, Tensor};

/// Steps prepared together: at (B 2, D 384, N 16) one chunk's decays take 1.5 MB and stay in the second-level cache.
const CHUNK: i64 = 32;

/// The selective scan. Besides the forms of the native operator it takes complex `a`, with `b` and `c` either complex and constant
/// or real with (re, im) pairs along a time dimension of 2 L; the output is then twice the real part.
pub fn selective_scan(args: &SelectiveScan) -> Result<ScanOutput, OpsError> {
    let sizes = check::scan(args)?;
    let real = if args.u.kind() == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    let complex = if real == Kind::Double {
        Kind::ComplexDouble
    } else {
        Kind::ComplexFloat
    };
    let state_kind = if sizes.complex { complex } else { real };

    let u = args.u.f_to_kind(real)?;
    let mut delta = args.delta.f_to_kind(real)?;
    if let Some(bias) = args.delta_bias {
        delta = delta.f_add(&bias.f_to_kind(real)?.f_unsqueeze(-1)?)?;
    }
    if args.delta_softplus {
        delta = delta.f_softplus()?;
    }
    let a = args.a.f_to_kind(state_kind)?;
    let b = Weights::new(args.b, sizes.channels, state_kind)?;
    let c = Weights::new(args.c, sizes.channels, state_kind)?;

    // (B, D, L) -> (L, B, D, 1), cut into chunks of time.
    let time_first = |x: &Tensor| x.f_permute([2, 0, 1])?.f_unsqueeze(-1)?.f_split(CHUNK, 0);
    let delta_chunks = time_first(&delta)?;
    let input_chunks = time_first(&delta.f_mul(&u)?)?;
    let b_chunks = b.chunks()?;
    let c_chunks = c.chunks()?;

    let mut h = Tensor::f_zeros(
        [sizes.batch, sizes.channels, sizes.states],
        (state_kind, u.device()),
    )?;
    let mut outputs = Vec::with_capacity(delta_chunks.len());
    for (i, (delta, input)) in delta_chunks.iter().zip(&input_chunks).enumerate() {
        let decay = delta.f_mul(&a)?.f_exp()?; // (T, B, D, N)
        let input = b.weigh(&b_chunks, i, input)?;
        let mut states = Vec::with_capacity(CHUNK as usize);
        for (decay, input) in decay.f_unbind(0)?.iter().zip(&input.f_unbind(0)?) {
            h = input.f_addcmul(decay, &h)?;
            states.push(h.shallow_clone());
        }
        let states = Tensor::f_stack(&states, 0)?;
        let kind = states.kind();
        outputs.push(
            c.weigh(&c_chunks, i, &states)?
                .f_sum_dim_intlist(-1, false, kind)?,
        );
    }
    let mut out = Tensor::f_cat(&outputs, 0)?.f_permute([1, 2, 0])?; // (L, B, D) -> (B, D, L)
    if sizes.complex {
        out = out.f_real()?.f_mul_scalar(2.0)?;
    }
    if let Some(d) = args.d {
        out = out.f_add(&u.f_mul(&d.f_to_kind(real)?.f_unsqueeze(-1)?)?)?;
    }
    if let Some(z) = args.z {
        out = out.f_mul(&z.f_to_kind(real)?.f_silu()?)?;
    }
    Ok(ScanOutput {
        out: out.f_to_kind(args.u.kind())?,
        last_state: h,
    })
}

/// Scans in several orders: tokens are copied into each order, scanned by `scan`, put back and added up.
pub fn cross_selective_scan(args: &CrossScan) -> Result<Tensor, OpsError> {
    cross_with(args, selective_scan)
}

/// The same, on a given implementation of the single scan.
pub fn cross_with(
    args: &CrossScan,
    scan: impl Fn(&SelectiveScan) -> Result<ScanOutput, OpsError>,
) -> Result<Tensor, OpsError> {
    let sizes = check::cross(args)?;
    let (rank, n) = (sizes.rank, sizes.states);
    let mut sum: Option<Tensor> = None;
    for k in 0..sizes.directions {
        let order = args.orders.f_select(0, k)?.f_to_kind(Kind::Int64)?;
        let back = order.f_argsort(0, false)?;
        let own = match args.u.dim() {
            4 => args.u.f_select(1, k)?,
            _ => args.u.shallow_clone(),
        };
        let u = own.f_index_select(1, &order)?;
        let weights = args.weights.f_select(2, k)?.f_index_select(1, &order)?;
        let dt_weight = args.dt_weight.f_select(0, k)?.f_to_kind(weights.kind())?;
        let delta = weights
            .f_narrow(-1, 0, rank)?
            .f_matmul(&dt_weight.f_transpose(0, 1)?)?;
        let each = |t: Option<&Tensor>| t.map(|t| t.f_select(0, k)).transpose();
        let (d, delta_bias) = (each(args.d)?, each(args.delta_bias)?);
        let out = scan(&SelectiveScan {
            u: &u.f_transpose(1, 2)?,
            delta: &delta.f_transpose(1, 2)?,
            a: &args.a.f_select(0, k)?,
            b: &weights.f_narrow(-1, rank, n)?.f_transpose(1, 2)?,
            c: &weights.f_narrow(-1, rank + n, n)?.f_transpose(1, 2)?,
            d: d.as_ref(),
            z: None,
            delta_bias: delta_bias.as_ref(),
            delta_softplus: args.delta_softplus,
        })?
        .out
        .f_transpose(1, 2)?
        .f_index_select(1, &back)?;
        sum = Some(match sum {
            Some(sum) => sum.f_add(&out)?,
            None => out,
        });
    }
    sum.ok_or_else(|| OpsError::Torch("there is no direction".to_owned()))
}

/// `B` or `C` in one of their three forms, ready to be multiplied with (T, B, D, n) tensors.
enum Weights {
    /// (D, N)
    Constant(Tensor),
    /// (L, B, G, 1, N) and the number of groups
    Varying(Tensor, i64),
}

impl Weights {
    fn new(tensor: &Tensor, channels: i64, kind: Kind) -> Result<Self, OpsError> {
        if tensor.dim() == 2 {
            return Ok(Weights::Constant(tensor.f_to_kind(kind)?));
        }
        let mut tensor = if tensor.dim() == 3 {
            tensor.f_unsqueeze(1)?
        } else {
            tensor.shallow_clone()
        };
        if matches!(kind, Kind::ComplexFloat | Kind::ComplexDouble) {
            let part = if kind == Kind::ComplexDouble {
                Kind::Double
            } else {
                Kind::Float
            };
            let mut shape = tensor.size();
            let pairs = shape.pop().unwrap_or_default() / 2;
            shape.extend([pairs, 2]);
            tensor = tensor
                .f_to_kind(part)?
                .f_contiguous()?
                .f_view(shape.as_slice())?
                .f_view_as_complex()?;
        }
        let groups = tensor.size()[1];
        debug_assert_eq!(channels % groups, 0);
        // (B, G, N, L) -> (L, B, G, 1, N)
        let tensor = tensor
            .f_to_kind(kind)?
            .f_permute([3, 0, 1, 2])?
            .f_unsqueeze(3)?;
        Ok(Weights::Varying(tensor, groups))
    }

    /// One tensor a chunk of time, made by a single `split` so that the backward pass joins them once.
    fn chunks(&self) -> Result<Vec<Tensor>, OpsError> {
        match self {
            Weights::Constant(_) => Ok(Vec::new()),
            Weights::Varying(tensor, _) => Ok(tensor.f_split(CHUNK, 0)?),
        }
    }

    /// `x`, (T, B, D, 1) or (T, B, D, N), times the weights of its channels at its steps -> (T, B, D, N).
    fn weigh(&self, chunks: &[Tensor], i: usize, x: &Tensor) -> Result<Tensor, OpsError> {
        match self {
            Weights::Constant(weights) => Ok(x.f_mul(weights)?),
            Weights::Varying(_, groups) => {
                let shape = x.size();
                let (t, b, d, n) = (shape[0], shape[1], shape[2], shape[3]);
                let x = x.f_reshape([t, b, *groups, d / groups, n])?;
                Ok(x.f_mul(&chunks[i])?.f_flatten(2, 3)?)
            }
        }
    }
}

/// The causal convolution; see [`crate::causal_conv1d`].
pub fn causal_conv1d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<Tensor, OpsError> {
    Ok(causal_conv1d_states(x, weight, bias, None, activation)?.0)
}

/// The causal convolution of a sequence that continues an earlier one: `initial_states`, (B, D, W - 1), are the inputs
/// before `x`. Also returns the final states, the last W - 1 inputs.
pub fn causal_conv1d_states(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    initial_states: Option<&Tensor>,
    activation: Activation,
) -> Result<(Tensor, Tensor), OpsError> {
    let (batch, channels, length, width) = conv_sizes(x, weight, bias)?;
    let real = if x.kind() == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    let inputs = x.f_to_kind(real)?;
    let padded = match initial_states {
        None => inputs.f_constant_pad_nd([width - 1, 0])?,
        Some(states) => {
            let check = Check {
                op: "causal_conv1d",
            };
            check.shape("initial_states", states, &[batch, channels, width - 1])?;
            check.floating("initial_states", states)?;
            check.same_device("initial_states", states, x)?;
            Tensor::f_cat(&[states.f_to_kind(real)?, inputs], -1)?
        }
    };
    let weight = weight.f_to_kind(real)?;
    let mut out: Option<Tensor> = None;
    for k in 0..width {
        // (B, D, L) * (D, 1)
        let term = padded
            .f_narrow(2, k, length)?
            .f_mul(&weight.f_narrow(1, k, 1)?)?;
        out = Some(match out {
            None => term,
            Some(sum) => sum.f_add(&term)?,
        });
    }
    let mut out = match out {
        Some(out) => out,
        None => padded.f_zeros_like()?,
    };
    if let Some(bias) = bias {
        out = out.f_add(&bias.f_to_kind(real)?.f_unsqueeze(-1)?)?;
    }
    if activation == Activation::Silu {
        out = out.f_silu()?;
    }
    let final_states = padded.f_narrow(2, length, width - 1)?;
    Ok((out.f_to_kind(x.kind())?, final_states.f_to_kind(x.kind())?))
}

/// One step of the convolution, as in generation: `x` is (B, D), `state` (B, D, S) with S >= W holds the latest inputs, newest last.
/// Returns the output (B, D) and the state after `x`.
pub fn causal_conv1d_update(
    x: &Tensor,
    state: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
) -> Result<(Tensor, Tensor), OpsError> {
    let check = Check {
        op: "causal_conv1d_update",
    };
    if x.dim() != 2 {
        return check.fail(format!(
            "x has shape {:?}, expected two dimensions (B, D)",
            x.size()
        ));
    }
    let column = x.f_unsqueeze(-1)?;
    let (batch, channels, _, width) = conv_sizes(&column, weight, bias)?;
    let length = match state.size().as_slice() {
        &[b, d, s] if b == batch && d == channels && s >= width => s,
        other => {
            return check.fail(format!(
                "state has shape {other:?}, expected ({batch}, {channels}, {width} or more)"
            ))
        }
    };
    check.floating("state", state)?;
    let real = if x.kind() == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    };
    let moved = Tensor::f_cat(
        &[
            state.f_narrow(2, 1, length - 1)?,
            column.f_to_kind(state.kind())?,
        ],
        2,
    )?;
    let recent = moved.f_narrow(2, length - width, width)?.f_to_kind(real)?;
    let mut out = recent
        .f_mul(&weight.f_to_kind(real)?)?
        .f_sum_dim_intlist(-1, false, real)?;
    if let Some(bias) = bias {
        out = out.f_add(&bias.f_to_kind(real)?)?;
    }
    if activation == Activation::Silu {
        out = out.f_silu()?;
    }
    Ok((out.f_to_kind(x.kind())?, moved))
}

fn conv_sizes(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<(i64, i64, i64, i64), OpsError> {
    let check = Check {
        op: "causal_conv1d",
    };
    let &[batch, channels, length] = x.size().as_slice() else {
        return check.fail(format!(
            "x has shape {:?}, expected three dimensions (B, D, L)",
            x.size()
        ));
    };
    if channels < 1 || length < 1 {
        return check.fail(format!(
            "x has shape {:?}, expected D and L of at least 1",
            x.size()
        ));
    }
    check.floating("x", x)?;
    let width = match weight.size().as_slice() {
        &[d, w] if d == channels && w >= 1 => w,
        other => {
            return check.fail(format!(
                "weight has shape {other:?}, expected ({channels}, W) with W of at least 1"
            ))
        }
    };
    check.floating("weight", weight)?;
    check.same_device("weight", weight, x)?;
    if let Some(bias) = bias {
        check.shape("bias", bias, &[channels])?;
        check.floating("bias", bias)?;
        check.same_device("bias", bias, x)?;
    }
    Ok((batch, channels, length, width))
}
