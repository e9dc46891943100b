//! Vision Mamba (Vim): a plain sequence of bidirectional Mamba blocks over patches; classifier and backbone, 2-D.
//!
//! Paper: Zhu et al., *Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model*, 2024.
//! Reference: hustvl/Vim at dd0358ad1e42, `vim/models_mamba.py` and `seg/backbone/vim.py`.
//!
//! *Differences from the reference*
//! - Images of any size: learned positions are interpolated (bicubic, each class token's row kept where it stands), rotations computed for the
//!   new grid. The reference takes the size it was built for.
//! - The backbone takes oblong images and names its arguments for what they are.
//! - Without published weights the backbone starts as the classifier does; the reference draws every linear layer of it anew, the step
//!   sizes' too, whose biases become zero.
//! - The random place of the class token and random orders of the tokens, experiments of the reference, are not there.

mod backbone;
mod config;
pub mod mixer;
pub mod position;

pub use backbone::{LastLayer, VimBackbone, VimBackboneConfig};
pub use config::{ClassToken, Pool, VimConfig, VimNorm};

use tch::{Kind, Tensor};

use mixer::VimMixer;
use position::{interpolate, Rope};

use super::VSSM_LINEAR;
use crate::init::Init;
use crate::layers::{drop_path, Conv, ConvOptions, LayerNorm, Linear, Part, RmsNorm};
use crate::network::check_input;
use crate::{ModelError, Network, Scope, Stage};

enum Norm {
    Rms(RmsNorm),
    Layer(LayerNorm),
}

impl Norm {
    fn new(scope: &Scope, config: &VimConfig) -> Result<Self, ModelError> {
        let (dim, eps) = (config.embed_dim, VimConfig::NORM_EPS);
        Ok(match config.norm {
            VimNorm::Rms => Norm::Rms(RmsNorm::new(scope, dim, eps)?),
            VimNorm::Layer => Norm::Layer(LayerNorm::new(scope, dim, eps)?),
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Norm::Rms(norm) => norm.forward(x),
            Norm::Layer(norm) => norm.forward(x),
        }
    }
}

/// Add, norm, mix: the residual stream is what the next block adds to.
struct Block {
    mixer: VimMixer,
    norm: Norm,
    drop_path: f64,
}

impl Block {
    /// The mixer's output and the residual stream, which stays in float32.
    fn forward(
        &self,
        hidden: &Tensor,
        residual: Option<&Tensor>,
        train: bool,
    ) -> Result<[Tensor; 2], ModelError> {
        let residual = match residual {
            Some(residual) => residual + drop_path(hidden, self.drop_path, train),
            None => match hidden.kind() {
                Kind::Half | Kind::BFloat16 => hidden.to_kind(Kind::Float),
                _ => hidden.shallow_clone(),
            },
        };
        let normed = self.norm.forward(&residual).to_kind(hidden.kind());
        Ok([self.mixer.forward(&normed)?, residual])
    }
}

/// Everything but the head.
struct Trunk {
    config: VimConfig,
    class_tokens: Vec<Tensor>,
    pos_embed: Option<Tensor>,
    proj: Conv,
    rope: Option<Rope>,
    blocks: Vec<Part<Block>>,
    norm_f: Norm,
}

/// The sequence between two blocks.
struct Stream {
    hidden: Tensor,
    residual: Option<Tensor>,
}

impl Trunk {
    /// `head` is called where the reference registers its head.
    fn new<H>(
        scope: &Scope,
        config: &VimConfig,
        head: impl FnOnce(&Scope) -> Result<H, ModelError>,
    ) -> Result<(Self, H), ModelError> {
        config.validate()?;
        let dim = config.embed_dim;
        let small = Init::TruncNormal { std: 0.02 };
        let names: &[&str] = match config.class_token {
            ClassToken::None => &[],
            ClassToken::Head | ClassToken::Middle => &["cls_token"],
            ClassToken::Double => &["cls_token_head", "cls_token_tail"],
        };
        let class_tokens = names
            .iter()
            .map(|name| scope.undecayed(name, &[1, 1, dim], small))
            .collect::<Result<Vec<_>, _>>()?;
        let side = config.patches(config.img_size);
        let pos_embed = match config.pos_embed {
            true => {
                let rows = side * side + config.class_token.count();
                Some(scope.undecayed("pos_embed", &[1, rows, dim], small)?)
            }
            false => None,
        };
        let fan_in = config.input_channels * config.patch_size * config.patch_size;
        let conv = ConvOptions {
            kernel: vec![config.patch_size; 2],
            stride: vec![config.stride; 2],
            padding: vec![0; 2],
            groups: 1,
            // LeCun's normal rule, corrected for the cut at two deviations, which is not made
            weight: Init::TruncNormal {
                std: (1.0 / fan_in as f64).sqrt() / 0.879_625_661_034_239_8,
            },
            bias: Some(Init::Constant(0.0)),
        };
        let proj = Conv::new(
            &scope.sub("patch_embed.proj"),
            config.input_channels,
            dim,
            conv,
        )?;
        let rope = match config.rope {
            // the reference counts patches as if they did not overlap
            Some(pretrained) => Some(Rope::new(
                &scope.sub("rope"),
                dim,
                config.img_size / config.patch_size,
                pretrained,
            )?),
            None => None,
        };
        let head = head(scope)?;
        let blocks = (0..config.depth)
            .map(|i| {
                let at = scope.sub(format!("layers.{i}"));
                let steps = (config.depth - 1).max(1) as f64;
                Ok(Part::new(Block {
                    mixer: VimMixer::new(&at.sub("mixer"), config.mixer())?,
                    norm: Norm::new(&at.sub("norm"), config)?,
                    // one block later than its number says
                    drop_path: config.drop_path_rate * (i - 1).max(0) as f64 / steps,
                }))
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        let norm_f = Norm::new(&scope.sub("norm_f"), config)?;
        Ok((
            Self {
                config: config.clone(),
                class_tokens,
                pos_embed,
                proj,
                rope,
                blocks,
                norm_f,
            },
            head,
        ))
    }

    /// Patches with class tokens and positions, (B, M, C), and the grid of the patches.
    fn embed(&self, x: &Tensor, train: bool) -> Result<(Tensor, (i64, i64)), ModelError> {
        check_input(x, &[self.config.input_channels], &[1, 1])?;
        let shape = x.size();
        let patch = self.config.patch_size;
        if shape[2].min(shape[3]) < patch {
            let message = format!("expected at least one patch of {patch} pixels a side");
            return Err(ModelError::Input { shape, message });
        }
        let x = self.proj.forward(x);
        let grid = (x.size()[2], x.size()[3]);
        let x = x.flatten(2, 3).transpose(1, 2);
        let x = self.with_class_tokens(&x, |i| self.class_tokens[i].expand_as(&x.narrow(1, 0, 1)));
        let Some(pos_embed) = &self.pos_embed else {
            return Ok((x, grid));
        };
        let x = x + self.positions(pos_embed, grid);
        let rate = self.config.drop_rate;
        Ok((x.dropout(rate, train && rate > 0.0), grid))
    }

    /// Puts class tokens into a sequence of patches, (B, M, C).
    fn with_class_tokens(&self, patches: &Tensor, token: impl Fn(usize) -> Tensor) -> Tensor {
        let m = patches.size()[1];
        let part = |start, length| patches.narrow(1, start, length);
        match self.config.class_token {
            ClassToken::None => patches.shallow_clone(),
            ClassToken::Head => Tensor::cat(&[token(0), part(0, m)], 1),
            ClassToken::Middle => {
                Tensor::cat(&[part(0, m / 2), token(0), part(m / 2, m - m / 2)], 1)
            }
            ClassToken::Double => Tensor::cat(&[token(0), part(0, m), token(1)], 1),
        }
    }

    /// Where the class tokens stand among `patches` patches.
    fn class_places(&self, patches: i64) -> Vec<i64> {
        match self.config.class_token {
            ClassToken::None => vec![],
            ClassToken::Head => vec![0],
            ClassToken::Middle => vec![patches / 2],
            ClassToken::Double => vec![0, patches + 1],
        }
    }

    /// The learned positions for a grid.
    fn positions(&self, pos_embed: &Tensor, grid: (i64, i64)) -> Tensor {
        let side = self.config.patches(self.config.img_size);
        if grid == (side, side) {
            return pos_embed.shallow_clone();
        }
        let places = self.class_places(side * side);
        // the rows between the class tokens', taken by operations that a trace records
        let mut start = 0;
        let mut pieces = vec![];
        for place in places.iter().copied().chain([pos_embed.size()[1]]) {
            pieces.push(pos_embed.narrow(1, start, place - start));
            start = place + 1;
        }
        let patches = interpolate(&Tensor::cat(&pieces, 1), (side, side), grid);
        self.with_class_tokens(&patches, |i| pos_embed.narrow(1, places[i], 1))
    }

    /// Block `i` on the stream, rotations first.
    fn step(
        &self,
        i: usize,
        stream: &Stream,
        grid: (i64, i64),
        train: bool,
    ) -> Result<Stream, ModelError> {
        let (hidden, residual) = match &self.rope {
            Some(rope) => (
                rope.forward(&stream.hidden, grid)?,
                match &stream.residual {
                    Some(residual) if self.config.rope_residual => {
                        Some(rope.forward(residual, grid)?)
                    }
                    other => other.as_ref().map(Tensor::shallow_clone),
                },
            ),
            None => (
                stream.hidden.shallow_clone(),
                stream.residual.as_ref().map(Tensor::shallow_clone),
            ),
        };
        let run = |i: usize, hidden: &Tensor, residual: Option<&Tensor>| {
            let inputs: Vec<Tensor> = std::iter::once(hidden)
                .chain(residual)
                .map(Tensor::shallow_clone)
                .collect();
            let both = self.blocks[i].run_all(&inputs, move |block, inputs| {
                block.forward(&inputs[0], inputs.get(1), train)
            })?;
            let [out, rest] = both;
            Ok::<_, ModelError>((out, rest))
        };
        let (out, rest) = run(i, &hidden, residual.as_ref())?;
        if !self.config.paired {
            return Ok(Stream {
                hidden: out,
                residual: Some(rest),
            });
        }
        let back = residual.as_ref().map(|r| r.flip([1]));
        let (out_b, rest_b) = run(i + 1, &hidden.flip([1]), back.as_ref())?;
        Ok(Stream {
            hidden: out + out_b.flip([1]),
            residual: Some(rest + rest_b.flip([1])),
        })
    }

    /// The numbers of the blocks that begin a step.
    fn steps(&self) -> std::iter::StepBy<std::ops::Range<usize>> {
        (0..self.blocks.len()).step_by(if self.config.paired { 2 } else { 1 })
    }

    /// The residual stream with the last block's output, normalised.
    fn last_norm(&self, stream: &Stream, train: bool) -> Tensor {
        let last = drop_path(&stream.hidden, self.config.drop_path_rate, train);
        let sum = match &stream.residual {
            Some(residual) => residual + last,
            None => last,
        };
        self.norm_f.forward(&sum).to_kind(stream.hidden.kind())
    }
}

/// The classifier.
pub struct Vim {
    trunk: Trunk,
    head: Linear,
}

impl Vim {
    /// Registers the parameters in the reference's order.
    pub fn new(scope: &Scope, config: &VimConfig) -> Result<Self, ModelError> {
        let (trunk, head) = Trunk::new(scope, config, |scope| {
            Linear::with_init(
                &scope.sub("head"),
                config.embed_dim,
                config.num_classes,
                VSSM_LINEAR,
                Some(Init::Constant(0.0)),
            )
        })?;
        Ok(Self { trunk, head })
    }

    /// What the head sees: (B, C, H, W) -> (B, embed_dim), or every token, (B, M, embed_dim), when the largest logits count.
    pub fn features(&self, x: &Tensor, train: bool) -> Result<Tensor, ModelError> {
        let (hidden, grid) = self.trunk.embed(x, train)?;
        let mut stream = Stream {
            hidden,
            residual: None,
        };
        for i in self.trunk.steps() {
            stream = self.trunk.step(i, &stream, grid, train)?;
        }
        let tokens = self.trunk.last_norm(&stream, train);
        let places = self.trunk.class_places(grid.0 * grid.1);
        Ok(match (places.as_slice(), self.trunk.config.pool) {
            (&[first, second], _) => (tokens.select(1, first) + tokens.select(1, second)) * 0.5,
            (&[place], _) => tokens.select(1, place),
            (_, Pool::Last) => tokens.select(1, -1),
            (_, Pool::Mean) => tokens.mean_dim([1].as_slice(), false, None::<Kind>),
            (_, Pool::Max) => tokens,
        })
    }
}

impl Network for Vim {
    /// (B, C, H, W) -> (B, classes)
    fn forward(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>, ModelError> {
        let features = self.features(x, train)?;
        let logits = self.head.forward(&features);
        Ok(vec![match features.dim() {
            3 => logits.amax([1].as_slice(), false),
            _ => logits,
        }])
    }

    fn divisor(&self) -> Vec<i64> {
        vec![1, 1]
    }

    fn stages(&self) -> Vec<Stage> {
        let config = &self.trunk.config;
        (0..config.depth)
            .map(|i| Stage {
                name: format!("layers.{i}"),
                channels: config.embed_dim,
                reduction: vec![config.stride; 2],
            })
            .collect()
    }
}
