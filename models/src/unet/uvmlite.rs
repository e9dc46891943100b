//! UVM-lite: a small U-shaped network for dehazing with one corrected UVM block, 2-D, for any size of picture.
//!
//! In the line of Zheng and Wu, *U-shaped Vision Mamba for Single Image Dehazing*, 2024; no reference, for it is ours. Next to
//! [`uvmnet`](super::uvmnet):
//! - the picture comes in by pixel unshuffling and leaves by pixel shuffling, so that nothing wide is ever computed a pixel;
//! - one block, at a sixteenth of the resolution, sees all positions; there is no norm outside it, which would take the picture's haze away
//!   before it is measured;
//! - a pooled branch sees the picture as a whole and tells the rest about it, the air light above all;
//! - what is added to the picture is not the only [`Head`]: all of them give maps that say what to do with each pixel;
//! - a picture beyond `work_size` is looked at in reduced form only. Its maps are enlarged along the edges of the full picture (He and Sun,
//!   *Fast Guided Filter*, 2015), so that the cost grows by a few operations a pixel, and a photograph is understood like the thumbnail.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::dark_channel;
use super::uvmb::{
    check_channels, check_flat, conv3, Attention, Positions, Tokens, Uvmb, UvmbConfig,
};
use crate::init::{Init, TORCH_WEIGHT};
use crate::layers::{Conv, ConvOptions, Linear, Part};
use crate::network::check_input;
use crate::{ModelError, Network, Scope, Stage};

/// Levels of the U, the coarsest included.
const LEVELS: usize = 4;
/// Pixels a side of one position at the finest level.
const UNSHUFFLE: i64 = 2;
/// Pixels a side of one position at the coarsest.
const COARSEST: i64 = UNSHUFFLE << (LEVELS - 1);
/// Sizes beyond this are typing errors.
const LARGEST: i64 = 65536;
/// Steps of the curve. Four squarings steepen the bright end 16 times, as a transmission of 0.06 asks for.
const CURVE_STEPS: i64 = 4;
/// The most that a map of the scattering head may be: the gain sinh(3.7) = 20 is a transmission of 0.05.
const MOST_GAIN: f64 = 3.7;
/// The logit of the air light that training starts from: 0.85.
const FIRST_AIR: f64 = 1.7;
/// Pixels up to which one thread does everything outside training, as it looks at a reduced picture: what two would share is less than they wait
/// for each other. On a machine that has other work, a picture of 640x480 cost 0.33 s of processor time with one thread, program start and
/// all, and 3.3 s with two that spun.
const ONE_THREADED: i64 = 1 << 20;
/// Radius of the guided filter in pixels of the reduced picture, and its floor for the variance of grey in [0, 1].
const GUIDE_RADIUS: i64 = 2;
const GUIDE_EPS: f64 = 1e-3;

/// How the clear picture J follows from the hazy picture I.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// J = I + f.
    Residual,
    /// The scattering model backwards: J = (I - A) / t + A = I + g (I - A), with the air light A of the picture and the gain g = 1/t - 1 of each
    /// pixel. The network gives arsinh g: as steep as g where there is no haze, as flat as its logarithm where there is much. (The logarithm
    /// itself, which was here first, loses its gradient where a picture is left alone, and training ended there.)
    Scattering,
    /// Four times J <- J + a J (1 - J), starting with I, with a in (-1, 1) for each step, pixel and channel (the curves of Guo et al.,
    /// *Zero-Reference Deep Curve Estimation*, 2020).
    Curve,
}

/// What the network sees beside the picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The picture alone.
    #[default]
    None,
    /// The dark channel in two sizes of window, the transmission and the air light that follow from it: [`dark_channel`](super::dark_channel).
    DarkChannel,
}

/// Configuration of [`UvmLite`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UvmLiteConfig {
    /// Channels of the hazy image.
    pub input_channels: i64,
    /// Channels of the clear image: as many, or the hazy one has a single channel.
    pub output_channels: i64,
    /// Features of the finest level; each level down has twice as many.
    pub base_channels: i64,
    /// How the clear picture follows from the hazy one.
    pub head: Head,
    /// Rows and columns that the Mamba over channels sees.
    pub channel_grid: i64,
    /// Pixels of the longer side that a picture is reduced to before it is looked at.
    pub work_size: i64,
    /// What the network sees beside the picture.
    #[serde(default)]
    pub evidence: Evidence,
    /// Scattering head, not in training: mean optical depth of a picture, -ln t, up to which it is left as it is and from which it is cleared wholly,
    /// for networks that never learned thin haze and take things that are pale themselves for it.
    #[serde(default)]
    pub thin_haze: Option<[f64; 2]>,
}

impl UvmLiteConfig {
    /// Checks that the values go together.
    pub fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("input_channels", self.input_channels, 1),
            ("output_channels", self.output_channels, 1),
            ("base_channels", self.base_channels, 1),
            ("channel_grid", self.channel_grid, 1),
            ("work_size", self.work_size, COARSEST),
        ];
        for (field, size, least) in sizes {
            if !(least..=LARGEST).contains(&size) {
                let message = format!("{size}, expected {least} to {LARGEST}");
                return Err(ModelError::config(field, message));
            }
        }
        if let Some([least, whole]) = self.thin_haze {
            if !(least < whole && whole.is_finite()) {
                let message = format!("{least} and {whole}, expected a lower and a higher number");
                return Err(ModelError::config("thin_haze", message));
            }
            if self.head != Head::Scattering {
                let message = "only the scattering head gives an optical depth";
                return Err(ModelError::config("thin_haze", message));
            }
        }
        check_channels(
            self.input_channels,
            self.output_channels,
            "each channel is made from its own",
        )
    }

    /// Fitted to a data set: channels of the hazy and of the clear image. The patch decides nothing here.
    pub fn for_data(
        &self,
        in_channels: i64,
        out_channels: i64,
        training_patch: &[i64],
    ) -> Result<Self, ModelError> {
        check_flat("UVM-lite", training_patch)?;
        Ok(Self {
            input_channels: in_channels,
            output_channels: out_channels,
            ..self.clone()
        })
    }

    /// Channels that the first layer sees.
    fn seen(&self) -> i64 {
        self.input_channels
            + match self.evidence {
                Evidence::None => 0,
                Evidence::DarkChannel => dark_channel::planes(self.input_channels),
            }
    }

    /// Features of each level, fine to coarse.
    fn widths(&self) -> [i64; LEVELS] {
        std::array::from_fn(|level| self.base_channels << level)
    }

    /// Maps that the head asks for.
    fn maps(&self) -> i64 {
        match self.head {
            Head::Residual => self.output_channels,
            Head::Scattering => 1,
            Head::Curve => CURVE_STEPS * self.output_channels,
        }
    }

    /// Values that the head asks for once a picture.
    fn globals(&self) -> i64 {
        match self.head {
            Head::Scattering => self.output_channels,
            Head::Residual | Head::Curve => 0,
        }
    }

    /// The size at which a picture of this size is looked at.
    fn working(&self, [h, w]: [i64; 2]) -> [i64; 2] {
        let (most, longer) = (self.work_size, h.max(w));
        if longer <= most {
            return [h, w];
        }
        [h, w].map(|side| ((2 * side * most + longer) / (2 * longer)).max(1))
    }
}

/// `x + conv(relu(conv(x)))`.
struct Residual([Conv; 2]);

impl Residual {
    fn new(scope: &Scope, channels: i64) -> Result<Self, ModelError> {
        let conv = |name| conv3(&scope.sub(name), channels, channels, true);
        Ok(Self([conv("conv1")?, conv("conv2")?]))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x + self.0[1].forward(&self.0[0].forward(x).relu())
    }
}

/// The whole picture in a few numbers: (B, C, h, w) -> (B, C + globals), out of the mean and the largest value of each feature.
struct Pooled([Linear; 2]);

impl Pooled {
    fn new(scope: &Scope, channels: i64, globals: i64) -> Result<Self, ModelError> {
        let linear = |name, inputs, outputs| Linear::new(&scope.sub(name), inputs, outputs, true);
        Ok(Self([
            linear("fc1", 2 * channels, channels)?,
            linear("fc2", channels, channels + globals)?,
        ]))
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let flat = x.flatten(2, 3);
        let mean = flat.mean_dim([2i64].as_slice(), false, None::<Kind>);
        let both = Tensor::cat(&[mean, flat.amax([2i64].as_slice(), false)], 1);
        self.0[1].forward(&self.0[0].forward(&both).relu())
    }
}

/// One thread for libtorch until it is dropped.
struct Alone {
    before: i32,
}

impl Alone {
    fn new() -> Self {
        let before = tch::get_num_threads();
        tch::set_num_threads(1);
        Self { before }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        tch::set_num_threads(self.before);
    }
}

/// The network.
pub struct UvmLite {
    config: UvmLiteConfig,
    stem: Conv,
    encoder: Vec<Part<Residual>>,
    /// To the next coarser level.
    down: Vec<Conv>,
    ub: Uvmb,
    pooled: Pooled,
    middle: Residual,
    /// To four times the features of the next finer level, which pixel shuffling spreads; coarse to fine.
    up: Vec<Conv>,
    decoder: Vec<Part<Residual>>,
    head: Conv,
}

impl UvmLite {
    /// Registers the parameters from the picture in to the picture out.
    pub fn new(scope: &Scope, config: &UvmLiteConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let widths = config.widths();
        let coarsest = widths[LEVELS - 1];
        let pointwise = |name: String, inputs, outputs| {
            let options = ConvOptions {
                kernel: vec![1; 2],
                stride: vec![1; 2],
                padding: vec![0; 2],
                groups: 1,
                weight: TORCH_WEIGHT,
                bias: Some(Init::torch_bias(inputs)),
            };
            Conv::new(&scope.sub(name), inputs, outputs, options)
        };
        let per_position = UNSHUFFLE * UNSHUFFLE;
        let stem = conv3(
            &scope.sub("stem"),
            per_position * config.seen(),
            widths[0],
            true,
        )?;
        let (mut encoder, mut down) = (Vec::new(), Vec::new());
        for (level, pair) in widths.windows(2).enumerate() {
            let block = Residual::new(&scope.sub(format!("encoder{level}")), pair[0])?;
            encoder.push(Part::new(block));
            let options = ConvOptions {
                kernel: vec![2; 2],
                stride: vec![2; 2],
                padding: vec![0; 2],
                groups: 1,
                weight: TORCH_WEIGHT,
                bias: Some(Init::torch_bias(4 * pair[0])),
            };
            let at = scope.sub(format!("down{level}"));
            down.push(Conv::new(&at, pair[0], pair[1], options)?);
        }
        let block = UvmbConfig {
            channels: coarsest,
            tokens: Tokens::Permute,
            attention: Attention::Channels,
            positions: Positions::Pooled(config.channel_grid),
        };
        let ub = Uvmb::new(&scope.sub("ub"), block)?;
        let pooled = Pooled::new(&scope.sub("pooled"), coarsest, config.globals())?;
        let middle = Residual::new(&scope.sub("middle"), coarsest)?;
        let (mut up, mut decoder) = (Vec::new(), Vec::new());
        for (level, pair) in widths.windows(2).enumerate().rev() {
            up.push(pointwise(format!("up{level}"), pair[1], 4 * pair[0])?);
            let block = Residual::new(&scope.sub(format!("decoder{level}")), pair[0])?;
            decoder.push(Part::new(block));
        }
        // all maps start at nothing, so that the first output is the picture itself
        let options = ConvOptions {
            kernel: vec![3; 2],
            stride: vec![1; 2],
            padding: vec![1; 2],
            groups: 1,
            weight: Init::Constant(0.0),
            bias: Some(Init::Constant(0.0)),
        };
        let maps = per_position * config.maps();
        let head = Conv::new(&scope.sub("head"), widths[0], maps, options)?;
        Ok(Self {
            config: config.clone(),
            stem,
            encoder,
            down,
            ub,
            pooled,
            middle,
            up,
            decoder,
            head,
        })
    }

    /// What to do with each pixel (B, maps, h, w) and, for the scattering head, the logit of the air light (B, C, 1, 1).
    fn look(&self, x: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
        let (_, _, h, w) = x.size4()?;
        let beyond = |side: i64| (COARSEST - side % COARSEST) % COARSEST;
        let seen = match self.config.evidence {
            Evidence::None => x.shallow_clone(),
            Evidence::DarkChannel => Tensor::f_cat(&[x, &dark_channel::planes_of(x)?], 1)?,
        };
        // replicated, for a frame of zeros would be darker than any haze
        let y = match (beyond(h), beyond(w)) {
            (0, 0) => seen,
            (dy, dx) => seen.f_replication_pad2d([0, dx, 0, dy])?,
        };
        let mut y = self.stem.forward(&y.f_pixel_unshuffle(UNSHUFFLE)?);
        let mut skips = Vec::with_capacity(LEVELS - 1);
        for (block, down) in self.encoder.iter().zip(&self.down) {
            let skip = block.run(&y, |block, x| Ok(block.forward(x)))?;
            y = down.forward(&skip);
            skips.push(skip);
        }
        y = &y + self.ub.forward(&y)?;
        let whole = self.pooled.forward(&y).unsqueeze(-1).unsqueeze(-1);
        let channels = y.size()[1];
        y = self.middle.forward(&(&y + whole.narrow(1, 0, channels)));
        for ((up, block), skip) in self.up.iter().zip(&self.decoder).zip(skips.iter().rev()) {
            let both = up.forward(&y).f_pixel_shuffle(2)? + skip;
            y = block.run(&both, |block, x| Ok(block.forward(x)))?;
        }
        let maps = self.head.forward(&y).f_pixel_shuffle(UNSHUFFLE)?;
        let maps = maps.narrow(2, 0, h).narrow(3, 0, w);
        Ok((maps, whole.narrow(1, channels, self.config.globals())))
    }

    /// Of each picture (B, 1, 1, 1), how much of the change is made: nothing where there is little haze, all where there is enough.
    fn share(&self, maps: &Tensor) -> Option<Tensor> {
        let [least, whole] = self.config.thin_haze?;
        // 1/t = 1 + g; where a picture is darkened, g is below zero
        let depth = gain(maps).clamp_min(-0.9).log1p();
        let mean = depth.mean_dim([1i64, 2, 3].as_slice(), true, None::<Kind>);
        let t = ((mean - least) / (whole - least)).clamp(0.0, 1.0);
        Some(&t * &t * (3.0 - 2.0 * &t))
    }

    /// The clear picture.
    fn apply(&self, x: &Tensor, maps: &Tensor, globals: &Tensor, share: Option<Tensor>) -> Tensor {
        match self.config.head {
            Head::Residual => x + maps,
            Head::Scattering => {
                let gain = gain(maps);
                let gain = match share {
                    Some(share) => gain * share,
                    None => gain,
                };
                x + gain * (x - (globals + FIRST_AIR).sigmoid())
            }
            Head::Curve => maps
                .tanh()
                .chunk(CURVE_STEPS, 1)
                .iter()
                .fold(x.shallow_clone(), |y, a| &y + a * &y * (1.0 - &y)),
        }
    }
}

/// g = 1/t - 1 out of what the network gives for it.
fn gain(maps: &Tensor) -> Tensor {
    maps.clamp(-MOST_GAIN, MOST_GAIN).sinh()
}

/// Enlarges `maps` of the reduced picture `small` to the size of the picture `x`, along the edges of its grey: the filter's linear functions
/// of grey are found on the small picture and applied on the large.
fn enlarge(maps: &Tensor, small: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
    let grey = |t: &Tensor| t.mean_dim([1i64].as_slice(), true, None::<Kind>);
    let side = 2 * GUIDE_RADIUS + 1;
    let mean = |t: &Tensor| {
        t.f_avg_pool2d(
            [side, side],
            [1, 1],
            [GUIDE_RADIUS; 2],
            false,
            // where the window leaves the picture, the mean is of what lies inside
            false,
            None::<i64>,
        )
    };
    let guide = grey(small);
    let (m, g) = (mean(maps)?, mean(&guide)?);
    let variance = mean(&guide.square())? - g.square();
    let a = (mean(&(maps * &guide))? - &m * &g) / (variance + GUIDE_EPS);
    let b = &m - &a * &g;
    let (_, _, h, w) = x.size4()?;
    let up = |t: &Tensor| mean(t)?.f_upsample_bilinear2d([h, w], false, None::<f64>, None::<f64>);
    Ok(up(&a)? * grey(x) + up(&b)?)
}

impl Network for UvmLite {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        check_input(x, &[self.config.input_channels], &self.divisor())?;
        let (_, _, h, w) = x.size4()?;
        let working = self.config.working([h, w]);
        let small_enough = |t: &Tensor| !train && t.numel() as i64 <= t.size()[1] * ONE_THREADED;
        let _alone = small_enough(x).then(Alone::new);
        if working == [h, w] {
            let (maps, globals) = self.look(x)?;
            let share = if train { None } else { self.share(&maps) };
            return Ok(vec![self.apply(x, &maps, &globals, share)]);
        }
        let small = x.f_adaptive_avg_pool2d(working)?;
        let (maps, globals) = {
            let _alone = small_enough(&small).then(Alone::new);
            self.look(&small)?
        };
        let share = if train { None } else { self.share(&maps) };
        let maps = enlarge(&maps, &small, x)?;
        Ok(vec![self.apply(x, &maps, &globals, share)])
    }

    fn divisor(&self) -> Vec<i64> {
        vec![1; 2]
    }

    fn stages(&self) -> Vec<Stage> {
        let widths = self.config.widths();
        let stage = |name: String, level: usize| Stage {
            name,
            channels: widths[level],
            reduction: vec![UNSHUFFLE << level; 2],
        };
        let down = (0..LEVELS - 1).map(|level| stage(format!("encoder{level}"), level));
        let up = (0..LEVELS - 1)
            .rev()
            .map(|level| stage(format!("decoder{level}"), level));
        let last = Stage {
            name: "head".into(),
            channels: self.config.output_channels,
            reduction: vec![1; 2],
        };
        down.chain([stage("ub".into(), LEVELS - 1)])
            .chain(up)
            .chain([last])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn maps_are_enlarged_along_edges() {
        // blocks of grey whose edges fall between the pixels of the reduced picture
        let block = |n: i64| (Tensor::arange(n, (Kind::Float, Device::Cpu)) / 37.0).floor();
        let (y, x) = (block(160).reshape([160, 1]), block(240).reshape([1, 240]));
        let picture = ((y * 3.0 + x * 2.0).fmod(7.0) / 7.0).expand([1, 3, 160, 240], false);
        let small = picture.adaptive_avg_pool2d([40, 60]);
        let maps = small.narrow(1, 0, 1) * 0.5 + 0.2;
        let ideal = picture.narrow(1, 0, 1) * 0.5 + 0.2;
        let off = |t: &Tensor| (t - &ideal).abs().mean(Kind::Float).double_value(&[]);
        let plain = maps.upsample_bilinear2d([160, 240], false, None::<f64>, None::<f64>);
        let along = enlarge(&maps, &small, &picture).unwrap();
        assert!(
            off(&along) < 0.3 * off(&plain),
            "{} {}",
            off(&along),
            off(&plain)
        );
    }
}
