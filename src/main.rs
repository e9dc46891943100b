//! The `vision-mamba` program: parse, run, report, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    vision_mamba::cli::run()
}
