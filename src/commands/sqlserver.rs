//! `tributary sqlserver`: the stand-in alone.

use std::process::ExitCode;

use crate::cli::SqlserverArgs;

pub(crate) async fn run(args: SqlserverArgs) -> anyhow::Result<ExitCode> {
    let running = sqlserver::start(sqlserver::Options {
        listen: args.listen,
        data: args.data,
        database: args.database.clone(),
        sa_password: args.sa_password.clone(),
        capture_interval: args.capture_interval,
        ..sqlserver::Options::default()
    })
    .await?;
    println!("SQL Server stand-in listening on {}", running.address());
    println!("database {}, login sa; for example:", args.database);
    for line in super::connect_hints(running.address(), &args.database, &args.sa_password) {
        println!("  {line}");
    }
    super::interrupted().await?;
    running.stop().await?;
    Ok(ExitCode::SUCCESS)
}
