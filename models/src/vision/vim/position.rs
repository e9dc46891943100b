//! Where a token is: learned positions for other grids, and rotations.
//!
//! References: hustvl/Vim at dd0358ad1e42, `vim/utils.py` (`interpolate_pos_embed`) and `vim/rope.py`.

use tch::{no_grad, Device, Kind, Tensor};

use crate::init::Init;
use crate::layers::resize;
use crate::{ModelError, Scope};

/// Rows of a grid of learned positions for another grid, bicubic: (1, h w, C) -> (1, h' w', C)
pub fn interpolate(rows: &Tensor, (h, w): (i64, i64), (to_h, to_w): (i64, i64)) -> Tensor {
    if (h, w) == (to_h, to_w) {
        return rows.shallow_clone();
    }
    let channels = rows.size()[2];
    let grid = rows.reshape([1, h, w, channels]).permute([0, 3, 1, 2]);
    let grid = resize::bicubic(&grid, (to_h, to_w));
    grid.permute([0, 2, 3, 1])
        .reshape([1, to_h * to_w, channels])
}

/// Learned positions of a checkpoint for another square grid, as the reference loads them: the first `extra` rows are class tokens and
/// stay, the others are a square grid. (A class token in the middle of the sequence has its row there; the reference takes the first
/// all the same.)
pub fn interpolate_checkpoint(
    pos_embed: &Tensor,
    extra: i64,
    to_side: i64,
) -> Result<Tensor, ModelError> {
    let rows = pos_embed.size()[1] - extra;
    let side = (rows as f64).sqrt().round() as i64;
    if rows < 1 || side * side != rows {
        let message =
            format!("has {rows} positions beside {extra} class tokens, expected a square grid");
        return Err(ModelError::config("pos_embed", message));
    }
    let grid = interpolate(
        &pos_embed.narrow(1, extra, rows),
        (side, side),
        (to_side, to_side),
    );
    Ok(Tensor::cat(&[pos_embed.narrow(1, 0, extra), grid], 1))
}

/// Rotates pairs of channels by angles that grow with row and column: Su et al., *RoFormer*, 2021, in two dimensions as in EVA-02.
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    side: i64,
    dim: i64,
    pretrained_side: i64,
}

impl Rope {
    /// For tokens of `embed_dim` channels on a square grid of `side`, whose positions are scaled to those of `pretrained_side`.
    pub fn new(
        scope: &Scope,
        embed_dim: i64,
        side: i64,
        pretrained_side: i64,
    ) -> Result<Self, ModelError> {
        if embed_dim % 4 != 0 {
            let message = format!(
                "{embed_dim}, expected a multiple of 4 for rotations over rows and columns"
            );
            return Err(ModelError::config("embed_dim", message));
        }
        let shape = [side * side, embed_dim];
        let buffer = |name, value: Tensor| {
            let made = scope.buffer(name, &shape, Init::Constant(0.0))?;
            // an outline has no memory to fill
            if made.is_contiguous() {
                no_grad(|| made.shallow_clone().copy_(&value));
            }
            Ok::<_, ModelError>(made)
        };
        let angles = angles(embed_dim / 2, (side, side), pretrained_side, Device::Cpu);
        Ok(Self {
            cos: buffer("freqs_cos", angles.cos())?,
            sin: buffer("freqs_sin", angles.sin())?,
            side,
            dim: embed_dim / 2,
            pretrained_side,
        })
    }

    /// (B, M, C) -> (B, M, C) for tokens of the grid. Of an odd number of tokens the first is left alone, as in the reference, which takes it
    /// for the class token.
    pub fn forward(&self, x: &Tensor, grid: (i64, i64)) -> Result<Tensor, ModelError> {
        let tokens = x.size()[1];
        let skipped = tokens % 2;
        if tokens - skipped != grid.0 * grid.1 {
            let message = format!(
                "{tokens} tokens on a grid of {} x {}: rotations need an even number of patches beside the class token",
                grid.0, grid.1
            );
            return Err(ModelError::config("rope", message));
        }
        let (cos, sin) = match grid == (self.side, self.side) {
            true => (self.cos.shallow_clone(), self.sin.shallow_clone()),
            false => {
                let angles = angles(self.dim, grid, self.pretrained_side, x.device());
                (angles.cos(), angles.sin())
            }
        };
        let moved = x.narrow(1, skipped, tokens - skipped);
        let size = moved.size();
        let pairs = moved.reshape([-1, size[1], size[2] / 2, 2]);
        let turned = Tensor::stack(&[-pairs.select(3, 1), pairs.select(3, 0)], 3)
            .reshape([-1, size[1], size[2]]);
        let moved = moved * cos + turned * sin;
        Ok(match skipped {
            0 => moved,
            _ => Tensor::cat(&[x.narrow(1, 0, 1), moved], 1),
        })
    }
}

/// (h w, 2 dim): the first half for the row, the second for the column, each angle twice.
fn angles(dim: i64, (h, w): (i64, i64), pretrained: i64, device: Device) -> Tensor {
    let options = (Kind::Float, device);
    let exponents = Tensor::arange(dim / 2, options) * 2.0 / dim as f64;
    let speeds = (exponents * -(10000f64.ln())).exp();
    let along = |n: i64| {
        let t = Tensor::arange(n, options) / n as f64 * pretrained as f64;
        t.outer(&speeds).repeat_interleave_self_int(2, -1, None)
    };
    let rows = along(h).unsqueeze(1).expand([h, w, dim], false);
    let columns = along(w).unsqueeze(0).expand([h, w, dim], false);
    Tensor::cat(&[rows, columns], -1).view([h * w, 2 * dim])
}
