//! Patches: pure in their number, equal through any number of threads, with the labels of their pixels and the foreground asked for.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ndarray::{Array3, Array4};
use vision_mamba_datasets::augment::{Mirroring, Rotation, Scaling};
use vision_mamba_datasets::{
    draw_batch, Augmentation, Geometry, PatchSettings, Prefetch, PreparedCase, SourceGrid,
    TrainingCase,
};

/// Channel 0 is 1 + the linear index, channel 1 its negative; one voxel in a hundred or so is of class 1 or 2.
fn prepared(id: &str, size: &[usize]) -> PreparedCase {
    let size = match *size {
        [y, x] => [1, y, x],
        [z, y, x] => [z, y, x],
        _ => panic!("{size:?}"),
    };
    let n: usize = size.iter().product();
    let value = |i: usize| 1.0 + i as f32;
    let image = Array4::from_shape_vec(
        (2, size[0], size[1], size[2]),
        (0..n).map(value).chain((0..n).map(|i| -value(i))).collect(),
    );
    let label = |i: usize| if i % 97 == 5 { 1 + (i % 2) as i16 } else { 0 };
    PreparedCase {
        id: id.into(),
        image: image.unwrap(),
        seg: Array3::from_shape_vec(size, (0..n).map(label).collect()).unwrap(),
        labelled: true,
        source: SourceGrid {
            spacing: [1.0; 3],
            size,
            bounds: size.map(|n| [0, n]),
            transpose_backward: [0, 1, 2],
            spatial_dims: 3,
            geometry: Geometry::unit(3),
        },
    }
}

fn training(case: PreparedCase) -> TrainingCase {
    TrainingCase::new(case, &[vec![1], vec![2]], None)
}

fn case(id: &str, size: &[usize]) -> TrainingCase {
    training(prepared(id, size))
}

fn settings(patch: &[usize], augment: Augmentation) -> PatchSettings {
    PatchSettings {
        training_patch: patch.to_vec(),
        batch_size: 6,
        oversample_foreground: 0.33,
        augment,
        masked_channels: Vec::new(),
        ignore_label: None,
        seed: 42,
    }
}

fn sets() -> [(Vec<TrainingCase>, Vec<usize>); 4] {
    [
        (
            vec![case("a", &[40, 50]), case("b", &[33, 21])],
            vec![16, 24],
        ),
        (vec![case("a", &[40, 50]), case("b", &[5, 3])], vec![64, 8]),
        (vec![case("a", &[12, 20, 18])], vec![8, 12, 8]),
        (
            vec![case("a", &[12, 20, 18]), case("b", &[3, 40, 9])],
            vec![16, 16],
        ),
    ]
}

#[test]
fn batches_do_not_depend_on_threads_or_on_earlier_ones() {
    for (cases, patch) in sets() {
        let settings = settings(&patch, Augmentation::default());
        let direct: Vec<_> = (5..25).map(|i| draw_batch(&cases, &settings, i)).collect();
        assert_ne!(direct[0].image, direct[1].image);
        let cases = Arc::new(cases);
        for workers in [1, 3] {
            let fetched = Prefetch::new(cases.clone(), settings.clone(), 5..25, workers).unwrap();
            assert_eq!(fetched.map(|b| b.unwrap()).collect::<Vec<_>>(), direct);
        }
        // Resuming in the middle.
        let resumed = Prefetch::new(cases.clone(), settings.clone(), 17..18, 2)
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(resumed, direct[12]);
        let other_seed = PatchSettings {
            seed: 43,
            ..settings
        };
        assert_ne!(draw_batch(&cases, &other_seed, 5).image, direct[0].image);
    }
}

/// Without augmentation every pixel comes with its own label and channels, and outside is 0.
#[test]
fn patches_are_cut_whole() {
    for (cases, patch) in sets() {
        let settings = settings(
            &patch,
            Augmentation {
                mirroring: Mirroring::default(),
                ..Augmentation::none()
            },
        );
        let voxels: usize = patch.iter().product();
        for index in 0..20 {
            let batch = draw_batch(&cases, &settings, index);
            assert_eq!(batch.shape[..2], [6, 2]);
            assert_eq!(batch.shape[2..], patch);
            for sample in 0..6 {
                let source = cases.iter().find(|c| c.id == batch.ids[sample]).unwrap();
                let label = |i: usize| if i % 97 == 5 { 1 + (i % 2) as i16 } else { 0 };
                let image = &batch.image[2 * sample * voxels..2 * (sample + 1) * voxels];
                let mut shown = 0;
                for voxel in 0..voxels {
                    let (value, found) = (image[voxel], batch.label[sample * voxels + voxel]);
                    assert_eq!(image[voxels + voxel], -value);
                    let expected = if value == 0.0 {
                        0
                    } else {
                        label(value as usize - 1)
                    };
                    assert_eq!(found, expected);
                    shown += usize::from(value > 0.0);
                }
                if sample >= 4 {
                    continue; // around a voxel, and so perhaps across the border
                }
                // As much of the image as fits is in the patch.
                let size = &source.shape[source.shape.len() - patch.len()..];
                assert_eq!(
                    shown,
                    size.iter()
                        .zip(&patch)
                        .map(|(s, p)| s.min(p))
                        .product::<usize>()
                );
            }
        }
    }
}

/// nnU-Net's rule: of 6 samples, those from round(6 * 0.67) = 4 on show foreground.
#[test]
fn the_last_samples_show_foreground() {
    let mut quiet = prepared("quiet", &[40, 50]);
    quiet.seg.fill(0);
    quiet.seg[[0, 2, 47]] = 1;
    quiet.seg[[0, 30, 3]] = 2;
    let cases = [training(quiet)];
    let settings = settings(
        &[8, 8],
        Augmentation {
            mirroring: Mirroring::default(),
            ..Augmentation::none()
        },
    );
    let mut shown = [0; 6];
    let mut classes = [0; 3];
    for index in 0..60 {
        let batch = draw_batch(&cases, &settings, index);
        for (sample, label) in batch.label.chunks(64).enumerate() {
            shown[sample] += i32::from(label.iter().any(|&l| l > 0));
            classes[label.iter().copied().max().unwrap() as usize] += 1;
        }
    }
    assert_eq!(shown[4..], [60, 60]);
    // A free patch meets a voxel by chance only: at most 64 of 33 * 43 places for each of the two.
    assert!(shown[..4].iter().all(|&s| s < 20), "{shown:?}");
    assert!(classes[1] > 35 && classes[2] > 35, "{classes:?}");
}

/// nnU-Net's bounding box: a forced voxel is the patch's centre, except near the image's beginning, where the patch stays within.
#[test]
fn a_forced_voxel_is_the_centre_up_to_the_far_border() {
    for (voxel, seen_at) in [(2, 2), (20, 8), (38, 8)] {
        let mut one = prepared("one", &[40, 40]);
        one.seg.fill(0);
        one.seg[[0, voxel, voxel]] = 1;
        let settings = settings(&[16, 16], Augmentation::none());
        let batch = draw_batch(&[training(one)], &settings, 0);
        let label = &batch.label[5 * 256..];
        assert_eq!(
            label.iter().position(|&l| l == 1),
            Some(seen_at * 16 + seen_at),
            "{voxel}"
        );
    }
}

/// What is outside the body stays 0 in masked channels and takes part in the others; its label is background.
#[test]
fn masked_channels_are_zero_outside_the_body() {
    let mut case = prepared("body", &[24, 24]);
    for ((_, y, _), label) in case.seg.indexed_iter_mut() {
        *label = if y < 12 { -1 } else { 1 };
    }
    let mut settings = settings(
        &[24, 24],
        Augmentation {
            noise: vision_mamba_datasets::augment::Noise {
                probability: 1.0,
                sigma: [0.1, 0.1],
            },
            ..Augmentation::none()
        },
    );
    settings.oversample_foreground = 0.0;
    settings.masked_channels = vec![1];
    let batch = draw_batch(&[training(case)], &settings, 3);
    let (first, second) = batch.image[..2 * 576].split_at(576);
    assert!(second[..288].iter().all(|&v| v == 0.0) && second[288..].iter().all(|&v| v != 0.0));
    assert!(first.iter().all(|&v| v != 0.0));
    assert!(
        batch.label[..288].iter().all(|&l| l == 0) && batch.label[288..576].iter().all(|&l| l == 1)
    );
}

#[test]
fn a_case_without_foreground_is_drawn_from_all_the_same() {
    let mut empty = prepared("empty", &[20, 20]);
    empty.seg.fill(0);
    let batch = draw_batch(
        &[training(empty)],
        &settings(&[8, 8], Augmentation::default()),
        0,
    );
    assert!(batch.label.iter().all(|&l| l == 0) && batch.image.iter().any(|&v| v != 0.0));
}

/// Every patch turned and scaled: labels stay on their pixels, in two and three dimensions.
#[test]
fn labels_follow_the_image_through_rotation_and_scaling() {
    let augment = Augmentation {
        rotation: Rotation {
            probability: 1.0,
            ..Default::default()
        },
        scaling: Scaling {
            probability: 1.0,
            ..Default::default()
        },
        mirroring: Mirroring::default(),
        ..Augmentation::none()
    };
    for size in [vec![40, 50], vec![30, 32, 34]] {
        let mut blobs = prepared("blobs", &size);
        // Class 1 where the image is 10: a block off the centre.
        let inside = |n: usize| (8..22).contains(&n);
        for ((z, y, x), label) in blobs.seg.indexed_iter_mut() {
            *label = ((size.len() == 2 || inside(z)) && inside(y) && inside(x)).into();
        }
        for mut channel in blobs.image.outer_iter_mut() {
            channel.zip_mut_with(&blobs.seg, |v, l| *v = 10.0 * f32::from(*l));
        }
        let case = training(blobs);
        let patch = vec![16; size.len()];
        let (mut agreeing, mut sure, mut ones) = (0, 0, 0);
        for index in 0..20 {
            let batch = draw_batch(
                std::slice::from_ref(&case),
                &settings(&patch, augment.clone()),
                index,
            );
            let voxels: usize = patch.iter().product();
            for (image, label) in batch
                .image
                .chunks(2 * voxels)
                .zip(batch.label.chunks(voxels))
            {
                for (value, &label) in image.iter().zip(label) {
                    // The label with the greater weight is the one whose side of 5 the interpolated image lies on.
                    if (value - 5.0).abs() > 1e-3 {
                        sure += 1;
                        agreeing += usize::from((*value > 5.0) == (label == 1));
                        ones += i32::from(label);
                    }
                }
            }
        }
        assert_eq!(agreeing, sure);
        assert!(ones > 1000 && sure > 20_000, "{ones} of {sure}");
    }
}

#[test]
fn settings_out_of_range() {
    let cases = Arc::new(vec![case("a", &[20, 20])]);
    let good = settings(&[8, 8], Augmentation::default());
    good.validate(&cases).unwrap();
    let mut bad = Vec::new();
    let mut add = |field: &'static str, change: &dyn Fn(&mut PatchSettings)| {
        let mut settings = good.clone();
        change(&mut settings);
        bad.push((field, settings));
    };
    add("training_patch", &|s| s.training_patch = vec![8]);
    add("training_patch", &|s| s.training_patch = vec![8, 0]);
    add("batch_size", &|s| s.batch_size = 0);
    add("oversample_foreground", &|s| {
        s.oversample_foreground = f64::NAN
    });
    add("augment.noise.probability", &|s| {
        s.augment.noise.probability = 1.5
    });
    add("augment.rotation.max_degrees_3d", &|s| {
        s.augment.rotation.max_degrees_3d = -1.0
    });
    add("augment.scaling.range", &|s| {
        s.augment.scaling.range = [1.4, 0.7]
    });
    add("augment.blur.sigma", &|s| s.augment.blur.sigma = [0.0, 1.0]);
    add("augment.gamma.range", &|s| {
        s.augment.gamma.range = [f64::NAN, 1.0]
    });
    add("augment.mirroring.axes", &|s| {
        s.augment.mirroring.axes = vec![3]
    });
    for (field, settings) in bad {
        let message = settings.validate(&cases).unwrap_err().to_string();
        assert!(message.contains(field), "{message}");
        assert!(Prefetch::new(cases.clone(), settings, 0..1, 1).is_err());
    }
    assert!(good
        .validate(&[])
        .unwrap_err()
        .to_string()
        .contains("at least one"));
    let unknown = serde_json::from_str::<Augmentation>(r#"{"gama": {}}"#)
        .unwrap_err()
        .to_string();
    assert!(unknown.contains("gama"), "{unknown}");
    let partial: Augmentation = serde_json::from_str(r#"{"noise": {"probability": 0.5}}"#).unwrap();
    assert_eq!(
        (partial.noise.probability, partial.noise.sigma),
        (0.5, [0.0, 0.1])
    );
}

/// The very first batch, by a checksum over its bits, so that a change of the sequence is noticed: it would make runs not resumable.
#[test]
fn the_sequence_is_pinned() {
    let cases = [case("a", &[40, 50]), case("b", &[33, 21])];
    // Cutting and flipping only: powers and exponentials may differ in the last bit between platforms.
    let settings = settings(
        &[16, 24],
        Augmentation {
            mirroring: Mirroring::default(),
            ..Augmentation::none()
        },
    );
    let batch = draw_batch(&cases, &settings, 1);
    let sum = batch.image.iter().fold(0u32, |hash, v| {
        (hash ^ v.to_bits()).wrapping_mul(0x0100_0193)
    });
    assert_eq!((batch.ids.join(""), sum), ("bbaaab".into(), 904_462_336));
}
