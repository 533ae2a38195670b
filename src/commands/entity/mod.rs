//! `tributary entity`: entity definitions, looked at without a database.

mod explain;
mod trial;

use std::process::ExitCode;

use crate::cli::EntityCommand;

pub(crate) fn run(command: &EntityCommand) -> anyhow::Result<ExitCode> {
    match command {
        EntityCommand::Explain(args) => explain::run(args),
        EntityCommand::Test(args) => trial::run(args),
        EntityCommand::Schema => {
            println!("{:#}", schemas::entity::definition_schema());
            Ok(ExitCode::SUCCESS)
        }
    }
}
