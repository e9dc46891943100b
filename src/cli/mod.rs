//! The command line: what was typed ([`args`]), what is told ([`printer`], [`progress`]) and how a failure ends
//! ([`exit`]).

pub mod args;
pub mod exit;
pub mod printer;
pub mod progress;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, EvaluateCommand, ModelsCommand};
use printer::Printer;

/// Parses the arguments, runs the command and turns its outcome into an exit code.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version on stdout (exit 0) and misuse on stderr (exit 2).
            let code = u8::try_from(error.exit_code()).unwrap_or(exit::MISUSE);
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let printer = Printer::new(cli.global.verbose, cli.global.quiet);
    match dispatch(cli, &printer) {
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

fn dispatch(cli: Cli, printer: &Printer) -> anyhow::Result<()> {
    use crate::commands;
    let Cli { command, global } = cli;
    match command {
        Command::Info(args) => commands::info::run(&args, &global, printer),
        Command::Models(ModelsCommand::List(args)) => commands::models::list(&args, printer),
        Command::Models(ModelsCommand::Show(args)) => commands::models::show(&args, printer),
        Command::Plan(args) => commands::plan::run(&args, printer),
        Command::Train(args) => commands::train::run(&args, &global, printer),
        Command::Predict(args) => commands::predict::run(&args, &global, printer),
        Command::Evaluate(EvaluateCommand::Segmentation(args)) => {
            commands::evaluate::segmentation(&args, printer)
        }
    }
}
