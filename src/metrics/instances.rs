//! Objects counted one by one: cells, nuclei, lesions. Pairs of objects match from an overlap on, each with at most one.

use std::collections::HashMap;

use ndarray::{Array2, ArrayD, ArrayView2, Axis, Ix2};

/// Objects are numbered from 1; 0 is background.
pub type Objects = Array2<u32>;

/// 8-connected regions of the pixels that are set, numbered by their first pixel.
pub fn components(set: ArrayView2<bool>) -> Objects {
    let (ny, nx) = set.dim();
    let mut numbers = Array2::zeros((ny, nx));
    let mut stack = Vec::new();
    let mut count = 0;
    for start in 0..ny * nx {
        let at = [start / nx.max(1), start % nx.max(1)];
        if !set[at] || numbers[at] != 0 {
            continue;
        }
        count += 1;
        numbers[at] = count;
        stack.push(at);
        while let Some([y, x]) = stack.pop() {
            for ny_ in y.saturating_sub(1)..(y + 2).min(ny) {
                for nx_ in x.saturating_sub(1)..(x + 2).min(nx) {
                    if set[[ny_, nx_]] && numbers[[ny_, nx_]] == 0 {
                        numbers[[ny_, nx_]] = count;
                        stack.push([ny_, nx_]);
                    }
                }
            }
        }
    }
    numbers
}

/// Objects out of an image of numbers, renumbered without gaps; none if it is no plane of whole numbers from 0.
pub fn numbered(image: &ArrayD<f32>) -> Option<Objects> {
    let plane = match image.ndim() {
        3 if image.shape()[0] == 1 => image.index_axis(Axis(0), 0).to_owned(),
        2 => image.clone(),
        _ => return None,
    };
    let plane = plane.into_dimensionality::<Ix2>().ok()?;
    if plane
        .iter()
        .any(|v| *v < 0.0 || v.fract() != 0.0 || *v > 16_777_216.0)
    {
        return None;
    }
    Some(renumbered(plane.mapv(|v| v as u32)))
}

fn renumbered(mut objects: Objects) -> Objects {
    let mut present: Vec<u32> = objects.iter().copied().filter(|n| *n > 0).collect();
    present.sort_unstable();
    present.dedup();
    let new: HashMap<u32, u32> = present.into_iter().zip(1..).collect();
    objects.mapv_inplace(|n| new.get(&n).copied().unwrap_or(0));
    objects
}

/// Leaves out objects that touch a frame of this many pixels.
pub fn without_border(mut objects: Objects, frame: usize) -> Objects {
    let (ny, nx) = objects.dim();
    let mut touching = vec![false; objects.iter().copied().max().unwrap_or(0) as usize + 1];
    for ((y, x), &n) in objects.indexed_iter() {
        let inside = (frame..ny.saturating_sub(frame)).contains(&y)
            && (frame..nx.saturating_sub(frame)).contains(&x);
        touching[n as usize] |= !inside;
    }
    touching[0] = false;
    objects.mapv_inplace(|n| if touching[n as usize] { 0 } else { n });
    renumbered(objects)
}

/// What matching found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matches {
    /// Objects of the reference.
    pub reference: usize,
    /// Objects predicted.
    pub predicted: usize,
    /// Pairs with enough overlap, as many as can be.
    pub tp: usize,
    /// Sum of their IoU.
    pub iou: f64,
}

impl Matches {
    /// Adds another image's.
    pub fn add(&mut self, other: &Self) {
        self.reference += other.reference;
        self.predicted += other.predicted;
        self.tp += other.tp;
        self.iou += other.iou;
    }

    /// TP / predicted; 0 without a match.
    pub fn precision(&self) -> f64 {
        ratio(self.tp as f64, self.predicted as f64)
    }

    /// TP / reference; 0 without a match.
    pub fn recall(&self) -> f64 {
        ratio(self.tp as f64, self.reference as f64)
    }

    /// 2 TP / (predicted + reference); `None` where there is no object at all.
    pub fn f1(&self) -> Option<f64> {
        let all = self.predicted + self.reference;
        (all > 0).then(|| 2.0 * self.tp as f64 / all as f64)
    }

    /// TP / (TP + FP + FN): the average precision of object detection at one overlap (Caicedo et al., Nature Methods 16, 2019).
    pub fn ap(&self) -> Option<f64> {
        let all = self.predicted + self.reference - self.tp;
        (all > 0).then(|| self.tp as f64 / all as f64)
    }

    /// Panoptic quality: sum of IoU / (TP + FP/2 + FN/2) (Kirillov et al., CVPR 2019); meant for an overlap above one half.
    pub fn pq(&self) -> Option<f64> {
        let all = self.predicted + self.reference;
        (all > 0).then(|| 2.0 * self.iou / all as f64)
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    match a > 0.0 {
        true => a / b,
        false => 0.0,
    }
}

/// Matches objects of two images whose IoU is at least `threshold`: as many pairs as possible, those of larger overlap first.
pub fn match_objects(reference: &Objects, predicted: &Objects, threshold: f64) -> Matches {
    let count = |o: &Objects| o.iter().copied().max().unwrap_or(0) as usize;
    let (n_ref, n_pred) = (count(reference), count(predicted));
    let mut overlap: HashMap<(u32, u32), usize> = HashMap::new();
    let (mut size_ref, mut size_pred) = (vec![0usize; n_ref + 1], vec![0usize; n_pred + 1]);
    for (&r, &p) in reference.iter().zip(predicted) {
        size_ref[r as usize] += 1;
        size_pred[p as usize] += 1;
        if r > 0 && p > 0 {
            *overlap.entry((r, p)).or_default() += 1;
        }
    }
    // for each object of the reference its partners, the best first
    let mut partners = vec![Vec::new(); n_ref + 1];
    for (&(r, p), &n) in &overlap {
        let union = size_ref[r as usize] + size_pred[p as usize] - n;
        let iou = n as f64 / union as f64;
        if iou >= threshold {
            partners[r as usize].push((p as usize, iou));
        }
    }
    for list in &mut partners {
        list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    let mut taken_by = vec![None; n_pred + 1];
    for r in 1..=n_ref {
        augment(r, &partners, &mut taken_by, &mut vec![false; n_pred + 1]);
    }
    let pairs = taken_by
        .iter()
        .enumerate()
        .filter_map(|(p, r)| Some((p, (*r)?)));
    let (mut tp, mut sum) = (0, 0.0);
    for (p, r) in pairs {
        tp += 1;
        sum += partners[r].iter().find(|x| x.0 == p).map_or(0.0, |x| x.1);
    }
    Matches {
        reference: n_ref,
        predicted: n_pred,
        tp,
        iou: sum,
    }
}

/// Finds a partner for an object, moving others on where they have another (Kuhn's augmenting paths).
fn augment(
    r: usize,
    partners: &[Vec<(usize, f64)>],
    taken_by: &mut [Option<usize>],
    seen: &mut [bool],
) -> bool {
    for &(p, _) in &partners[r] {
        if std::mem::replace(&mut seen[p], true) {
            continue;
        }
        let free = match taken_by[p] {
            None => true,
            Some(other) => augment(other, partners, taken_by, seen),
        };
        if free {
            taken_by[p] = Some(r);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    #[test]
    fn objects_are_found_and_matched() {
        let set = arr2(&[[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).mapv(|v| v == 1);
        let found = components(set.view());
        assert_eq!(
            found,
            arr2(&[[1, 0, 0, 2], [0, 1, 0, 2], [0, 0, 0, 0], [3, 3, 3, 3]])
        );
        let same = match_objects(&found, &found, 0.5);
        assert_eq!(
            (same.tp, same.f1(), same.ap(), same.pq()),
            (3, Some(1.0), Some(1.0), Some(1.0))
        );
        let shifted = arr2(&[[0, 0, 0, 5], [0, 5, 0, 5], [0, 0, 0, 0], [0, 0, 7, 7]]);
        let m = match_objects(&found, &renumbered(shifted), 0.5);
        // 5 holds one pixel of 1 and all of 2: 2 of 3; 7 half of 3
        assert_eq!((m.tp, m.reference, m.predicted), (2, 3, 2));
        assert!((m.iou - (2.0 / 3.0 + 0.5)).abs() < 1e-12);
        assert_eq!(without_border(found, 1), Array2::<u32>::zeros((4, 4)));
    }
}
