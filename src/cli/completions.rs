//! `snlp completions`: scripts that complete the command line.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use snlp::error::Error;

use super::{Cli, ui};

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "Example:\n  snlp completions bash > ~/.local/share/bash-completion/completions/snlp")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Runs the command.
    pub fn run(self) -> Result<(), Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "snlp", &mut script);
        ui::print(&String::from_utf8_lossy(&script))
    }
}
