//! `tributary entity`: entity definitions, looked at without a database.

mod diff;
mod explain;
mod trial;

use std::process::ExitCode;

pub(crate) use diff::summary;

use crate::cli::EntityCommand;

pub(crate) fn run(command: &EntityCommand) -> anyhow::Result<ExitCode> {
    match command {
        EntityCommand::Diff(args) => diff::run(args),
        EntityCommand::Explain(args) => explain::run(args),
        EntityCommand::Test(args) => trial::run(args),
        EntityCommand::Schema => {
            println!("{:#}", schemas::entity::definition_schema());
            Ok(ExitCode::SUCCESS)
        }
    }
}
