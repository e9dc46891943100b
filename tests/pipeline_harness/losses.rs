//! Losses and their gradients against nnU-Net's, Mamba-UNet's and UVM-Net's.

use std::path::Path;

use ndarray::ArrayD;
use serde_json::Value;
use tch::{Kind, Tensor};
use vision_mamba::losses::image::{l1, ssim};
use vision_mamba::losses::{soft_dice, squared_dice, DiceOver, LossKind, SegmentationLoss, Target};

use crate::arrays::{compare, Arrays};
use crate::checks::{Checks, Fallible, Worst};

/// Relative, of values; float32 on both sides.
const VALUE: f64 = 1e-6;
/// Absolute, of gradients.
const GRADIENT: f64 = 1e-6;
/// The class weights of the weighted cases: they are stored nowhere but show in the gradients.
const WEIGHTS: [f64; 4] = [1.0, 2.0, 0.5, 1.5];

pub fn check(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let values: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("losses.json"))?)?;
    let arrays = Arrays::read(&folder.join("losses.safetensors"))?;
    for (name, expected) in values.as_object().ok_or("losses.json is no object")? {
        checks.run(name, || {
            let expected = expected.as_f64().ok_or("no number")?;
            let mut worst = Worst::default();
            let (set, rule) = name.split_once('.').ok_or("no set in the name")?;
            let case = Case {
                arrays: &arrays,
                set,
            };
            let (inputs, value) = match set {
                "img" => case.image(rule)?,
                "ds" => case.deep()?,
                _ => case.single(rule)?,
            };
            let scale = expected.abs().max(1.0);
            worst.number("value", value.double_value(&[]), expected, VALUE * scale);
            value.backward();
            for (suffix, input) in &inputs {
                let Some(theirs) = arrays.find(&format!("{name}.grad{suffix}")) else {
                    continue;
                };
                let grad = input.grad();
                let ours: Vec<f32> = Vec::try_from(grad.flatten(0, -1))?;
                let ours = ArrayD::from_shape_vec(theirs.shape(), ours)?;
                compare(
                    &mut worst,
                    &format!("grad{suffix}"),
                    &ours,
                    theirs,
                    GRADIENT,
                );
            }
            worst.verdict()
        });
    }
    Ok(())
}

struct Case<'a> {
    arrays: &'a Arrays,
    set: &'a str,
}

/// Inputs with gradients under the suffix of their names, and the loss.
type Outcome = (Vec<(String, Tensor)>, Tensor);

impl Case<'_> {
    fn tensor(&self, name: &str) -> Fallible<Tensor> {
        let array = self.arrays.get(&format!("{}.{name}", self.set))?;
        let shape: Vec<i64> = array.shape().iter().map(|n| *n as i64).collect();
        let values: Vec<f64> = array.iter().copied().collect();
        Ok(Tensor::from_slice(&values).view(&shape[..]))
    }

    fn input(&self, name: &str) -> Fallible<Tensor> {
        Ok(self
            .tensor(name)?
            .to_kind(Kind::Float)
            .set_requires_grad(true))
    }

    /// Labels without their channel axis.
    fn target(&self, name: &str) -> Fallible<Tensor> {
        Ok(self.tensor(name)?.to_kind(Kind::Int64).squeeze_dim(1))
    }

    fn single(&self, rule: &str) -> Fallible<Outcome> {
        let logits = self.input("logits")?;
        let target = self.target("target")?;
        let classes = logits.size()[1];
        let over = match rule.contains("batch_dice=1") {
            true => DiceOver::Batch,
            false => DiceOver::Sample,
        };
        let named = |kind, over| {
            SegmentationLoss {
                kind,
                over,
                ..Default::default()
            }
            .single(&logits, &Target::new(target.shallow_clone()))
        };
        let probabilities = || logits.softmax(1, Kind::Float);
        let one_hot = || {
            target
                .one_hot(classes)
                .movedim_int(-1, 1)
                .to_kind(Kind::Float)
        };
        let plain_dice = |smooth: f64, background: bool| {
            let from = i64::from(!background);
            let part = |t: Tensor| t.narrow(1, from, classes - from);
            soft_dice(&part(probabilities()), &part(one_hot()), None, over, smooth)
        };
        let rule = rule.split(".batch_dice").next().unwrap_or(rule).to_owned()
            + if rule.ends_with("do_bg=1") { "+bg" } else { "" };
        let value = match rule.as_str() {
            "soft_dice" => plain_dice(1e-5, false),
            "soft_dice+bg" => plain_dice(1e-5, true),
            "soft_dice_smooth1" => plain_dice(1.0, false),
            "dc_ce" => named(LossKind::DiceCe, over),
            "ce" => named(LossKind::Ce, over),
            // the rules below state no batch_dice: these are nnU-Net's defaults in their places
            "dc_topk" => named(LossKind::DiceTopk, DiceOver::Sample),
            "dc_ce_ignore" => {
                let target = self.target("target_with_ignore")?;
                let target = target.where_self(&target.lt(classes), &target.full_like(-1));
                let loss = SegmentationLoss {
                    over: DiceOver::Batch,
                    ..Default::default()
                };
                loss.single(&logits, &Target::new(target))
            }
            "dc_bce_regions" => {
                let target = self.tensor("region_target")?.to_kind(Kind::Float);
                let loss = SegmentationLoss {
                    over: DiceOver::Batch,
                    ..Default::default()
                };
                loss.regions(&logits, &target, None)
            }
            "mamba_unet_dice" => squared_dice(&probabilities(), &one_hot(), None),
            "mamba_unet_dice_weighted" => {
                let weights = WEIGHTS.get(..classes as usize);
                squared_dice(
                    &probabilities(),
                    &one_hot(),
                    Some(weights.ok_or("more classes than weights")?),
                )
            }
            "mamba_unet_train_loss" => named(LossKind::MambaUnet, over),
            "transunet_style_0p4ce_0p6dice" => named(LossKind::Transunet, over),
            other => return Err(format!("the loss {other} is not known").into()),
        };
        Ok((vec![(String::new(), logits)], value))
    }

    fn deep(&self) -> Fallible<Outcome> {
        let mut inputs = Vec::new();
        while self
            .arrays
            .find(&format!("{}.logits.{}", self.set, inputs.len()))
            .is_some()
        {
            let n = inputs.len();
            inputs.push((format!(".{n}"), self.input(&format!("logits.{n}"))?));
        }
        let outputs: Vec<Tensor> = inputs.iter().map(|(_, t)| t.shallow_clone()).collect();
        let loss = SegmentationLoss {
            over: DiceOver::Batch,
            ..Default::default()
        };
        let targets = (0..outputs.len())
            .map(|n| Ok(Target::new(self.target(&format!("target.{n}"))?)))
            .collect::<Fallible<Vec<_>>>()?;
        let value = loss.each(&outputs, &targets);
        Ok((inputs, value))
    }

    fn image(&self, rule: &str) -> Fallible<Outcome> {
        let (a, b) = (self.input("a")?, self.tensor("b")?.to_kind(Kind::Float));
        let value = match rule {
            "l1" => l1(&a, &b),
            "ssim_zero_padded_gaussian11" => ssim(&a, &b),
            "l1_plus_ssim" => l1(&a, &b) + (1.0 - ssim(&a, &b)),
            other => return Err(format!("the loss {other} is not known").into()),
        };
        Ok((vec![(String::new(), a)], value))
    }
}
