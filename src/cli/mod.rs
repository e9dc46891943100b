//! The command line: what was typed ([`args`]), what is told ([`printer`], [`progress`]) and how a failure ends
//! ([`exit`]).

pub mod args;
pub mod exit;
pub mod printer;
pub mod progress;

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use args::{Cli, Command, DatasetsCommand, EvaluateCommand, ModelsCommand, WeightsCommand};
use printer::Printer;
use vision_mamba_models::Task;

/// Parses the arguments, runs the command and turns its outcome into an exit code.
pub fn run() -> ExitCode {
    crate::runtime::keep_freed_memory();
    let parsed = Cli::command()
        .try_get_matches()
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // clap prints help and version on stdout (exit 0) and misuse on stderr (exit 2).
            let code = u8::try_from(error.exit_code()).unwrap_or(exit::MISUSE);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let printer = Printer::new(cli.global.verbose, cli.global.quiet);
    let checked = resume_alone(&cli, &matches).and_then(|()| task_alone(&cli, &matches));
    match checked.and_then(|()| dispatch(cli, &printer)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = exit::code_of(&error);
            if code != exit::INTERRUPTED {
                printer.error(&error);
            }
            ExitCode::from(code)
        }
    }
}

/// What may be typed beside `--resume`: the rest is the run's own and would otherwise be passed over in silence.
const BESIDE_RESUME: [&str; 9] = [
    "dataset", "out", "resume", "model", "workers", "device", "threads", "quiet", "verbose",
];

/// Options of `train` for segmentation alone.
const SEGMENTATION_ONLY: [&str; 7] = [
    "configuration",
    "preprocessed",
    "loss",
    "oversample_foreground",
    "augment",
    "mirror",
    "save_probabilities",
];
/// Options of `train` for restoration alone.
const RESTORATION_ONLY: [&str; 7] = [
    "validation_share",
    "pixel_loss",
    "frequency_loss",
    "squared_loss",
    "ssim_loss",
    "crops",
    "haze",
];

/// What was typed and says nothing to this network is refused, not passed over.
fn task_alone(cli: &Cli, matches: &ArgMatches) -> anyhow::Result<()> {
    let (Command::Train(args), Some(typed)) = (&cli.command, matches.subcommand_matches("train"))
    else {
        return Ok(());
    };
    let task = crate::commands::train::task(args)?;
    let others: &[&str] = match task {
        Task::Restoration => &SEGMENTATION_ONLY,
        _ => &RESTORATION_ONLY,
    };
    let typed = others
        .iter()
        .filter(|id| typed.value_source(id) == Some(ValueSource::CommandLine));
    let typed: Vec<String> = typed
        .map(|id| format!("--{}", id.replace('_', "-")))
        .collect();
    if typed.is_empty() {
        return Ok(());
    }
    Err(exit::Misuse::error(format!(
        "this network is for {task}, to which {} says nothing; leave it out",
        typed.join(", ")
    )))
}

fn resume_alone(cli: &Cli, matches: &ArgMatches) -> anyhow::Result<()> {
    let Command::Train(args) = &cli.command else {
        return Ok(());
    };
    let Some(typed) = matches.subcommand_matches("train").filter(|_| args.resume) else {
        return Ok(());
    };
    let ignored: Vec<String> = typed
        .ids()
        .map(clap::Id::as_str)
        // The struct of options is a group of its own, named like the type.
        .filter(|id| id.starts_with(char::is_lowercase))
        .filter(|id| typed.value_source(id) == Some(ValueSource::CommandLine))
        .filter(|id| !BESIDE_RESUME.contains(id))
        .map(|id| format!("--{}", id.replace('_', "-")))
        .collect();
    if ignored.is_empty() {
        return Ok(());
    }
    Err(exit::Misuse::error(format!(
        "--resume goes on with the options the run was started with; leave out {}",
        ignored.join(", ")
    )))
}

fn dispatch(cli: Cli, printer: &Printer) -> anyhow::Result<()> {
    use crate::commands;
    let Cli { command, global } = cli;
    match command {
        Command::Info(args) => commands::info::run(&args, &global, printer),
        Command::Models(ModelsCommand::List(args)) => commands::models::list(&args, printer),
        Command::Models(ModelsCommand::Show(args)) => commands::models::show(&args, printer),
        Command::Weights(WeightsCommand::Inspect(args)) => {
            commands::weights::inspect(&args, printer)
        }
        Command::Weights(WeightsCommand::Import(args)) => {
            commands::weights::import_any(&args, printer)
        }
        Command::Weights(WeightsCommand::Average(args)) => {
            commands::average_weights::run(&args, printer)
        }
        Command::Datasets(DatasetsCommand::List(args)) => commands::catalog::list(&args, printer),
        Command::Datasets(DatasetsCommand::Show(args)) => commands::catalog::show(&args, printer),
        Command::Datasets(DatasetsCommand::Verify(args)) => {
            commands::datasets::verify(&args, &global, printer)
        }
        Command::Datasets(DatasetsCommand::Convert(args)) => {
            commands::datasets::convert(&args, &global, printer)
        }
        Command::Plan(args) => commands::plan::run(&args, &global, printer),
        Command::Train(args) => commands::train::run(&args, &global, printer),
        Command::Predict(args) => commands::predict::run(&args, &global, printer),
        Command::FindBest(args) => commands::find_best::run(&args, &global, printer),
        Command::Dehaze(args) => commands::dehaze::run(&args, &global, printer),
        Command::Benchmark(args) => commands::benchmark::run(&args, &global, printer),
        Command::Export(args) => commands::export::run(&args, &global, printer),
        Command::Evaluate(EvaluateCommand::Segmentation(args)) => {
            commands::evaluate::segmentation(&args, &global, printer)
        }
        Command::Evaluate(EvaluateCommand::Restoration(args)) => {
            commands::evaluate_restoration::restoration(&args, printer)
        }
    }
}
