//! `plan`: the decisions about a data set, to read or to edit before training.

use anyhow::Result;
use vision_mamba_datasets::{Dataset, Plan};

use crate::cli::args::PlanArgs;
use crate::cli::printer::Printer;
use crate::cli::progress::Progress;

/// Looks at every training case and writes or prints the plan.
pub fn run(args: &PlanArgs, printer: &Printer) -> Result<()> {
    let dataset = Dataset::open(&args.dataset)?;
    let plan = make(&dataset, printer)?;
    match &args.out {
        Some(path) => plan.write(path)?,
        None => printer.data(&serde_json::to_string_pretty(&plan)?),
    }
    Ok(())
}

/// Makes the plan with a progress bar and says what is noteworthy.
pub fn make(dataset: &Dataset, printer: &Printer) -> Result<Plan> {
    let bar = std::cell::RefCell::new(Progress::new(
        printer,
        "planning",
        dataset.training_ids().len() as u64,
    ));
    let plan = Plan::make(dataset, &|_, _| bar.borrow_mut().step(String::new))?;
    bar.borrow().finish();
    for note in &plan.notes {
        printer.warning(note);
    }
    Ok(plan)
}
