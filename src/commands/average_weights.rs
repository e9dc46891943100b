//! `weights average`: one network out of several of the same kind, which often does better than each (Wortsman et al., *Model soups*, 2022).

use std::collections::BTreeMap;

use anyhow::{bail, Result};
use tch::{Kind, Tensor};
use vision_mamba_models::weights::{read_metadata, read_tensors, save_tensors};

use crate::cli::args::WeightsAverageArgs;
use crate::cli::exit::Misuse;
use crate::cli::printer::Printer;

/// Writes the weighted mean of files of weights.
pub fn run(args: &WeightsAverageArgs, printer: &Printer) -> Result<()> {
    if args.out.exists() && !args.force {
        return Err(Misuse::error(format!(
            "{} exists already; choose another name or add --force",
            args.out.display()
        )));
    }
    let shares = shares(args)?;
    let mut sums: BTreeMap<String, (Tensor, Tensor)> = BTreeMap::new();
    for (n, (path, share)) in args.files.iter().zip(&shares).enumerate() {
        let tensors = read_tensors(path)?;
        if n > 0 && tensors.len() != sums.len() {
            bail!(
                "{} holds {} tensors and {} holds {}: only weights of one network can be averaged",
                path.display(),
                tensors.len(),
                args.files[0].display(),
                sums.len()
            );
        }
        for (name, tensor) in tensors {
            let part = tensor.to_kind(Kind::Double) * *share;
            if n == 0 {
                sums.insert(name, (part, tensor));
                continue;
            }
            match sums.get_mut(&name) {
                Some((sum, first)) if first.size() == tensor.size() => *sum += part,
                Some((_, first)) => bail!(
                    "{}: '{name}' has shape {:?}, in {} it has {:?}",
                    path.display(),
                    tensor.size(),
                    args.files[0].display(),
                    first.size()
                ),
                None => bail!(
                    "{}: '{name}' is not in {}",
                    path.display(),
                    args.files[0].display()
                ),
            }
        }
    }
    // counters have no mean; they are the first file's
    let tensors: Vec<(String, Tensor)> = (sums.into_iter())
        .map(|(name, (sum, first))| match first.is_floating_point() {
            true => (name, sum.to_kind(first.kind())),
            false => (name, first),
        })
        .collect();
    save_tensors(&args.out, &tensors, &read_metadata(&args.files[0])?)?;
    printer.message(&format!(
        "{}: the mean of {} files, {} tensors",
        args.out.display(),
        args.files.len(),
        tensors.len()
    ));
    Ok(())
}

/// What each file counts; together one.
fn shares(args: &WeightsAverageArgs) -> Result<Vec<f64>> {
    let given = match &args.shares {
        None => vec![1.0; args.files.len()],
        Some(shares) if shares.len() == args.files.len() => shares.clone(),
        Some(shares) => {
            return Err(Misuse::error(format!(
                "--shares has {} numbers for {} files",
                shares.len(),
                args.files.len()
            )))
        }
    };
    let sum: f64 = given.iter().sum();
    if !given.iter().all(|share| share.is_finite()) || sum.abs() < 1e-9 {
        return Err(Misuse::error(
            "--shares: expected numbers whose sum is not zero",
        ));
    }
    Ok(given.iter().map(|share| share / sum).collect())
}
