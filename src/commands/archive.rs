//! What `tributary verify --archive` and `tributary check` say of the archive.

use std::process::ExitCode;

use anyhow::Context;
use archive::{Archive, Range, Verification};
use importer::check::{CheckItem, Level};
use schemas::Lsn;
use serde_json::{Map, json};

use crate::cli::VerifyArgs;
use crate::config::Config;

/// The archives of a configuration that has any, one for each source.
async fn open_all(config: &Config) -> anyhow::Result<Vec<Archive>> {
    config.needs_archive()?;
    config.open_archives().await
}

/// The archive of one source: the one that is named, or the only one.
pub(super) async fn open(config: &Config, source: Option<&str>) -> anyhow::Result<Archive> {
    let one = config.of(source)?;
    let name = &one.source().name;
    let mut opened = open_all(config).await?.into_iter();
    opened.find(|archive| archive.source() == name).with_context(|| format!("{name} has no archive"))
}

/// Whether the archive's store can be reached, and is this source's. (That it can be written shows when it is.)
pub(super) async fn check(config: &Config) -> Vec<CheckItem> {
    let item = |name: String, level, detail| CheckItem { name, level, detail, remedy: None };
    let archives = match config.open_archives().await {
        Ok(archives) => archives,
        Err(error) => return vec![item("archive".to_owned(), Level::Problem, format!("{error:#}"))],
    };
    let mut items = Vec::new();
    for archive in archives {
        let name = if config.has_several_sources() { format!("{}: archive", archive.source()) } else { "archive".to_owned() };
        items.push(match archive.plan(&Range { from: Some(Lsn::MAX), ..Range::default() }).await {
            Ok(plan) if plan.archived_to.is_zero() => item(name, Level::Ok, "holds nothing yet".to_owned()),
            Ok(plan) => item(name, Level::Ok, format!("is complete up to {}", plan.archived_to)),
            Err(error) => item(name, Level::Problem, error.to_string()),
        });
    }
    items
}

/// Looks through the archives of all sources.
pub(super) async fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    for archive in open_all(&Config::load(&args.config.config)?).await? {
        found.push((archive.source().to_owned(), archive::verify(&archive).await?));
    }
    let sound = found.iter().all(|(_, found)| found.is_sound());
    match (found.as_slice(), args.json) {
        ([(_, only)], true) => println!("{:#}", json!({"sound": sound, "archive": only})),
        (several, true) => {
            let archives = several.iter().map(|(source, found)| (source.clone(), json!(found))).collect::<Map<_, _>>();
            println!("{:#}", json!({"sound": sound, "archives": archives}));
        }
        ([(_, only)], false) => print!("{}", shown(only)),
        (several, false) => several.iter().for_each(|(source, found)| print!("{source}: {}", shown(found))),
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
