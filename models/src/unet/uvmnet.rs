//! UVM-Net: a U-Net for dehazing with state space blocks over positions and channels, 2-D.
//!
//! Paper: Zheng and Wu, *U-shaped Vision Mamba for Single Image Dehazing*, 2024.
//! Reference: zzr-idam/UVM-Net at d3d70d8730da, `Ultra/net/{model,unet_part,uvmb}.py`.
//!
//! *Differences from the reference*, each a field of the configuration; `uvmnet_upstream` has none of them:
//! - `attention`: the reference leaves the axis of the softmax to PyTorch, which takes the batch. One image alone then has
//!   no attention, and the images of a batch change each other. `channels` is the axis that the name of the layer means.
//! - `tokens`: the reference reads the memory of (B, C, H, W) as (B, H W, C). `permute` makes a token a pixel.
//! - `grid`: the reference resizes every feature map to 64 x 64 for the block, enlarging small ones and distorting oblong
//!   ones. `fit` keeps the aspect and reduces only what is longer than `ub_size`.
//! - `channel_grid`: the reference's third Mamba has one feature a position, 4096 of them, and with it 0.95 of the 1.0e9
//!   parameters. With a channel grid it sees the means over so many rows and columns, whatever the image.
//! - `base_channels`: 64 in the reference; the preset `uvmnet` has 32 and stays below the paper's 19 million parameters.
//!
//! An image needs at least 16 pixels a side. Odd sizes are padded at the skip connections, as in the reference.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::uvmb::{
    check_channels, check_flat, conv3, resize, Attention, Positions, Tokens, Uvmb, UvmbConfig,
};
use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::{BatchNorm, Conv, ConvOptions, Part};
use crate::network::check_input;
use crate::{ModelError, Network, Scope, Stage};

/// Halvings on the way down.
const LEVELS: usize = 4;
/// The side that the halvings leave one pixel of.
const SMALLEST_SIDE: i64 = 1 << LEVELS;
/// Sizes beyond this are typing errors.
const LARGEST: i64 = 4096;

/// What size the blocks work at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grid {
    /// Always `ub_size` by `ub_size`: upstream.
    Square,
    /// The map's own, reduced in proportion when its longer side is beyond `ub_size`.
    Fit,
}

/// Configuration of [`UvmNet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UvmNetConfig {
    /// Channels of the hazy image.
    pub input_channels: i64,
    /// Channels of the clear image; the hazy one is added to it, so as many, or the hazy one has a single channel.
    pub output_channels: i64,
    /// Features of the finest level.
    pub base_channels: i64,
    /// Whether the decoder enlarges by bilinear interpolation or by transposed convolutions.
    pub bilinear: bool,
    /// Pixels a side that the blocks work at, or at most work at.
    pub ub_size: i64,
    /// What size the blocks work at.
    pub grid: Grid,
    /// How a map becomes tokens.
    pub tokens: Tokens,
    /// Over what the attention adds up to one.
    pub attention: Attention,
    /// Rows and columns that the Mamba over channels sees; none: all positions of the square grid.
    #[serde(default)]
    pub channel_grid: Option<i64>,
}

impl UvmNetConfig {
    /// Checks that the values go together.
    pub fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("input_channels", self.input_channels),
            ("output_channels", self.output_channels),
            ("base_channels", self.base_channels),
            ("ub_size", self.ub_size),
            ("channel_grid", self.channel_grid.unwrap_or(1)),
        ];
        if let Some((field, size)) = sizes.into_iter().find(|(_, s)| !(1..=LARGEST).contains(s)) {
            return Err(ModelError::config(
                field,
                format!("{size}, expected 1 to {LARGEST}"),
            ));
        }
        check_channels(
            self.input_channels,
            self.output_channels,
            "the image is added to the output",
        )?;
        match (self.channel_grid, self.grid, self.tokens) {
            (None, Grid::Fit, _) => Err(ModelError::config(
                "channel_grid",
                "none, expected a number: maps of any size (`grid = \"fit\"`) have no fixed number of positions",
            )),
            (Some(_), _, Tokens::Reinterpret) => Err(ModelError::config(
                "tokens",
                "reinterpret, expected permute: reinterpreted tokens have no positions to put on a channel grid",
            )),
            _ => Ok(()),
        }
    }

    /// Fitted to a data set: channels of the hazy and of the clear image. The patch decides nothing here.
    pub fn for_data(
        &self,
        in_channels: i64,
        out_channels: i64,
        training_patch: &[i64],
    ) -> Result<Self, ModelError> {
        check_flat("UVM-Net", training_patch)?;
        Ok(Self {
            input_channels: in_channels,
            output_channels: out_channels,
            ..self.clone()
        })
    }

    fn uvmb(&self, channels: i64) -> UvmbConfig {
        UvmbConfig {
            channels,
            tokens: self.tokens,
            attention: self.attention,
            positions: match self.channel_grid {
                Some(side) => Positions::Pooled(side),
                None => Positions::All(self.ub_size * self.ub_size),
            },
        }
    }

    /// The size the block works at for a map of this size.
    fn grid_of(&self, [h, w]: [i64; 2]) -> [i64; 2] {
        let (most, longer) = (self.ub_size, h.max(w));
        match self.grid {
            Grid::Square => [most; 2],
            Grid::Fit if longer <= most => [h, w],
            Grid::Fit => [h, w].map(|side| ((2 * side * most + longer) / (2 * longer)).max(1)),
        }
    }

    /// Features after `inc` and each `down`, then after each `up`.
    fn widths(&self) -> ([i64; LEVELS + 1], [i64; LEVELS]) {
        let factor = if self.bilinear { 2 } else { 1 };
        let b = self.base_channels;
        (
            [b, 2 * b, 4 * b, 8 * b, 16 * b / factor],
            [8 * b / factor, 4 * b / factor, 2 * b / factor, b],
        )
    }
}

/// The block, added to its input, then twice convolution, batch norm and ReLU.
pub struct DoubleConv {
    config: UvmNetConfig,
    ub: Uvmb,
    convs: [(Conv, BatchNorm); 2],
}

impl DoubleConv {
    /// Registers `ub` and `double_conv`.
    pub fn new(
        scope: &Scope,
        config: &UvmNetConfig,
        inputs: i64,
        outputs: i64,
        middle: i64,
    ) -> Result<Self, ModelError> {
        let ub = Uvmb::new(&scope.sub("ub"), config.uvmb(inputs))?;
        let at = scope.sub("double_conv");
        let layer = |i: i64, inputs, outputs| {
            let conv = conv3(&at.sub(i), inputs, outputs, false)?;
            Ok::<_, ModelError>((conv, BatchNorm::new(&at.sub(i + 1), outputs)?))
        };
        Ok(Self {
            config: config.clone(),
            ub,
            convs: [layer(0, inputs, middle)?, layer(3, middle, outputs)?],
        })
    }

    /// (B, in, H, W) -> (B, out, H, W)
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let (_, _, h, w) = x.size4()?;
        let y = self.ub.forward(&resize(x, self.config.grid_of([h, w]))?)?;
        let y = resize(&y, [h, w])? + x;
        self.convs.iter().try_fold(y, |y, (conv, norm)| {
            Ok(norm.forward(&conv.forward(&y), train)?.relu())
        })
    }
}

/// Enlarges to twice the size.
enum Enlarge {
    Bilinear,
    Transposed { weight: Tensor, bias: Tensor },
}

impl Enlarge {
    fn new(scope: &Scope, channels: i64, bilinear: bool) -> Result<Self, ModelError> {
        if bilinear {
            return Ok(Enlarge::Bilinear);
        }
        // PyTorch takes the second axis of the weight for the inputs, here too
        let half = channels / 2;
        Ok(Enlarge::Transposed {
            weight: scope.parameter("weight", &[channels, half, 2, 2], TORCH_WEIGHT)?,
            bias: scope.parameter("bias", &[half], Init::torch_bias(4 * half))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let (_, _, h, w) = x.size4()?;
        match self {
            Enlarge::Bilinear => resize(x, [2 * h, 2 * w]),
            Enlarge::Transposed { weight, bias } => {
                Ok(x.f_conv_transpose2d(weight, Some(bias), [2, 2], [0, 0], [0, 0], 1, [1, 1])?)
            }
        }
    }
}

/// The network.
pub struct UvmNet {
    config: UvmNetConfig,
    down: Vec<Part<DoubleConv>>,
    up: Vec<(Enlarge, Part<DoubleConv>)>,
    outc: Conv,
}

impl UvmNet {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: &UvmNetConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let (encoder, decoder) = config.widths();
        let mut down = Vec::with_capacity(LEVELS + 1);
        let mut inputs = config.input_channels;
        for (level, &outputs) in encoder.iter().enumerate() {
            let at = match level {
                0 => scope.sub("inc"),
                _ => scope.sub(format!("down{level}.maxpool_conv.1")),
            };
            let conv = DoubleConv::new(&at, config, inputs, outputs, outputs)?;
            down.push(Part::new(conv));
            inputs = outputs;
        }
        let mut up = Vec::with_capacity(LEVELS);
        for (step, &outputs) in decoder.iter().enumerate() {
            let at = scope.sub(format!("up{}", step + 1));
            // skip and enlarged map together
            let inputs = 2 * encoder[LEVELS - 1 - step];
            let enlarge = Enlarge::new(&at.sub("up"), inputs, config.bilinear)?;
            let middle = if config.bilinear { inputs / 2 } else { outputs };
            let conv = DoubleConv::new(&at.sub("conv"), config, inputs, outputs, middle)?;
            up.push((enlarge, Part::new(conv)));
        }
        let options = ConvOptions {
            kernel: vec![1; 2],
            stride: vec![1; 2],
            padding: vec![0; 2],
            groups: 1,
            weight: TORCH_WEIGHT,
            bias: Some(Init::torch_bias(decoder[LEVELS - 1])),
        };
        let (inputs, outputs) = (decoder[LEVELS - 1], config.output_channels);
        Ok(Self {
            outc: Conv::new(&scope.sub("outc.conv"), inputs, outputs, options)?,
            config: config.clone(),
            down,
            up,
        })
    }
}

impl Network for UvmNet {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        check_input(x, &[self.config.input_channels], &self.divisor())?;
        if let Some(side) = x.size()[2..].iter().find(|s| **s < SMALLEST_SIDE) {
            let message = format!("a side of {side}, expected at least {SMALLEST_SIDE}");
            let shape = x.size();
            return Err(ModelError::Input { shape, message });
        }
        let mut features = Vec::with_capacity(self.down.len());
        let mut y = x.shallow_clone();
        for (level, block) in self.down.iter().enumerate() {
            if level > 0 {
                y = y.f_max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)?;
            }
            y = block.run(&y, move |block, x| block.forward(x, train))?;
            features.push(y.shallow_clone());
        }
        for ((enlarge, block), skip) in self.up.iter().zip(features.iter().rev().skip(1)) {
            y = enlarge.forward(&y)?;
            let (have, want) = (y.size(), skip.size());
            let (dy, dx) = (want[2] - have[2], want[3] - have[3]);
            if (dy, dx) != (0, 0) {
                y = y.f_constant_pad_nd([dx / 2, dx - dx / 2, dy / 2, dy - dy / 2])?;
            }
            let both = Tensor::f_cat(&[skip, &y], 1)?;
            y = block.run(&both, move |block, x| block.forward(x, train))?;
        }
        Ok(vec![self.outc.forward(&y) + x])
    }

    fn divisor(&self) -> Vec<i64> {
        vec![1; 2]
    }

    fn stages(&self) -> Vec<Stage> {
        let (encoder, decoder) = self.config.widths();
        let stage = |name: String, channels, level: usize| Stage {
            name,
            channels,
            reduction: vec![1 << level; 2],
        };
        let down = encoder.iter().enumerate().map(|(level, &c)| match level {
            0 => stage("inc".into(), c, 0),
            _ => stage(format!("down{level}"), c, level),
        });
        let up = decoder
            .iter()
            .enumerate()
            .map(|(step, &c)| stage(format!("up{}", step + 1), c, LEVELS - 1 - step));
        let last = stage("outc".into(), self.config.output_channels, 0);
        down.chain(up).chain([last]).collect()
    }
}
