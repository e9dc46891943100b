//! The kernels: diagonal (S4D), and diagonal plus low-rank through its generating function (S4).

use std::cell::Cell;

use serde::{Deserialize, Serialize};
use tch::{no_grad, Kind, Tensor};

use crate::init::Init;
use crate::ssm::hippo::{nplr, Hippo};
use crate::ssm::lti::{as_complex, power, with_conjugates, DOUBLE};
use crate::{ModelError, Scope};

/// Which state matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// Diagonal: S4D.
    Diag,
    /// Diagonal plus low-rank: S4.
    Dplr,
}

/// How a diagonal system becomes discrete; S4 is always bilinear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum S4Discretisation {
    /// Zero-order hold.
    Zoh,
    /// The trapezoid rule.
    Bilinear,
    /// The softmax-like normalisation of diagonal state spaces (Gupta et al. 2022), without the factor 2 of conjugate pairs.
    Dss,
}

/// What the state matrix starts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S4Init {
    /// A HiPPO matrix in normal plus low-rank form; of a diagonal kernel without its correction.
    Hippo(Hippo),
    /// S4D-LegS: the normal part of LegS.
    DiagLegs,
    /// S4D-Inv.
    DiagInv,
    /// S4D-Lin.
    DiagLin,
    /// S4D-Real.
    DiagReal,
}

impl S4Init {
    /// By the reference's name: `legs`, `legt`, `fourier`, ..., `diag-legs`, `diag-inv`, `diag-lin`, `diag-real`.
    pub fn named(name: &str) -> Result<Self, ModelError> {
        Ok(match name {
            "diag" | "diag-legs" | "diag-hippo" => S4Init::DiagLegs,
            "diag-inv" | "diag-inverse" => S4Init::DiagInv,
            "diag-lin" | "diag-linear" => S4Init::DiagLin,
            "diag-real" => S4Init::DiagReal,
            other => S4Init::Hippo(Hippo::named(other)?),
        })
    }
}

/// Sizes and options of a kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct S4KernelConfig {
    /// Independent systems, H.
    pub d_model: i64,
    /// States of each, both of every conjugate pair counted.
    pub d_state: i64,
    /// Outputs of each.
    pub channels: i64,
    /// Which state matrix.
    pub kernel: Kernel,
    /// How it becomes discrete.
    pub disc: S4Discretisation,
    /// What it starts as.
    pub init: S4Init,
    /// Rank of the correction.
    pub rank: i64,
    /// Copies of A, B and P that are trained; none: one a system. System h uses copy h mod this.
    pub n_ssm: Option<i64>,
    /// Smallest first step.
    pub dt_min: f64,
    /// Largest first step.
    pub dt_max: f64,
    /// Length that S4's C is set up for at the first kernel.
    pub l_max: Option<i64>,
}

impl S4KernelConfig {
    /// The reference's defaults.
    pub fn new(d_model: i64, kernel: Kernel) -> Self {
        Self {
            d_model,
            d_state: 64,
            channels: 1,
            kernel,
            disc: S4Discretisation::Zoh,
            init: match kernel {
                Kernel::Diag => S4Init::DiagLin,
                Kernel::Dplr => S4Init::Hippo(Hippo::LegS),
            },
            rank: 1,
            n_ssm: None,
            dt_min: 1e-3,
            dt_max: 1e-1,
            l_max: None,
        }
    }

    fn copies(&self) -> i64 {
        self.n_ssm.unwrap_or(self.d_model)
    }

    /// Checks that the values go together.
    pub fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("d_model", self.d_model),
            ("channels", self.channels),
            ("rank", self.rank),
            ("n_ssm", self.copies()),
        ];
        if let Some((field, size)) = sizes.into_iter().find(|(_, size)| *size < 1) {
            return Err(ModelError::config(
                field,
                format!("{size}, expected at least 1"),
            ));
        }
        if self.d_model % self.copies() != 0 {
            let message = format!(
                "{}, expected a divisor of d_model = {}",
                self.copies(),
                self.d_model
            );
            return Err(ModelError::config("n_ssm", message));
        }
        if self.d_state < 4 || self.d_state % 2 != 0 {
            let message = format!("{}, expected an even number of at least 4", self.d_state);
            return Err(ModelError::config("d_state", message));
        }
        if !(self.dt_min > 0.0 && self.dt_min <= self.dt_max) {
            let message = format!(
                "{}, expected above 0 and at most dt_max = {}",
                self.dt_min, self.dt_max
            );
            return Err(ModelError::config("dt_min", message));
        }
        Ok(())
    }
}

/// A discrete system for one step after another.
pub struct S4Step {
    da: Tensor,
    db: Tensor,
    dc: Tensor,
    /// Whether `da` is a diagonal, of one of each conjugate pair.
    diagonal: bool,
}

impl S4Step {
    /// The state before the first step, (B, H, states), complex.
    pub fn start(&self, batch: i64) -> Tensor {
        let size = self.db.size();
        Tensor::zeros(
            [batch, size[0], size[1]],
            (self.db.kind(), self.db.device()),
        )
    }

    /// Inputs (B, H) and a state to outputs (B, channels, H) and the next state.
    pub fn step(&self, u: &Tensor, state: &Tensor) -> (Tensor, Tensor) {
        let driven = u.to_kind(self.db.kind()).unsqueeze(-1) * &self.db;
        let next = match self.diagonal {
            true => state * &self.da + driven,
            // (H, m, n) (B, H, n, 1) -> (B, H, m)
            false => self.da.matmul(&state.unsqueeze(-1)).squeeze_dim(-1) + driven,
        };
        // (C, H, n) (B, 1, H, n) -> (B, C, H)
        let y =
            (next.unsqueeze(1) * &self.dc).sum_dim_intlist([-1].as_slice(), false, None::<Kind>);
        let y = y.real();
        (if self.diagonal { y * 2.0 } else { y }, next)
    }
}

/// Parameters and kernel. Complex ones are stored as (re, im) along a last dimension of two.
pub struct S4Kernel {
    config: S4KernelConfig,
    inv_dt: Tensor,
    c: Tensor,
    b: Tensor,
    a_real: Tensor,
    a_imag: Tensor,
    p: Option<Tensor>,
    /// The length that C has been set up for; 0: none yet.
    l_kernel: Option<Tensor>,
    /// Its value, once read.
    length: Cell<Option<i64>>,
}

/// The parameters as the formulas have them.
struct Parts {
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
}

impl S4Kernel {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: S4KernelConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let (h, s, n) = (config.d_model, config.copies(), config.d_state);
        let half = n / 2;
        let (a_re, a_im, b, p) = first_values(&config)?;
        // the reference keeps every transformed number at least so large
        let floor = 1e-4;
        let rows = |t: &Tensor| t.unsqueeze(0).repeat([s, 1]);
        let (low, high) = (config.dt_min.ln(), config.dt_max.ln());
        let inv_dt = Tensor::rand([h, 1], DOUBLE) * (high - low) + low;
        let inv_dt = scope.given("inv_dt", &inv_dt, false)?;
        let c = Init::Normal { std: 0.5f64.sqrt() };
        let c = scope.parameter("C", &[config.channels, h, half, 2], c)?;
        let b = b
            .view_as_real()
            .unsqueeze(0)
            .unsqueeze(0)
            .repeat([1, s, 1, 1]);
        let b = scope.given("B", &b, false)?;
        let a_real = rows(&a_re.clamp_min(floor).log());
        let a_real = scope.given("A_real", &a_real, false)?;
        let a_imag = scope.given("A_imag", &rows(&a_im.clamp_min(floor)), false)?;
        let (mut low_rank, mut l_kernel) = (None, None);
        if config.kernel == Kernel::Dplr {
            let p = p.view_as_real().unsqueeze(1).repeat([1, s, 1, 1]);
            low_rank = Some(scope.given("P", &p, false)?);
            l_kernel = Some(scope.counter("l_kernel")?);
        }
        Ok(Self {
            config,
            inv_dt,
            c,
            b,
            a_real,
            a_imag,
            p: low_rank,
            l_kernel,
            length: Cell::new(None),
        })
    }

    fn parts(&self, rate: f64) -> Parts {
        let copies = self.config.d_model / self.config.copies();
        let dt = self.inv_dt.exp() * rate;
        let a = Tensor::complex(&-self.a_real.exp(), &-&self.a_imag).repeat([copies, 1]);
        Parts {
            dt,
            a,
            b: as_complex(&self.b).repeat([1, copies, 1]),
            c: as_complex(&self.c),
        }
    }

    /// Taps of every system: (channels, H, length). `rate` is the step of the input relative to the one trained on.
    pub fn kernel(&self, length: i64, rate: f64) -> Result<Tensor, ModelError> {
        match self.config.kernel {
            Kernel::Diag => self.diagonal(length, rate),
            Kernel::Dplr => self.low_rank(length, rate),
        }
    }

    /// S4D: powers of a diagonal (Gu et al. 2022, equation 7).
    fn diagonal(&self, length: i64, rate: f64) -> Result<Tensor, ModelError> {
        let Parts { dt, a, b, c } = self.parts(rate);
        let dta = &a * &dt;
        let c = b * c;
        let steps = Tensor::arange(length, (Kind::Float, dt.device()));
        // (C, H, N) and (H, N) -> (C, H, L)
        let powers = |c: &Tensor, x: &Tensor| {
            let all = (x.unsqueeze(-1) * &steps).exp();
            (c.unsqueeze(-1) * all)
                .sum_dim_intlist([-2].as_slice(), false, None::<Kind>)
                .real()
        };
        Ok(match self.config.disc {
            S4Discretisation::Zoh => powers(&(c * (dta.exp() - 1.0) / a), &dta) * 2.0,
            S4Discretisation::Bilinear => {
                let half = &dta * 0.5;
                let c = c * (-&half + 1.0).reciprocal() * dt;
                let da: Tensor = (&half + 1.0) / (-half + 1.0);
                powers(&c, &da.log()) * 2.0
            }
            S4Discretisation::Dss => {
                let x = ((&dta * length as f64).exp() - 1.0) * a;
                let r = x.conj_physical() / (&x * x.conj_physical() + 1e-7);
                powers(&(c * (dta.exp() - 1.0) * r), &dta)
            }
        })
    }

    /// S4: the generating function at the roots of unity by a Cauchy product and Woodbury's identity (Gu et al. 2022, algorithm 1).
    fn low_rank(&self, length: i64, rate: f64) -> Result<Tensor, ModelError> {
        if self.length()? == 0 {
            if let Some(l_max) = self.config.l_max.filter(|l| *l > 0) {
                self.set_up(l_max)?;
            }
        }
        let continuous = (rate * length as f64).round() as i64;
        while continuous > self.length()? {
            self.set_up(continuous)?;
        }
        let discrete = (self.length()? as f64 / rate).round() as i64;
        let Parts { dt, a, b, c } = self.parts(rate);
        let p = self.correction()?;
        let wide = |t: &Tensor| t.to_kind(Kind::ComplexDouble);
        let (a, b, c, p, dt) = (
            wide(&a),
            wide(&b),
            wide(&c),
            wide(&p),
            dt.to_kind(Kind::Double),
        );
        let q = p.conj_physical();
        let rank = self.config.rank;

        let nodes = discrete / 2 + 1;
        let angles = Tensor::arange(nodes, (Kind::Double, dt.device()))
            * (-std::f64::consts::TAU / discrete as f64);
        let omega = Tensor::complex(&angles.cos(), &angles.sin());
        // at -1 the sine's rounding keeps the quotient finite
        let z: Tensor = (-&omega + 1.0) * 2.0 / (&omega + 1.0);

        // (1 + rank, 1, H, N) and (1, channels + rank, H, N) -> (1 + rank, channels + rank, H, nodes)
        let v = Tensor::cat(&[b, p], 0).unsqueeze(1) * Tensor::cat(&[c, q], 0).unsqueeze(0) * &dt;
        let (v, w) = (with_conjugates(&v), with_conjugates(&(a * dt)));
        let differences: Tensor = z - w.unsqueeze(-1);
        let r =
            (v.unsqueeze(-1) / differences).sum_dim_intlist([-2].as_slice(), false, None::<Kind>);
        // to (H, nodes, rows, columns)
        let r = r.permute([2, 3, 0, 1]);
        let (rows, columns) = (1, self.config.channels);
        let block = |i: i64, ni: i64, j: i64, nj: i64| r.narrow(2, i, ni).narrow(3, j, nj);
        let corner = block(rows, rank, columns, rank);
        let eye = Tensor::eye(rank, (Kind::Double, r.device())).to_kind(Kind::ComplexDouble);
        let solved = Tensor::f_linalg_inv(&(eye + corner))?;
        let corrected = block(0, rows, 0, columns)
            - block(0, rows, columns, rank)
                .matmul(&solved)
                .matmul(&block(rows, rank, 0, columns));
        // (H, nodes, 1, channels) -> (channels, H, nodes)
        let scale: Tensor = (omega + 1.0).reciprocal() * 2.0;
        let spectrum = corrected.squeeze_dim(2).permute([2, 0, 1]) * scale;
        let taps = spectrum.f_fft_irfft(discrete, -1, "backward")?;
        Ok(taps.narrow(-1, 0, length).to_kind(self.inv_dt.kind()))
    }

    /// P of every system, (rank, H, N).
    fn correction(&self) -> Result<Tensor, ModelError> {
        let p = (self.p.as_ref())
            .ok_or_else(|| ModelError::config("P", "is not there in a diagonal kernel"))?;
        let copies = self.config.d_model / self.config.copies();
        Ok(as_complex(p).repeat([1, copies, 1]))
    }

    /// The length that C is set up for. A checkpoint brings its own.
    fn length(&self) -> Result<i64, ModelError> {
        let stored = match &self.l_kernel {
            Some(length) => length.f_int64_value(&[])?,
            None => 0,
        };
        self.length.set(Some(stored));
        Ok(stored)
    }

    /// Makes C to C (I - dA^L), or doubles the length that it has been made for: C (I + dA^L).
    fn set_up(&self, length: i64) -> Result<(), ModelError> {
        let now = self.length()?;
        let (power_of, sign, then) = match now {
            0 => (length, -1.0, length),
            now if length > now => (now, 1.0, 2 * now),
            _ => return Ok(()),
        };
        no_grad(|| {
            let (da, _) = self.dense()?;
            let raised = power(&da, power_of)?;
            let c = with_conjugates(&as_complex(&self.c).to_kind(Kind::ComplexDouble));
            // (C, H, 1, n) (H, n, m) -> (C, H, m)
            let moved = c.unsqueeze(2).f_matmul(&raised)?.squeeze_dim(2);
            let c = (c + moved * sign).narrow(-1, 0, self.config.d_state / 2);
            self.c
                .shallow_clone()
                .f_copy_(&c.resolve_conj().view_as_real())?;
            if let Some(length) = &self.l_kernel {
                let _ = length.shallow_clone().f_fill_(then)?;
            }
            Ok(())
        })
    }

    /// S4's dA (H, n, n) and dB (H, n) over whole conjugate pairs, bilinear, complex float64.
    pub fn dense(&self) -> Result<(Tensor, Tensor), ModelError> {
        let Parts { dt, a, b, .. } = self.parts(1.0);
        let wide = |t: &Tensor| with_conjugates(&t.to_kind(Kind::ComplexDouble));
        let p = self.correction()?;
        let (a, b, q) = (wide(&a), wide(&b).squeeze_dim(0), wide(&p.conj_physical()));
        let p = wide(&p);
        // (rank, H, n) -> (H, n, rank) (H, rank, n)
        let low = p.permute([1, 2, 0]).matmul(&q.permute([1, 0, 2]));
        let full = a.diag_embed(0, -2, -1) - low;
        let dt = dt.to_kind(Kind::Double);
        let half = full * (&dt * 0.5).unsqueeze(-1);
        let eye = Tensor::eye(self.config.d_state, (Kind::Double, dt.device()))
            .to_kind(Kind::ComplexDouble);
        let left = &eye - &half;
        let da = Tensor::f_linalg_solve(&left, &(eye + half), true)?;
        let db = Tensor::f_linalg_solve(&left, &(b * dt).unsqueeze(-1), true)?.squeeze_dim(-1);
        Ok((da, db))
    }

    /// The discrete system for one step after another.
    pub fn stepping(&self) -> Result<S4Step, ModelError> {
        if self.config.kernel == Kernel::Diag {
            let Parts { dt, a, b, c } = self.parts(1.0);
            let dta = &a * &dt;
            let (da, db) = match self.config.disc {
                S4Discretisation::Zoh => (dta.exp(), b * (dta.exp() - 1.0) / a),
                S4Discretisation::Bilinear => {
                    let half = &dta * 0.5;
                    (
                        (1.0 + &half) / (1.0 - &half),
                        b * (-half + 1.0).reciprocal() * dt,
                    )
                }
                S4Discretisation::Dss => {
                    let message = "dss, expected zoh or bilinear: its kernel depends on the length, so it has no steps";
                    return Err(ModelError::config("disc", message));
                }
            };
            return Ok(S4Step {
                da,
                db: db.squeeze_dim(0),
                dc: c,
                diagonal: true,
            });
        }
        let (da, db) = self.dense()?;
        let c = with_conjugates(&as_complex(&self.c).to_kind(Kind::ComplexDouble));
        let dc = match self.length()? {
            0 => c,
            length => {
                let eye = Tensor::eye(self.config.d_state, (Kind::Double, c.device()));
                let left = eye.to_kind(Kind::ComplexDouble) - power(&da, length)?.transpose(-1, -2);
                Tensor::f_linalg_solve(&left, &c.unsqueeze(-1), true)?.squeeze_dim(-1)
            }
        };
        let narrow = |t: Tensor| t.to_kind(Kind::ComplexFloat);
        Ok(S4Step {
            da: narrow(da),
            db: narrow(db),
            dc: narrow(dc),
            diagonal: false,
        })
    }
}

/// -Re A, -Im A (N / 2), B (N / 2) and P (rank, N / 2) of one copy.
fn first_values(config: &S4KernelConfig) -> Result<(Tensor, Tensor, Tensor, Tensor), ModelError> {
    const CLIP: Option<f64> = Some(2.0);
    let n = config.d_state;
    let half = n / 2;
    let hippo = match config.init {
        S4Init::Hippo(hippo) => Some(hippo),
        S4Init::DiagLegs => Some(Hippo::LegS),
        _ => None,
    };
    if let Some(hippo) = hippo {
        let form = nplr(hippo, n, config.rank, CLIP)?;
        let real = match config.init {
            S4Init::DiagLegs => Tensor::full([half], 0.5, DOUBLE),
            _ => -form.w.real(),
        };
        return Ok((real, -form.w.imag(), form.b, form.p));
    }
    let i = Tensor::arange(half, DOUBLE);
    let (n, pi) = (n as f64, std::f64::consts::PI);
    let halves = || Tensor::full([half], 0.5, DOUBLE);
    let (real, imaginary) = match config.init {
        S4Init::DiagInv => (halves(), (n / (1.0 + &i * 2.0) - 1.0) * (n / pi)),
        S4Init::DiagReal => (&i + 1.0, Tensor::zeros_like(&i)),
        _ => (halves(), &i * pi),
    };
    let zeros = Tensor::zeros_like(&i);
    let b = Tensor::complex(&Tensor::ones_like(&i), &zeros);
    let p = Tensor::zeros([config.rank, half], DOUBLE);
    Ok((real, imaginary, b, Tensor::complex(&p, &p)))
}
