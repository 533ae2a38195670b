//! `tributary entity diff`: what the definitions would change of what the joiner's state serves, and which way.

use std::process::ExitCode;
use std::sync::Arc;

use joiner::definitions::{Change, Difference, Kind, Way, compare};

use crate::cli::EntityDiffArgs;
use crate::config::Config;
use crate::pipeline;

/// Exit code where the state has to be built anew.
const REBUILD: u8 = 2;

pub(super) fn run(args: &EntityDiffArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config.config)?;
    let plans = pipeline::plans(&config, &config.load_contracts()?)?.into_iter().map(Arc::new).collect();
    let Some(difference) = compare(&config.joiner(plans)?)? else {
        println!("There is no state yet: the first start builds it for these definitions.");
        return Ok(ExitCode::SUCCESS);
    };
    print!("{}", told(&difference));
    Ok(if matches!(difference.way, Way::Rebuild { .. }) { ExitCode::from(REBUILD) } else { ExitCode::SUCCESS })
}

fn told(difference: &Difference) -> String {
    let mut out: String = difference.entities.iter().map(|change| format!("{}\n", of_entity(change))).collect();
    out.push_str(&summary(difference));
    out.push('\n');
    out
}

fn of_entity(Change { entity, kind }: &Change) -> String {
    match kind {
        Kind::Added => format!("+ {entity}: is new"),
        Kind::Removed => format!("- {entity}: is no longer defined; what sinks hold of it stays there as it is"),
        Kind::Changed(members) if members.is_empty() => format!("~ {entity}: the contracts of its tables have changed"),
        Kind::Changed(members) => format!("~ {entity}: {}", members.join(", ")),
    }
}

/// Which way the state comes to serve the definitions, and what that costs.
pub(crate) fn summary(difference: &Difference) -> String {
    match &difference.way {
        Way::Nothing => "The state serves these definitions.".to_owned(),
        Way::InPlace { dropped } => {
            let loaded =
                difference.entities.iter().filter(|change| change.kind != Kind::Removed).map(|change| change.entity.as_str());
            let loaded: Vec<&str> = loaded.collect();
            let mut text = "In place: the next start serves them from the rows that are kept.".to_owned();
            if !loaded.is_empty() {
                text.push_str(&format!(" Sinks are told all of {} anew, and subscribers begin anew.", loaded.join(", ")));
            }
            if *dropped > 0 {
                text.push_str(&format!(" {dropped} ways of looking rows up are dropped: to have them back takes a rebuild."));
            }
            text
        }
        Way::Rebuild { lacking } => {
            let lacking: Vec<String> = lacking.iter().map(|lacking| format!("\n    {lacking}")).collect();
            let why = if lacking.is_empty() { "\n    it was built for other definitions".to_owned() } else { lacking.concat() };
            format!(
                "By a rebuild: the state does not have what they need.{why}\n  The next start builds another state beside it, of the streams from their beginning (or the archive), and serves the old definitions until it has caught up; then all \
                 sinks are told everything anew. Meanwhile both states take room on the disk."
            )
        }
    }
}
