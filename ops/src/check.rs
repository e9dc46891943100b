//! Argument checks of the reference; the native library makes the same ones for its callers in any language.

use crate::{CrossScan, OpsError, SelectiveScan};
use tch::{Kind, Tensor};

/// Names the operator in every complaint, and remembers the sizes the arguments have to agree on.
pub(crate) struct Check {
    pub(crate) op: &'static str,
}

impl Check {
    pub(crate) fn fail<T>(&self, message: String) -> Result<T, OpsError> {
        Err(OpsError::Argument {
            op: self.op,
            message,
        })
    }

    pub(crate) fn shape(
        &self,
        name: &str,
        tensor: &Tensor,
        expected: &[i64],
    ) -> Result<(), OpsError> {
        if tensor.size() == expected {
            return Ok(());
        }
        self.fail(format!(
            "{name} has shape {:?}, expected {expected:?}",
            tensor.size()
        ))
    }

    pub(crate) fn floating(&self, name: &str, tensor: &Tensor) -> Result<(), OpsError> {
        match tensor.kind() {
            Kind::Float | Kind::Double | Kind::BFloat16 | Kind::Half => Ok(()),
            other => self.fail(format!(
                "{name} has element type {other:?}, expected Float, Double, BFloat16 or Half"
            )),
        }
    }

    pub(crate) fn same_device(
        &self,
        name: &str,
        tensor: &Tensor,
        u: &Tensor,
    ) -> Result<(), OpsError> {
        if tensor.device() == u.device() {
            return Ok(());
        }
        self.fail(format!(
            "{name} is on {:?}, expected {:?} like the first argument",
            tensor.device(),
            u.device()
        ))
    }
}

/// Sizes of a scan after its arguments have been found to agree.
pub(crate) struct ScanSizes {
    pub(crate) batch: i64,
    pub(crate) channels: i64,
    pub(crate) length: i64,
    pub(crate) states: i64,
    pub(crate) complex: bool,
}

pub(crate) fn scan(args: &SelectiveScan) -> Result<ScanSizes, OpsError> {
    let check = Check {
        op: "selective_scan",
    };
    let &[batch, channels, length] = args.u.size().as_slice() else {
        return check.fail(format!(
            "u has shape {:?}, expected three dimensions (B, D, L)",
            args.u.size()
        ));
    };
    if length < 1 || channels < 1 {
        return check.fail(format!(
            "u has shape {:?}, expected D and L of at least 1",
            args.u.size()
        ));
    }
    check.floating("u", args.u)?;
    check.shape("delta", args.delta, &[batch, channels, length])?;
    check.floating("delta", args.delta)?;
    let states = match args.a.size().as_slice() {
        &[d, n] if d == channels && n >= 1 => n,
        other => {
            return check.fail(format!(
                "A has shape {other:?}, expected ({channels}, N) with N of at least 1"
            ))
        }
    };
    let complex = matches!(args.a.kind(), Kind::ComplexFloat | Kind::ComplexDouble);
    if !complex {
        check.floating("A", args.a)?;
    }
    let sizes = ScanSizes {
        batch,
        channels,
        length,
        states,
        complex,
    };
    weights(&check, "B", args.b, &sizes)?;
    weights(&check, "C", args.c, &sizes)?;
    for (name, tensor, shape) in [
        ("D", args.d, vec![channels]),
        ("z", args.z, vec![batch, channels, length]),
        ("delta_bias", args.delta_bias, vec![channels]),
    ] {
        if let Some(tensor) = tensor {
            check.shape(name, tensor, &shape)?;
            check.floating(name, tensor)?;
            check.same_device(name, tensor, args.u)?;
        }
    }
    for (name, tensor) in [
        ("delta", args.delta),
        ("A", args.a),
        ("B", args.b),
        ("C", args.c),
    ] {
        check.same_device(name, tensor, args.u)?;
    }
    Ok(sizes)
}

/// Sizes of scans in several orders after their arguments have been found to agree.
pub(crate) struct CrossSizes {
    pub(crate) directions: i64,
    pub(crate) states: i64,
    pub(crate) rank: i64,
}

pub(crate) fn cross(args: &CrossScan) -> Result<CrossSizes, OpsError> {
    let check = Check {
        op: "cross_selective_scan",
    };
    let &[directions, length] = args.orders.size().as_slice() else {
        return check.fail(format!(
            "orders has shape {:?}, expected (K, L)",
            args.orders.size()
        ));
    };
    let (batch, channels) = match *args.u.size().as_slice() {
        [b, l, d] if l == length => (b, d),
        [b, k, l, d] if l == length && k == directions => (b, d),
        _ => {
            return check.fail(format!(
                "u has shape {:?}, expected (B, {length}, D) or (B, {directions}, {length}, D)",
                args.u.size()
            ))
        }
    };
    let last = |name: &str, tensor: &Tensor| match *tensor.size().as_slice() {
        [k, d, n] if k == directions && d == channels && n >= 1 => Ok(n),
        _ => check.fail(format!(
            "{name} has shape {:?}, expected ({directions}, {channels}, n) with n of at least 1",
            tensor.size()
        )),
    };
    let (states, rank) = (last("A", args.a)?, last("dt_weight", args.dt_weight)?);
    let each = rank + 2 * states;
    check.shape("weights", args.weights, &[batch, length, directions, each])?;
    for (name, tensor) in [("D", args.d), ("delta_bias", args.delta_bias)] {
        if let Some(tensor) = tensor {
            check.shape(name, tensor, &[directions, channels])?;
        }
    }
    Ok(CrossSizes {
        directions,
        states,
        rank,
    })
}

fn weights(check: &Check, name: &str, tensor: &Tensor, sizes: &ScanSizes) -> Result<(), OpsError> {
    let ScanSizes {
        batch,
        channels,
        states,
        ..
    } = *sizes;
    // With complex A each step holds a (re, im) pair.
    let length = if sizes.complex {
        2 * sizes.length
    } else {
        sizes.length
    };
    let fits = match *tensor.size().as_slice() {
        [d, n] => d == channels && n == states,
        [b, n, l] => b == batch && n == states && l == length,
        [b, g, n, l] => b == batch && g >= 1 && channels % g == 0 && n == states && l == length,
        _ => false,
    };
    if !fits {
        return check.fail(format!(
            "{name} has shape {:?}, expected ({batch}, {states}, {length}), ({batch}, G, {states}, {length}) with G dividing {channels}, or ({channels}, {states})",
            tensor.size()
        ));
    }
    if sizes.complex && tensor.dim() == 2 {
        return match tensor.kind() {
            Kind::ComplexFloat | Kind::ComplexDouble => Ok(()),
            other => check.fail(format!(
                "{name} has element type {other:?}, expected a complex one like A"
            )),
        };
    }
    check.floating(name, tensor)
}
