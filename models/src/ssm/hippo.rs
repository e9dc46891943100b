//! HiPPO: state matrices whose states are coefficients of the past in a basis of polynomials or waves.
//!
//! Paper: Gu, Dao, Ermon, Rudra, Ré, *HiPPO: Recurrent Memory with Optimal Polynomial Projections*, 2020; the Fourier family: Gu, Johnson,
//! Timalsina, Rudra, Ré, *How to Train Your HiPPO*, 2022. Reference: state-spaces/s4 at e757cef57d89, `src/models/hippo/hippo.py`, whose names and
//! normalisations these have.

use tch::Tensor;

use super::lti::DOUBLE;
use crate::ModelError;

/// What the past is weighed with and projected on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hippo {
    /// Legendre polynomials over the whole past, scaled.
    LegS,
    /// `LegS` without its rank correction: normal.
    LegSD,
    /// Legendre polynomials over a window that moves along.
    LegT,
    /// `LegT` in the normalisation of Legendre memory units.
    Lmu,
    /// Laguerre polynomials: a past that fades exponentially.
    LagT,
    /// `LagT` in its tilted form.
    TLagT,
    /// Generalised Laguerre polynomials with the reference's defaults, alpha 0 and beta 0.01.
    GLagT,
    /// Waves over a window that moves along.
    Fourier,
    /// Waves over a past that fades.
    FourierDecay,
    /// Waves, orthonormal on [0, 1].
    Fourier2,
    /// Waves, diagonal but for rotations: normal.
    FourierDiag,
}

impl Hippo {
    /// By the reference's name.
    pub fn named(name: &str) -> Result<Self, ModelError> {
        Ok(match name {
            "legs" => Hippo::LegS,
            "legsd" => Hippo::LegSD,
            "legt" => Hippo::LegT,
            "lmu" => Hippo::Lmu,
            "lagt" => Hippo::LagT,
            "tlagt" => Hippo::TLagT,
            "glagt" => Hippo::GLagT,
            "fourier" | "fout" => Hippo::Fourier,
            "fourier_decay" => Hippo::FourierDecay,
            "fourier2" => Hippo::Fourier2,
            "fourier_diag" | "foud" => Hippo::FourierDiag,
            other => {
                let message = format!(
                    "{other}, expected legs, legsd, legt, lmu, lagt, tlagt, glagt, fourier, fourier_decay, fourier2 or foud"
                );
                return Err(ModelError::config("hippo", message));
            }
        })
    }

    /// The continuous system's A (N, N) and B (N, 1), float64.
    pub fn transition(self, n: i64) -> (Tensor, Tensor) {
        let size = n.max(0) as usize;
        let root = |i: usize| (2.0 * i as f64 + 1.0).sqrt();
        let sign = |k: i64| if k % 2 == 0 { 1.0 } else { -1.0 };
        let fill = |of: &dyn Fn(usize, usize) -> f64| {
            let values: Vec<f64> = (0..size)
                .flat_map(|i| (0..size).map(move |j| (i, j)))
                .map(|(i, j)| of(i, j))
                .collect();
            Tensor::from_slice(&values).view([n, n])
        };
        let column = |of: &dyn Fn(usize) -> f64| {
            Tensor::from_slice(&(0..size).map(of).collect::<Vec<f64>>()).view([n, 1])
        };
        let legs = |i: usize, j: usize| match i.cmp(&j) {
            std::cmp::Ordering::Greater => -root(i) * root(j),
            std::cmp::Ordering::Equal => -(i as f64 + 1.0),
            std::cmp::Ordering::Less => 0.0,
        };
        // 1 for the constant, sqrt 2 for every cosine, 0 for every sine
        let ends = |i: usize| match (i, i % 2) {
            (0, _) => 1.0,
            (_, 0) => std::f64::consts::SQRT_2,
            _ => 0.0,
        };
        // rotations between the cosine and the sine of one frequency, 2k and 2k + 1
        let turns = |scale: f64, i: usize, j: usize| {
            let pi = std::f64::consts::PI;
            match (i % 2, i.abs_diff(j)) {
                (0, 1) if j == i + 1 => -pi * scale * (i / 2) as f64,
                (1, 1) if i == j + 1 => pi * scale * (j / 2) as f64,
                _ => 0.0,
            }
        };
        match self {
            Hippo::LegS => (fill(&legs), column(&root)),
            Hippo::LegSD => (
                fill(&|i, j| legs(i, j) + 0.5 * root(i) * root(j)),
                column(&|i| root(i) / 2.0),
            ),
            Hippo::LegT => (
                fill(&|i, j| {
                    let signed = if i < j {
                        sign(j as i64 - i as i64)
                    } else {
                        1.0
                    };
                    -0.5 * root(i) * signed * root(j)
                }),
                column(&|i| 0.5 * root(i)),
            ),
            Hippo::Lmu => (
                fill(&|i, j| {
                    let signed = if i < j {
                        -1.0
                    } else {
                        sign(i as i64 - j as i64 + 1)
                    };
                    signed * (2.0 * i as f64 + 1.0)
                }),
                column(&|i| sign(i as i64) * (2.0 * i as f64 + 1.0)),
            ),
            Hippo::LagT => (
                fill(&|i, j| match i.cmp(&j) {
                    std::cmp::Ordering::Greater => -1.0,
                    std::cmp::Ordering::Equal => -0.5,
                    std::cmp::Ordering::Less => 0.0,
                }),
                column(&|_| 1.0),
            ),
            Hippo::TLagT => (
                fill(&|i, j| if i >= j { -1.0 } else { 0.0 }),
                column(&|_| 1.0),
            ),
            Hippo::GLagT => {
                const BETA: f64 = 0.01;
                (
                    fill(&|i, j| match i.cmp(&j) {
                        std::cmp::Ordering::Greater => -1.0,
                        std::cmp::Ordering::Equal => -(1.0 + BETA) / 2.0,
                        std::cmp::Ordering::Less => 0.0,
                    }),
                    column(&|_| BETA.sqrt()),
                )
            }
            Hippo::Fourier => (
                fill(&|i, j| turns(1.0, i, j) - ends(i) * ends(j)),
                column(&ends),
            ),
            Hippo::FourierDecay => (
                fill(&|i, j| turns(1.0, i, j) - 0.5 * ends(i) * ends(j)),
                column(&|i| 0.5 * ends(i)),
            ),
            Hippo::Fourier2 => (
                fill(&|i, j| turns(2.0, i, j) - 2.0 * ends(i) * ends(j)),
                column(&|i| 2.0 * ends(i)),
            ),
            Hippo::FourierDiag => (
                fill(&|i, j| turns(2.0, i, j) - if i == j { 0.5 } else { 0.0 }),
                column(&ends),
            ),
        }
    }

    /// P (rank, N), float64, such that A + sum P P^T is normal; rows of zeros up to the rank asked for.
    pub fn rank_correction(self, n: i64, rank: i64) -> Result<Tensor, ModelError> {
        let i = Tensor::arange(n, DOUBLE);
        let even = i.remainder(2.0).eq(0.0).to_kind(DOUBLE.0);
        let ends = self.ends(n);
        let p = match self {
            Hippo::LegS => (i + 0.5).sqrt().unsqueeze(0),
            Hippo::LegT => {
                let p = (i * 2.0 + 1.0).sqrt() * 0.5f64.sqrt();
                Tensor::stack(&[&p * (1.0 - &even), &p * &even], 0)
            }
            Hippo::LagT => Tensor::full([1, n], 0.5f64.sqrt(), DOUBLE),
            Hippo::Fourier => ends,
            Hippo::FourierDecay => ends * 0.5f64.sqrt(),
            Hippo::Fourier2 => ends * 2f64.sqrt(),
            Hippo::FourierDiag | Hippo::LegSD => Tensor::zeros([1, n], DOUBLE),
            Hippo::Lmu | Hippo::TLagT | Hippo::GLagT => {
                let message = format!("{self:?} has no normal plus low-rank form");
                return Err(ModelError::config("hippo", message));
            }
        };
        let own = p.size()[0];
        if rank < own {
            let message = format!("{rank}, expected at least {own} for {self:?}");
            return Err(ModelError::config("rank", message));
        }
        Ok(Tensor::cat(&[p, Tensor::zeros([rank - own, n], DOUBLE)], 0))
    }

    /// (1, N): 1, 0, sqrt 2, 0, sqrt 2, ...
    fn ends(self, n: i64) -> Tensor {
        let values: Vec<f64> = (0..n)
            .map(|i| match (i, i % 2) {
                (0, _) => 1.0,
                (_, 0) => std::f64::consts::SQRT_2,
                _ => 0.0,
            })
            .collect();
        Tensor::from_slice(&values).unsqueeze(0)
    }
}

/// A state matrix as normal plus low-rank: A = V (diag(w) - P P^*) V^*, one of each conjugate pair kept.
pub struct Nplr {
    /// Eigenvalues with imaginary parts not above zero, ascending, (N / 2), complex.
    pub w: Tensor,
    /// V^* P, (rank, N / 2), complex.
    pub p: Tensor,
    /// V^* B, (N / 2), complex.
    pub b: Tensor,
    /// Eigenvectors, (N, N / 2), complex.
    pub v: Tensor,
}

/// The normal plus low-rank form of a HiPPO system (Gu, Goel, Ré 2022, theorem 1), float64. `clip` bounds the imaginary part of B.
pub fn nplr(hippo: Hippo, n: i64, rank: i64, clip: Option<f64>) -> Result<Nplr, ModelError> {
    if n < 4 || n % 2 != 0 {
        let message =
            format!("{n}, expected an even number of at least 4: states come in conjugate pairs");
        return Err(ModelError::config("d_state", message));
    }
    let (a, b) = hippo.transition(n);
    let p = hippo.rank_correction(n, rank)?;
    // skew-symmetric but for a multiple of the identity: its eigenvalues' real part is the mean of the diagonal
    let normal = a + p.transpose(0, 1).matmul(&p);
    let real = normal.diagonal(0, 0, 1).mean(DOUBLE.0);
    let zero = Tensor::zeros_like(&normal);
    let (imaginary, vectors) = Tensor::complex(&zero, &-&normal).f_linalg_eigh("L")?;
    let half = n / 2;
    let (imaginary, mut v) = (imaginary.narrow(0, 0, half), vectors.narrow(1, 0, half));
    let w = Tensor::complex(&real.expand_as(&imaginary), &imaginary);
    // a pair of eigenvalues zero leaves its vectors open: the first two unit vectors by hand, as in the reference (waves only)
    if imaginary.double_value(&[half - 1]).abs() < 1e-4 {
        let (mut re, mut im) = (v.real().copy(), v.imag().copy());
        let _ = re.narrow(1, half - 1, 1).zero_();
        let _ = im.narrow(1, half - 1, 1).zero_();
        let _ = re.get(0).get(half - 1).fill_(0.5f64.sqrt());
        let _ = im.get(1).get(half - 1).fill_(0.5f64.sqrt());
        let _ = (&mut re, &mut im);
        v = Tensor::complex(&re, &im);
    }
    let inverse = v.conj_physical().transpose(0, 1);
    let complex = |t: &Tensor| Tensor::complex(t, &Tensor::zeros_like(t));
    let b = inverse.matmul(&complex(&b)).squeeze_dim(1);
    let b = match clip {
        Some(most) => Tensor::complex(&b.real(), &b.imag().clamp(-most, most)),
        None => b,
    };
    let p = complex(&p).matmul(&inverse.transpose(0, 1));
    Ok(Nplr { w, p, b, v })
}
