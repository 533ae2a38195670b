//! `tributary completion SHELL`.

use clap::CommandFactory;

pub(crate) fn run(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut crate::cli::Cli::command(), "tributary", &mut std::io::stdout());
}
