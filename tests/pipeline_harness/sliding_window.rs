//! Prediction by windows with a small fixed network, down to the label map on the file's grid.

use std::path::Path;

use ndarray::{Array3, Array4, Axis, Ix4};
use serde_json::Value;
use tch::{Device, Tensor};
use vision_mamba::inference::ensemble::tensor_of;
use vision_mamba::inference::sliding_window::{scores, Voice, WindowOptions};
use vision_mamba_datasets::preprocess::labels_as_volume;
use vision_mamba_datasets::{
    prepare_case, read_labels, restore, write_labels, Dataset, Decision, Plan, Split,
};

use crate::arrays::{compare, Arrays};
use crate::checks::{Checks, Fallible, Worst};

/// Logits summed in float32 on both sides.
const LOGITS: f64 = 1e-4;
/// Probabilities are stored in half precision.
const PROBABILITIES: f64 = 1e-3;

pub fn check(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".safetensors").map(str::to_owned));
    }
    names.sort();
    for name in names {
        checks.run(&name, || one(folder, &name));
    }
    Ok(())
}

fn one(folder: &Path, name: &str) -> Fallible<String> {
    let told: Value = serde_json::from_str(&std::fs::read_to_string(
        folder.join(format!("{name}.json")),
    )?)?;
    let arrays = Arrays::read(&folder.join(format!("{name}.safetensors")))?;
    let text = |key: &str| told[key].as_str().ok_or_else(|| format!("no {key}"));
    let root = folder.with_file_name("nnUNet_raw").join(text("dataset")?);
    let dataset = Dataset::open(&root)?;
    let plan = Plan::read(
        &folder
            .with_file_name("nnUNet_preprocessed")
            .join(text("dataset")?)
            .join("nnUNetPlans.json"),
    )?;
    let configuration = plan.configuration(text("configuration")?)?;
    let id = text("case")?;
    let image = dataset.load_image(id, Split::Test)?;
    let case = prepare_case(id, &image, None, &plan, configuration)?;
    let mut worst = Worst::default();
    compare(&mut worst, "input", &case.image, arrays.get("input")?, 1e-5);

    // the stored input, so that what follows is compared by itself
    let input = tensor_of(&arrays.of::<f32, Ix4>("input")?)?;
    let tile: Vec<i64> = serde_json::from_value(told["patch_size"].clone())?;
    let mirror_axes: Option<Vec<usize>> = serde_json::from_value(told["mirror_axes"].clone())?;
    let window = WindowOptions {
        step: told["tile_step_size"].as_f64().ok_or("no tile_step_size")?,
        device: Device::Cpu,
        tile,
    };
    let parameter = |name: &str| -> Fallible<Tensor> {
        let array = arrays.get(name)?;
        let shape: Vec<i64> = array.shape().iter().map(|n| *n as i64).collect();
        let values: Vec<f32> = array.iter().map(|v| *v as f32).collect();
        Ok(Tensor::from_slice(&values).view(&shape[..]))
    };
    let layers = [
        (parameter("net.0.weight")?, parameter("net.0.bias")?),
        (parameter("net.2.weight")?, parameter("net.2.bias")?),
    ];
    let convolve = |x: &Tensor, (weight, bias): &(Tensor, Tensor)| match weight.dim() {
        4 => x.conv2d(weight, Some(bias), [1i64, 1], [1i64, 1], [1i64, 1], 1),
        _ => x.conv3d(weight, Some(bias), [1i64; 3], [1i64; 3], [1i64; 3], 1),
    };
    let network = |x: &Tensor| -> anyhow::Result<Tensor> {
        let hidden = convolve(x, &layers[0]);
        let hidden = hidden.maximum(&(&hidden * 0.01));
        Ok(convolve(&hidden, &layers[1]))
    };
    let mut windows = 0;
    let voice = Voice {
        network: Box::new(network),
        mirror_axes: mirror_axes.unwrap_or_default(),
    };
    let logits = scores(&input, &window, voice, &mut || {
        windows += 1;
        Ok(())
    })?;
    let starts = told["window_starts_in_order"].as_array();
    worst.same("windows", &Some(windows), &starts.map(Vec::len));
    let logits: Array4<f32> = {
        let shape: Vec<usize> = logits.size().iter().map(|n| *n as usize).collect();
        let values: Vec<f32> = Vec::try_from(logits.contiguous().flatten(0, -1))?;
        ndarray::ArrayD::from_shape_vec(shape, values)?.into_dimensionality::<Ix4>()?
    };
    compare(
        &mut worst,
        "logits_f32",
        &logits,
        arrays.get("logits_f32")?,
        LOGITS,
    );

    // from the stored logits to the file
    let dir = tempfile::tempdir()?;
    let stored: Array4<f32> = arrays.of::<_, Ix4>("logits_f32")?;
    let restored = restore(
        stored.view(),
        &case.source,
        configuration,
        &Decision::Classes,
        Some(dir.path()),
    )?;
    let labels: Array3<i16> = labels_as_volume(&restored.labels)?;
    let theirs = arrays.get("segmentation_from_f32_logits")?;
    compare(
        &mut worst,
        "segmentation_from_f32_logits",
        &labels,
        theirs,
        0.0,
    );
    // the reference's probabilities are of its half-precision logits: where those say the same, so do the probabilities
    if let (Some(theirs), Some(ours)) = (arrays.find("probabilities"), &restored.probabilities) {
        worst.same("probabilities", &ours.view().shape(), &theirs.shape());
        let half: Array4<f32> = arrays.of::<_, Ix4>("logits_fp16_peer")?;
        let from_half = restore(
            half.view(),
            &case.source,
            configuration,
            &Decision::Classes,
            Some(dir.path()),
        )?;
        let ours = from_half.probabilities.ok_or("no probabilities")?;
        compare(
            &mut worst,
            "probabilities",
            &ours.view().to_owned(),
            theirs,
            PROBABILITIES,
        );
        let segmentation = labels_as_volume(&from_half.labels)?;
        let theirs = arrays.get("segmentation")?;
        let differ = segmentation
            .iter()
            .zip(theirs)
            .filter(|(a, b)| f64::from(**a) != **b);
        // resampled half-precision scores are rounded to half precision by the reference, which makes and breaks ties
        let allowed = theirs.len() / 1000;
        let differ = differ.count();
        if differ > allowed {
            return Err(format!("{differ} voxels of the peer's segmentation differ").into());
        }
    }
    // written and read again: the same labels in the same place as the reference's file
    let ending = &dataset.info.file_ending;
    let path = dir.path().join(format!("{id}{ending}"));
    write_labels(&path, &restored.labels)?;
    let (ours, theirs) = (
        read_labels(&path)?,
        read_labels(&folder.join(format!("{name}{ending}")))?,
    );
    worst.same(
        "size of the written file",
        &ours.data.shape(),
        &theirs.data.shape(),
    );
    for (key, a, b) in [
        ("spacing", &ours.geometry.spacing, &theirs.geometry.spacing),
        ("origin", &ours.geometry.origin, &theirs.geometry.origin),
        (
            "direction",
            &ours.geometry.direction,
            &theirs.geometry.direction,
        ),
    ] {
        worst.same(&format!("axes of {key}"), &a.len(), &b.len());
        for (a, b) in a.iter().zip(b) {
            worst.number(key, *a, *b, 1e-5);
        }
    }
    let back = labels_as_volume(&ours)?.insert_axis(Axis(0));
    worst.same("labels read again", &back.iter().eq(labels.iter()), &true);
    worst.verdict()
}
