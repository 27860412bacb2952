//! The `causeway` command: shows what the datapath does, keeps it right, and takes it away.

mod agent;
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
