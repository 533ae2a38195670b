//! What `tributary verify --archive` and `tributary check` say of the archive.

use std::process::ExitCode;

use archive::{Archive, Plan, Range, Verification};
use importer::check::{CheckItem, Level};
use schemas::Lsn;
use serde_json::json;

use crate::cli::VerifyArgs;
use crate::config::Config;

/// The archive of a configuration that has one.
pub(super) async fn open(config: &Config) -> anyhow::Result<Archive> {
    let opened = config.open_archive().await?;
    opened.ok_or_else(|| anyhow::anyhow!("the configuration has no archive: add an `archive` section that names its store"))
}

/// Whether the archive's store can be reached, and is this source's. (That it can be written shows when it is.)
pub(super) async fn check(config: &Config) -> Option<CheckItem> {
    config.archive.as_ref()?;
    let found = async { open(config).await?.plan(&Range { from: Some(Lsn::MAX), ..Range::default() }).await.map_err(Into::into) };
    let found: anyhow::Result<Plan> = found.await;
    let (level, detail) = match found {
        Ok(plan) if plan.archived_to.is_zero() => (Level::Ok, "holds nothing yet".to_owned()),
        Ok(plan) => (Level::Ok, format!("is complete up to {}", plan.archived_to)),
        Err(error) => (Level::Problem, format!("{error:#}")),
    };
    Some(CheckItem { name: "archive".to_owned(), level, detail, remedy: None })
}

pub(super) async fn verify(args: &VerifyArgs, config: &Config) -> anyhow::Result<ExitCode> {
    let found = archive::verify(&open(config).await?).await?;
    if args.json {
        println!("{:#}", json!({"sound": found.is_sound(), "archive": found}));
    } else {
        print!("{}", shown(&found));
    }
    Ok(if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shown(found: &Verification) -> String {
    let count = indicatif::HumanCount;
    let mut out =
        format!("{} segments, {} objects, {} events\n", count(found.segments), count(found.objects), count(found.events));
    for damage in &found.damage {
        out.push_str(&format!("{damage}\n"));
    }
    if !found.begins.is_zero() {
        out.push_str(&format!("It begins after {}: what was committed before is not in it.\n", found.begins));
    }
    for gap in &found.gaps {
        out.push_str(&format!("a gap: {gap}\n"));
    }
    for missing in &found.missing {
        out.push_str(&format!("{missing}\n"));
    }
    out.push_str(if found.is_sound() {
        "Every object is as it was written, and everything that progress records promise is there.\n"
    } else {
        "The archive is not whole: see above.\n"
    });
    out
}
