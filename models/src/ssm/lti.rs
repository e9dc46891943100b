//! Linear time-invariant systems, continuous and discrete: x' = A x + B u, y = C x.
//!
//! Three equal views of a discrete system, tested against each other: the recurrence, the convolution with its kernel
//! K[l] = C dA^l dB, and (for diagonal A) the scan that the operators compute. Source: Gu, Goel, Ré, *Efficiently Modeling Long Sequences with
//! Structured State Spaces*, 2022, section 2.

use tch::{Kind, Tensor};

use crate::ModelError;

/// How a continuous system becomes a discrete one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discretisation {
    /// The input is held over a step: dA = exp(dt A), dB = A^-1 (dA - I) B, formed without the inverse.
    ZeroOrderHold,
    /// The trapezoid rule: dA = (I - dt/2 A)^-1 (I + dt/2 A), dB = (I - dt/2 A)^-1 dt B.
    Bilinear,
    /// Forward Euler: dA = I + dt A, dB = dt B.
    Euler,
    /// Backward Euler: dA = (I - dt A)^-1, dB = dt dA B.
    BackwardEuler,
}

/// (dA, dB) of A (N, N) and B (N, M) for the step `dt`.
pub fn discretise(
    a: &Tensor,
    b: &Tensor,
    dt: f64,
    method: Discretisation,
) -> Result<(Tensor, Tensor), ModelError> {
    let (n, m) = (a.size()[0], b.size()[1]);
    let eye = Tensor::f_eye(n, (a.kind(), a.device()))?;
    let solve = |left: &Tensor, right: &Tensor| Tensor::f_linalg_solve(left, right, true);
    Ok(match method {
        Discretisation::ZeroOrderHold => {
            // exp of [[A, B], [0, 0]] dt holds both (Van Loan, 1978)
            let top = Tensor::f_cat(&[a, b], 1)?;
            let bottom = Tensor::f_zeros([m, n + m], (a.kind(), a.device()))?;
            let both = (Tensor::f_cat(&[top, bottom], 0)? * dt).f_linalg_matrix_exp()?;
            let top = both.f_narrow(0, 0, n)?;
            (top.f_narrow(1, 0, n)?, top.f_narrow(1, n, m)?)
        }
        Discretisation::Bilinear => {
            let left = &eye - a * (dt / 2.0);
            (
                solve(&left, &(&eye + a * (dt / 2.0)))?,
                solve(&left, &(b * dt))?,
            )
        }
        Discretisation::Euler => (&eye + a * dt, b * dt),
        Discretisation::BackwardEuler => {
            let left = &eye - a * dt;
            (solve(&left, &eye)?, solve(&left, &(b * dt))?)
        }
    })
}

/// The convolution's kernel K[l] = C dA^l dB for l below `length`, (length), of one input and one output.
pub fn kernel(da: &Tensor, db: &Tensor, c: &Tensor, length: i64) -> Result<Tensor, ModelError> {
    let mut state = db.shallow_clone();
    let mut taps = Vec::with_capacity(length.max(0) as usize);
    for _ in 0..length {
        taps.push(c.f_matmul(&state)?.f_reshape(-1)?);
        state = da.f_matmul(&state)?;
    }
    Ok(Tensor::f_cat(&taps, 0)?)
}

/// The recurrence x[t] = dA x[t-1] + dB u[t], y[t] = C x[t] of inputs (L), one after the other.
pub fn recur(da: &Tensor, db: &Tensor, c: &Tensor, u: &Tensor) -> Result<Tensor, ModelError> {
    let mut state = Tensor::f_zeros(db.size(), (da.kind(), da.device()))?;
    let mut outputs = vec![];
    for input in u.f_unbind(0)? {
        state = da.f_matmul(&state)? + db * &input;
        outputs.push(c.f_matmul(&state)?.f_reshape(-1)?);
    }
    Ok(Tensor::f_cat(&outputs, 0)?)
}

/// The causal convolution of (.., L) with a kernel (.., l) by the discrete Fourier transform.
pub fn convolve(u: &Tensor, kernel: &Tensor) -> Result<Tensor, ModelError> {
    let (length, taps) = (last(u), last(kernel));
    let n = length + taps;
    let (u, k) = (
        u.f_fft_rfft(n, -1, "backward")?,
        kernel.f_fft_rfft(n, -1, "backward")?,
    );
    let y = u.f_mul(&k)?.f_fft_irfft(n, -1, "backward")?;
    Ok(y.f_narrow(-1, 0, length)?)
}

fn last(t: &Tensor) -> i64 {
    t.size().last().copied().unwrap_or(0)
}

/// dA^power by squaring, (.., N, N).
pub(crate) fn power(da: &Tensor, mut power: i64) -> Result<Tensor, ModelError> {
    let n = last(da);
    let mut result = Tensor::f_eye(n, (da.kind(), da.device()))?.f_expand_as(da)?;
    let mut square = da.shallow_clone();
    while power > 0 {
        if power % 2 == 1 {
            result = result.f_matmul(&square)?;
        }
        square = square.f_matmul(&square)?;
        power /= 2;
    }
    Ok(result)
}

/// Complex numbers stored as pairs, (.., 2) -> (..).
pub(crate) fn as_complex(pairs: &Tensor) -> Tensor {
    pairs.view_as_complex()
}

/// The other half of conjugate pairs put behind the first.
pub(crate) fn with_conjugates(x: &Tensor) -> Tensor {
    Tensor::cat(&[x, &x.conj_physical()], -1)
}

/// float64 options on the CPU.
pub(crate) const DOUBLE: (Kind, tch::Device) = (Kind::Double, tch::Device::Cpu);
