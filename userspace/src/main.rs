//! The `causeway` command: shows what the datapath does, and takes it away.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
