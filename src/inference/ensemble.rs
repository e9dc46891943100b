//! Networks that predict together. The folds of one network are averaged in their scores, different networks in their probabilities on the
//! file's grid, as nnU-Net does. All go in step, plane by plane, so that what is held does not grow with the length of the volume.

use std::path::Path;
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use ndarray::Array4;
use tch::Tensor;
use vision_mamba_datasets::{
    prepare_case, Column, Configuration, Image, Plan, PreparedCase, Restoring,
};
use vision_mamba_ops::memory::KeptBlocks;

use super::member::Member;
use super::sliding_window::{OnWindow, Planes};
use super::volume::PredictOptions;

/// Members sorted by what they share.
pub struct Ensemble<'a> {
    members: &'a [Member],
    recipe: Recipe,
    /// Groups whose plans have one order of axes.
    columns: Vec<Vec<Group>>,
}

/// The folds of one network.
struct Group {
    /// Its preprocessed images.
    grid: usize,
    /// Members that share their windows.
    sets: Vec<Vec<usize>>,
}

/// How images are preprocessed for an ensemble: once for each grid.
#[derive(Clone)]
pub struct Recipe(Arc<Vec<(Plan, Configuration)>>);

/// A case on every grid.
pub struct Prepared(Vec<PreparedCase>);

impl Prepared {
    /// Bytes of the largest plane of one score.
    pub fn largest_plane(&self) -> usize {
        let plane = |c: &PreparedCase| 4 * c.image.shape()[2] * c.image.shape()[3];
        self.0.iter().map(plane).max().unwrap_or(0)
    }
}

/// Of each output plane and group, how many planes of scores it needs.
pub type Schedule = Vec<Vec<usize>>;

/// Where a plane of scores belongs: column and group.
pub type Address = (usize, usize);

impl Recipe {
    /// Preprocesses an image.
    pub fn prepare(&self, id: &str, image: &Image) -> Result<Prepared> {
        let cases = self.0.iter().map(|(plan, configuration)| {
            let mut case = prepare_case(id, image, None, plan, configuration)?;
            // nothing is predicted from it
            case.seg = ndarray::Array3::zeros((0, 0, 0));
            Ok(case)
        });
        cases.collect::<Result<_>>().map(Prepared)
    }
}

/// Calls `place` with the number of the first list that an item fits into, or of a new one.
fn sorted_into<T>(lists: &mut Vec<Vec<T>>, item: T, fits: impl Fn(&T, &T) -> bool) {
    match lists.iter_mut().find(|list| fits(&list[0], &item)) {
        Some(list) => list.push(item),
        None => lists.push(vec![item]),
    }
}

impl<'a> Ensemble<'a> {
    /// Sorts the members.
    pub fn new(members: &'a [Member]) -> Result<Self> {
        ensure!(!members.is_empty(), "no run was given");
        let mut recipe: Vec<(Plan, Configuration)> = Vec::new();
        let mut first_of: Vec<usize> = Vec::new();
        let mut networks: Vec<Vec<usize>> = Vec::new();
        for number in 0..members.len() {
            sorted_into(&mut networks, number, |&a, &b| {
                members[a].same_network(&members[b])
            });
        }
        let mut columns: Vec<Vec<Group>> = Vec::new();
        for network in networks {
            let member = &members[network[0]];
            let known = first_of
                .iter()
                .position(|&first| members[first].same_grid(member));
            let grid = match known {
                Some(grid) => grid,
                None => {
                    first_of.push(network[0]);
                    recipe.push((member.plan.clone(), member.configuration()?.clone()));
                    recipe.len() - 1
                }
            };
            let mut sets = Vec::new();
            for number in network {
                sorted_into(&mut sets, number, |&a, &b| {
                    members[a].tile() == members[b].tile()
                });
            }
            sorted_into(&mut columns, Group { grid, sets }, |a, b| {
                recipe[a.grid].0.transpose_forward == recipe[b.grid].0.transpose_forward
            });
        }
        Ok(Self {
            members,
            recipe: Recipe(Arc::new(recipe)),
            columns,
        })
    }

    /// Number of scores of a voxel.
    pub fn classes(&self) -> usize {
        self.members[0].info.outputs()
    }

    /// How its images are preprocessed.
    pub fn recipe(&self) -> Recipe {
        self.recipe.clone()
    }

    fn configuration(&self, group: &Group) -> &Configuration {
        &self.recipe.0[group.grid].1
    }

    /// The way back of a case, and for each column the order in which it is to be fed. Large probabilities lie in a file in `folder`.
    pub fn restoring(
        &self,
        case: &Prepared,
        folder: &Path,
        probabilities: bool,
    ) -> Result<(Restoring, Vec<Schedule>)> {
        let columns: Vec<Column> = self
            .columns
            .iter()
            .map(|groups| {
                let source = case.0[groups[0].grid].source.clone();
                let ways: Vec<_> = groups
                    .iter()
                    .map(|g| (size_of(&case.0[g.grid].image), self.configuration(g)))
                    .collect();
                Column::new(source, &ways)
            })
            .collect();
        let schedule = columns.iter().map(Column::schedule).collect();
        let info = &self.members[0].info;
        let restoring = Restoring::new(
            columns,
            info.outputs(),
            info.decision(),
            folder,
            probabilities,
        )?;
        Ok((restoring, schedule))
    }

    /// Bytes that predicting a case takes beside the networks and one window: its images, the bands of sums, planes and labels.
    pub fn bytes(&self, case: &Prepared, probabilities: bool) -> u64 {
        let classes = self.members[0].info.outputs();
        let images: u64 = case.0.iter().map(|c| 4 * c.image.len() as u64).sum();
        let source = &case.0[0].source;
        let voxels: u64 = source.size.iter().map(|&n| n as u64).product();
        let bands = |groups: &Vec<Group>| -> u64 {
            let of_group = |g: &Group| -> u64 {
                let size = size_of(&case.0[g.grid].image);
                let plane = 4 * (classes * size[1] * size[2]) as u64;
                let sums = g.sets.iter().map(|set| {
                    let tile = self.members[set[0]].tile();
                    Planes::band_bytes(classes, tile, size)
                });
                sums.sum::<u64>() + PLANES_HELD * plane
            };
            groups.iter().map(of_group).sum()
        };
        let kept = match probabilities || self.columns.len() > 1 {
            true => 4 * classes as u64 * voxels,
            false => 0,
        };
        // columns go one after the other
        images + self.columns.iter().map(bands).max().unwrap_or(0) + 2 * voxels + kept
    }

    /// Predicts a case: hands planes of scores to `sink`, in the order of the schedule.
    pub fn predict(
        &self,
        case: Prepared,
        schedule: &[Schedule],
        options: &PredictOptions,
        on_window: &mut OnWindow,
        sink: &mut dyn FnMut(Address, Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        let _every_window_takes_the_same = KeptBlocks::begin();
        let images: Vec<Tensor> = case
            .0
            .into_iter()
            .map(|c| tensor_of(&c.image))
            .collect::<Result<_>>()?;
        for (column, (groups, planes)) in self.columns.iter().zip(schedule).enumerate() {
            let mut sources: Vec<Source> = groups
                .iter()
                .map(|g| self.source(g, &images[g.grid], options))
                .collect::<Result<_>>()?;
            for needed in planes {
                for (group, (source, &needed)) in sources.iter_mut().zip(needed).enumerate() {
                    while source.given < needed {
                        sink((column, group), source.next(on_window)?)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn source(
        &self,
        group: &Group,
        image: &Tensor,
        options: &PredictOptions,
    ) -> Result<Source<'a>> {
        let members = self.members;
        let sets = group.sets.iter().map(|set| {
            let voices = set.iter().map(|&m| members[m].voice(options)).collect();
            Planes::new(image, &members[set[0]].window(options), voices)
        });
        Ok(Source {
            sets: sets.collect::<Result<_>>()?,
            members: group.sets.iter().map(Vec::len).sum(),
            given: 0,
        })
    }
}

/// Planes of scores that wait between prediction and the way back, about: two on the way back, some between.
const PLANES_HELD: u64 = 6;

/// The mean of a group's scores, plane by plane.
struct Source<'a> {
    sets: Vec<Planes<'a>>,
    members: usize,
    given: usize,
}

impl Source<'_> {
    fn next(&mut self, on_window: &mut OnWindow) -> Result<Vec<f32>> {
        let mut sum: Option<Vec<f32>> = None;
        for set in &mut self.sets {
            let plane = set
                .next(on_window)?
                .context("the scores ended before the volume")?;
            sum = Some(match sum {
                Some(mut sum) => {
                    sum.iter_mut().zip(&plane).for_each(|(s, p)| *s += p);
                    sum
                }
                None => plane,
            });
        }
        let mut mean = sum.context("no run was given")?;
        if self.members > 1 {
            let n = self.members as f32;
            mean.iter_mut().for_each(|v| *v /= n);
        }
        ensure!(
            mean.iter().all(|v| v.is_finite()),
            "the network's output is not finite; the run's weights are unusable"
        );
        self.given += 1;
        Ok(mean)
    }
}

fn size_of(image: &Array4<f32>) -> [usize; 3] {
    [image.shape()[1], image.shape()[2], image.shape()[3]]
}

/// An array as a tensor that owns its values.
pub fn tensor_of(array: &Array4<f32>) -> Result<Tensor> {
    let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
    let standard = array.as_standard_layout();
    let values = standard
        .as_slice()
        .context("image array is not contiguous")?;
    Ok(Tensor::f_from_slice(values)?.f_view(&shape[..])?)
}
