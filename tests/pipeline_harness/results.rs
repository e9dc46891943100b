//! What an nnU-Net run leaves behind: the importer finds it, and has a place for every tensor of the checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tch::Device;
use vision_mamba::nnunet::architecture::network;
use vision_mamba::nnunet::results::find;
use vision_mamba::nnunet::trainer::Family;
use vision_mamba_datasets::{DatasetJson, Plan};
use vision_mamba_models::build;

use crate::checks::{Checks, Fallible};

/// The run whose checkpoint the file describes.
const CHECKPOINT: &str = "checkpoint_final.pth";

pub fn check(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let text = std::fs::read_to_string(folder.join("layout.json"))?;
    let layout: Value = serde_json::from_str(&text)?;
    let root = folder.parent().ok_or("no folder above")?;
    checks.run("folders", || folders(&layout));
    checks.run("checkpoint", || tensors(&layout, root));
    Ok(())
}

fn paths<'l>(layout: &'l Value, part: &str) -> Fallible<Vec<&'l str>> {
    let files = layout[part].as_object().ok_or("no files")?;
    Ok(files.keys().map(String::as_str).collect())
}

/// Empty files under those names are found as what they are.
fn folders(layout: &Value) -> Fallible<String> {
    let dir = tempfile::tempdir()?;
    let files = paths(layout, "nnUNet_results")?;
    for file in &files {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().ok_or("no folder")?)?;
        std::fs::write(path, "")?;
    }
    let found = find(dir.path())?;
    let mut checkpoints = 0;
    for trained in &found {
        let parts = trained.parts().ok_or("the folder's name has other parts")?;
        let name = format!(
            "{}__{}__{}",
            parts.trainer, parts.plans, parts.configuration
        );
        if !trained.name.ends_with(&name) {
            return Err(format!("{name} is not {}", trained.name.display()).into());
        }
        for beside in ["plans.json", "dataset.json"] {
            if !trained.folder.join(beside).is_file() {
                return Err(format!("{name} has no {beside}").into());
            }
        }
        let with = |fold: &&std::path::PathBuf| fold.join(CHECKPOINT).is_file();
        checkpoints += trained.folds.iter().filter(with).count();
    }
    let named = files.iter().filter(|f| f.ends_with(CHECKPOINT)).count();
    match checkpoints == named && named > 0 {
        true => Ok(format!("{named} fold(s) found")),
        false => Err(format!("{checkpoints} of {named} folds found").into()),
    }
}

/// The network of the plans has just the names and shapes that the checkpoint lists, second names included.
fn tensors(layout: &Value, root: &Path) -> Fallible<String> {
    let checkpoint = &layout[CHECKPOINT];
    for key in [
        "trainer_name",
        "inference_allowed_mirroring_axes",
        "current_epoch",
    ] {
        if checkpoint[key].is_null() {
            return Err(format!("the checkpoint has no `{key}`").into());
        }
    }
    let name = checkpoint["init_args"]["configuration"]
        .as_str()
        .ok_or("no configuration")?;
    let files = paths(layout, "nnUNet_results")?;
    let dataset = files[0].split('/').next().ok_or("no data set")?;
    let plan = Plan::read(
        &root
            .join("nnUNet_preprocessed")
            .join(dataset)
            .join("nnUNetPlans.json"),
    )?;
    let info = DatasetJson::read(&root.join("nnUNet_raw").join(dataset).join("dataset.json"))?;
    let ends = (info.channel_names.len() as i64, info.outputs() as i64);
    let spec = network(Family::Plans, plan.configuration(name)?, ends)
        .map_err(|(field, problem)| format!("{field}: {problem}"))?;
    let built = build(&spec, Device::Cpu)?;
    let ours: BTreeMap<String, Vec<i64>> = built
        .params
        .entries()
        .map(|(name, tensor, _)| (name.to_string(), tensor.size()))
        .collect();
    let theirs: BTreeMap<String, Vec<i64>> =
        serde_json::from_value(checkpoint["network_weights"].clone())?;
    let differ = |(name, shape): &(&String, &Vec<i64>)| ours.get(*name) != Some(*shape);
    if let Some((name, shape)) = theirs.iter().find(differ) {
        return Err(format!("{name} is {shape:?}, here {:?}", ours.get(name)).into());
    }
    if let Some(name) = ours.keys().find(|name| !theirs.contains_key(*name)) {
        return Err(format!("{name} is not in the checkpoint").into());
    }
    Ok(format!("{} names", theirs.len()))
}
