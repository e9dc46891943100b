//! A photograph through a network within the memory allowed: whole, or in tiles.

use anyhow::{ensure, Result};

use super::network::{Cost, Dehazer};
use super::tiles::{self, Tiling, SMALLEST_TILE};
use crate::cli::exit::Interrupted;
use crate::cli::printer::Printer;
use crate::photo::Photo;
use crate::runtime::StopFlag;

/// The largest tile: beyond it nothing gets faster, and a network has seen smaller ones in training.
const LARGEST_TILE: usize = 1536;
/// Tiles below this are not worth their overlap; less memory than they need is refused.
const LEAST_TILE: usize = 2 * SMALLEST_TILE;
/// A network, and what was found out about it.
pub struct Clearing {
    net: Dehazer,
    cost: Cost,
    /// Whether tiles must be brought to the whole, found out when the first tiles are made.
    anchored: Option<bool>,
}

impl Clearing {
    /// Measures what the network costs.
    pub fn new(net: Dehazer) -> Result<Self> {
        Ok(Self {
            cost: net.cost()?,
            net,
            anchored: None,
        })
    }

    /// The clear picture, made with at most `memory` bytes, in tiles of side `tile` or of what the memory allows.
    pub fn clear(
        &mut self,
        hazy: &Photo,
        memory: u64,
        tile: Option<usize>,
        stop: &StopFlag,
        printer: &Printer,
    ) -> Result<Photo> {
        let (net, cost) = (&self.net, self.cost);
        let restore =
            |planes: &[f32], width: usize, height: usize| net.forward(planes, width, height);
        // Input, result and its file; planes of float32 before and after the network are the network's.
        let room = memory as f64 - 3.0 * hazy.bytes() as f64 - cost.fixed;
        let pixel = cost.pixel + 2.0 * 12.0;
        let side = hazy.width.max(hazy.height);
        let fits = (hazy.width * hazy.height) as f64 * pixel <= room;
        let tile = match tile {
            Some(tile) => tile,
            None if fits => side,
            None => {
                // a band of the result lies beside the tile
                let band = 12.0 * hazy.width as f64;
                let root =
                    (-band + (band * band + 4.0 * pixel * room.max(0.0)).sqrt()) / (2.0 * pixel);
                let tile = (root as usize).min(LARGEST_TILE) / 16 * 16;
                ensure!(
                    tile >= LEAST_TILE,
                    "{:.2} GB are too little for tiles of {LEAST_TILE} pixels, which need {:.2} GB; raise --max-memory",
                    memory as f64 / 1e9,
                    (pixel * (LEAST_TILE * LEAST_TILE) as f64 + band * LEAST_TILE as f64 + memory as f64 - room) / 1e9
                );
                tile
            }
        };
        if side <= tile {
            return tiles::whole(hazy, &restore);
        }
        let anchored = match self.anchored {
            Some(known) => known,
            None => {
                let margin = Tiling::of_side(tile, false).margin();
                *self.anchored.insert(net.sees_beyond(margin)?)
            }
        };
        let tiling = Tiling::of_side(tile, anchored);
        printer.detail(&format!(
            "{} x {} pixels in {} tiles of {tile}{}",
            hazy.width,
            hazy.height,
            tiles::count(hazy, tiling),
            if anchored {
                ", brought to the whole"
            } else {
                ""
            }
        ));
        tiles::tiled(hazy, tiling, &restore, &mut || match stop.is_set() {
            true => Err(Interrupted.into()),
            false => Ok(()),
        })
    }
}
