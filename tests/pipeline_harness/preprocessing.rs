//! Fingerprints, plans and preprocessed cases of the raw data sets beside this section.

use std::path::Path;

use ndarray::Axis;
use serde_json::Value;
use vision_mamba_datasets::planner::{plan, Request};
use vision_mamba_datasets::preprocess::{
    as_volume, crop_to_body, labels_as_volume, normalise, prepare_with, LabelRule,
};
use vision_mamba_datasets::{Dataset, Fingerprint, Image, LabelMap, Plan, Planner, Split};

use crate::arrays::{compare, Arrays};
use crate::checks::{Checks, Fallible, Worst};
use crate::planning;

/// The reference keeps mean and deviation in float32.
const VALUES: f64 = 1e-5;
/// The reference estimates intensities by drawing.
const DRAWN: f64 = 1e-3;

pub fn check(folder: &Path, checks: &mut Checks) -> Fallible<()> {
    let raw = folder.with_file_name("nnUNet_raw");
    for dataset in folders(folder)? {
        let root = raw.join(&dataset);
        let dataset = Checked {
            name: dataset.clone(),
            here: folder.join(&dataset),
            data: Dataset::open(&root)?,
        };
        checks.run(&format!("{}/fingerprint", dataset.name), || {
            dataset.fingerprint()
        });
        checks.run(&format!("{}/plans", dataset.name), || dataset.plans());
        let plan = Plan::read(&dataset.here.join("nnUNetPlans.json"))?;
        for (name, configuration) in &plan.configurations {
            let cases = dataset.here.join(&configuration.data_identifier);
            for case in stems(&cases, ".safetensors")? {
                checks.run(&format!("{}/{name}/{case}", dataset.name), || {
                    dataset.case(&plan, name, &case)
                });
                checks.run(&format!("{}/{name}/{case}/steps", dataset.name), || {
                    dataset.steps(&plan, name, &case)
                });
            }
        }
    }
    Ok(())
}

fn folders(folder: &Path) -> Fallible<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn stems(folder: &Path, ending: &str) -> Fallible<Vec<String>> {
    let mut names = Vec::new();
    if folder.is_dir() {
        for entry in std::fs::read_dir(folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_suffix(ending).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

struct Checked {
    name: String,
    here: std::path::PathBuf,
    data: Dataset,
}

impl Checked {
    fn json(&self, name: &str) -> Fallible<Value> {
        Ok(serde_json::from_str(&std::fs::read_to_string(
            self.here.join(name),
        )?)?)
    }

    fn take(&self) -> Fallible<Fingerprint> {
        Ok(Fingerprint::take(&self.data, 2, &|_| {})?)
    }

    fn fingerprint(&self) -> Fallible<String> {
        let ours = serde_json::to_value(self.take()?)?;
        let theirs = self.json("dataset_fingerprint.json")?;
        let mut worst = Worst::default();
        for key in [
            "shapes_after_crop",
            "spacings",
            "median_relative_size_after_cropping",
        ] {
            planning::compare(&mut worst, key, &ours[key], &theirs[key], 1e-12);
        }
        let key = "foreground_intensity_properties_per_channel";
        // a percentile that falls between two values of the data is one or the other or between: the exact limit decides
        let limit = self.json("foreground_intensity_limit.json")?;
        for (channel, theirs) in theirs[key].as_object().ok_or("no intensities")? {
            for (name, drawn) in theirs.as_object().ok_or("no intensities")? {
                let at = format!("{channel}.{name}");
                let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
                let (ours, drawn) = (number(&ours[key][channel][name]), number(drawn));
                let exact = number(&limit["channels"][channel][name]);
                worst.number(&at, ours, exact, 1e-9 * exact.abs().max(1.0));
                // the same limit as the stored draws, within what drawing costs
                let spread = number(&theirs["std"]).abs() * 0.01;
                worst.number(&at, ours, drawn, DRAWN * drawn.abs() + spread);
            }
        }
        worst.verdict()
    }

    fn plans(&self) -> Fallible<String> {
        let theirs = self.json("nnUNetPlans.json")?;
        let mut fingerprint = self.take()?;
        // the intensities in the plan are the fingerprint's, compared above
        fingerprint.foreground_intensity_properties_per_channel =
            serde_json::from_value(theirs["foreground_intensity_properties_per_channel"].clone())?;
        let ours = plan(&Request {
            dataset_name: &self.name,
            info: &self.data.info,
            fingerprint: &fingerprint,
            planner: Planner::Default,
            memory_gb: None,
            spacing: None,
        });
        let mut worst = Worst::default();
        planning::compare(&mut worst, "", &ours.to_json(), &theirs, 1e-12);
        // and theirs survives being read and written
        let read = Plan::read(&self.here.join("nnUNetPlans.json"))?;
        planning::compare(&mut worst, "read", &read.to_json(), &theirs, 0.0);
        worst.verdict()
    }

    fn load(&self, case: &str) -> Fallible<(Image, Option<LabelMap>)> {
        if self.data.training_ids().iter().any(|id| id == case) {
            let (image, label) = self.data.load_case(case, Split::Training)?;
            return Ok((image, Some(label)));
        }
        Ok((self.data.load_image(case, Split::Test)?, None))
    }

    fn case(&self, plan: &Plan, name: &str, case: &str) -> Fallible<String> {
        let configuration = plan.configuration(name)?;
        let (image, label) = self.load(case)?;
        let folder = self.here.join(&configuration.data_identifier);
        let theirs = Arrays::read(&folder.join(format!("{case}.safetensors")))?;
        let mut worst = Worst::default();
        for (key, rule) in [
            ("seg", LabelRule::LargestShare),
            ("seg_legacy", LabelRule::LastHalf),
        ] {
            let Some(seg) = theirs.find(key) else {
                continue;
            };
            let ours = prepare_with(case, &image, label.as_ref(), plan, configuration, rule)?;
            let labels = ours.seg.clone().insert_axis(Axis(0));
            compare(&mut worst, key, &labels, seg, 0.0);
            compare(&mut worst, "data", &ours.image, theirs.get("data")?, VALUES);
            let told: Value = serde_json::from_str(&std::fs::read_to_string(
                folder.join(format!("{case}.properties.json")),
            )?)?;
            let source = &ours.source;
            let classes: Vec<Vec<i16>> = self
                .data
                .info
                .foreground()
                .into_iter()
                .map(|f| f.1)
                .collect();
            let counts: Vec<usize> = ours.locations(&classes).iter().map(Vec::len).collect();
            for (key, ours) in [
                ("shape_before_cropping", serde_json::to_value(source.size)?),
                (
                    "bbox_used_for_cropping",
                    serde_json::to_value(source.bounds)?,
                ),
                (
                    "shape_after_cropping_and_before_resampling",
                    serde_json::to_value(source.cropped_size())?,
                ),
            ] {
                worst.same(key, &ours, &told[key]);
            }
            // the locations are those of the present rule
            if key == "seg" && label.is_some() && told["class_location_counts"].is_object() {
                for ((_, values), n) in self.data.info.foreground().iter().zip(&counts) {
                    let theirs = &told["class_location_counts"][values[0].to_string()];
                    worst.same("class_location_counts", &Value::from(*n), theirs);
                }
            }
            let spacing = plan.transpose_forward.map(|a| told["spacing"][a].clone());
            for (axis, theirs) in spacing.iter().enumerate() {
                let theirs = theirs.as_f64().ok_or("no spacing")?;
                worst.number("spacing", source.spacing[axis], theirs, 0.0);
            }
            if let Some(sitk) = told["sitk_stuff"].as_object() {
                let reversed: Vec<f64> = image.geometry.spacing.iter().rev().copied().collect();
                for (key, ours) in [
                    ("spacing", &reversed),
                    ("origin", &image.geometry.origin),
                    ("direction", &image.geometry.direction),
                ] {
                    planning::compare(
                        &mut worst,
                        key,
                        &serde_json::to_value(ours)?,
                        &sitk[key],
                        1e-6,
                    );
                }
            }
        }
        worst.verdict()
    }

    /// What lies between reading and resampling, where it is stored.
    fn steps(&self, plan: &Plan, name: &str, case: &str) -> Fallible<String> {
        let file = self.here.join(format!("steps_{case}_{name}.safetensors"));
        if !file.is_file() {
            return Ok("not stored".into());
        }
        let theirs = Arrays::read(&file)?;
        let mut worst = Worst::default();
        let (image, label) = self.load(case)?;
        let (data, _) = as_volume(&image)?;
        let label = label.as_ref().map(labels_as_volume).transpose()?;
        compare(
            &mut worst,
            "read_data",
            &data.to_owned(),
            theirs.get("read_data")?,
            0.0,
        );
        if let Some(label) = &label {
            let label = label.clone().insert_axis(Axis(0));
            compare(&mut worst, "read_seg", &label, theirs.get("read_seg")?, 0.0);
        }
        let [a, b, c] = plan.transpose_forward;
        let data = data.permuted_axes([0, a + 1, b + 1, c + 1]);
        let label = label.map(|l| l.permuted_axes([a, b, c]));
        let mut cropped = crop_to_body(data.view(), label.as_ref().map(|l| l.view()));
        compare(
            &mut worst,
            "cropped_data",
            &cropped.data,
            theirs.get("cropped_data")?,
            0.0,
        );
        let seg = cropped.seg.clone().insert_axis(Axis(0));
        compare(
            &mut worst,
            "cropped_seg",
            &seg,
            theirs.get("cropped_seg")?,
            0.0,
        );
        normalise(
            &mut cropped.data,
            &cropped.seg,
            plan,
            plan.configuration(name)?,
        )?;
        let theirs = theirs.get("normalized_data")?;
        compare(&mut worst, "normalized_data", &cropped.data, theirs, VALUES);
        worst.verdict()
    }
}
