//! The TorchScript archive through which Rust calls the operators.
//!
//! `tch` has no way to call a custom operator, but it runs TorchScript, and a TorchScript method whose body is one operator call costs a few
//! microseconds, back-propagates, and is recorded when its caller is traced. The archive is a zip made in memory.

use std::io::{Cursor, Write};
use zip::write::FileOptions;
use zip::{CompressionMethod, ZipWriter};

const CODE: &str = "\
class Ops(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def selective_scan(self: __torch__.Ops,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],
    z: Optional[Tensor],
    delta_bias: Optional[Tensor],
    delta_softplus: bool) -> Tuple[Tensor, Tensor]:
    return ops.vision_mamba.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
  def cross_selective_scan(self: __torch__.Ops,
    u: Tensor,
    weights: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Optional[Tensor],
    delta_bias: Optional[Tensor],
    orders: Tensor,
    delta_softplus: bool) -> Tensor:
    return ops.vision_mamba.cross_selective_scan(u, weights, dt_weight, A, D, delta_bias, orders, delta_softplus)
  def causal_conv1d(self: __torch__.Ops,
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    activation: Optional[str]) -> Tensor:
    return ops.vision_mamba.causal_conv1d(x, weight, bias, activation)
";

/// Pickle, protocol 2, of an `Ops` object whose only attribute is `training = False`.
const DATA: &[u8] = b"\x80\x02c__torch__\nOps\n)\x81}X\x08\x00\x00\x00training\x89sb.";

/// Pickle, protocol 2, of the empty tuple.
const CONSTANTS: &[u8] = b"\x80\x02).";

pub(crate) fn bytes() -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = FileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in [
        ("ops/data.pkl", DATA),
        ("ops/code/__torch__.py", CODE.as_bytes()),
        ("ops/constants.pkl", CONSTANTS),
        ("ops/version", b"3\n".as_slice()),
    ] {
        zip.start_file(name, stored)?;
        zip.write_all(content)?;
    }
    Ok(zip.finish()?.into_inner())
}
