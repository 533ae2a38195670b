//! Another state, for definitions that the joiner's state cannot serve as it stands ([`joiner::definitions`]): built beside it, in `<state>.next`, of the streams from their beginning, or of the archive.
//!
//! Meanwhile the old state goes on, with the definitions that stand in it: its sinks are written, its entities are served. Nothing is written of the new one. Once the new state is live and not behind the old one, the parts stop, the folders
//! are exchanged, and the parts start again. Sinks have no cursor in the new state, so each is told all entities anew; what is told is not older than anything that it was told before, because the new state had come at
//! least as far (INV-5).
//!
//! # What a kill leaves
//! A `.next` that was being built is gone on with, if it is for the definitions that are wanted now; if it is for others, or none is needed any more, it is removed. In the exchange, `.next` is whole:
//!
//! | state | `.next` | `.old` | what had happened | what is done |
//! |---|---|---|---|---|
//! | yes | yes or no | no | nothing yet | nothing |
//! | no | yes | yes | killed between the two renames | the second rename |
//! | yes | no | yes | killed before the old state was removed | it is removed |

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use joiner::definitions::{Way, compare, served};
use joiner::{Handle, Joiner, JoinerPhase};
use schemas::Lsn;
use schemas::contract::Contract;
use schemas::plan::Plan;
use streams::Provider;
use tokio_util::sync::CancellationToken;

use crate::config::table_of;

/// How often the two states are held against each other.
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn beside(state: &Path, suffix: &str) -> PathBuf {
    let mut name = state.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What is served now, and what is built beside it.
pub(crate) struct Chosen {
    /// Of what is served.
    pub(crate) plans: Vec<Plan>,
    /// The state to be built, if one is.
    pub(crate) next: Option<joiner::Config>,
}

/// Decides by which definitions entities are served now. Ends what an interrupted exchange has left. Nobody may have the state open.
pub(crate) fn choose(settings: &joiner::Config, plans: Vec<Plan>, contracts: &[Contract]) -> anyhow::Result<Chosen> {
    let state = &settings.state_dir;
    settle(state)?;
    let next = joiner::Config { state_dir: beside(state, ".next"), ..settings.clone() };
    let definitions = served(state)?;
    let way = compare(settings)?.map(|difference| difference.way);
    let Some(Way::Rebuild { lacking }) = way.filter(|_| !definitions.is_empty()) else {
        remove_ours(&next.state_dir)?;
        return Ok(Chosen { plans, next: None });
    };
    let way = compare(&next).map(|difference| difference.map(|difference| difference.way));
    if !matches!(way, Ok(None | Some(Way::Nothing | Way::InPlace { .. }))) {
        remove_ours(&next.state_dir)?;
    }
    let tables = table_of(contracts);
    let old = Plan::resolve_all(&definitions, &tables).context(
        "the entity definitions have changed so that another state has to be built, and those that are served until then no longer fit the table contracts: put the old ones back, or name an empty state directory",
    )?;
    let lacking: Vec<String> = lacking.iter().map(ToString::to_string).collect();
    tracing::warn!(
        lacking = lacking.join("; "),
        next = %next.state_dir.display(),
        "the entity definitions have changed: another state is built for them, and the old ones are served until it has caught up"
    );
    Ok(Chosen { plans: old, next: Some(next) })
}

/// Builds the other state until it has caught up with the one that is served; answers then, or when told to stop. Having failed, it waits for somebody to help: the old state goes on.
pub(crate) async fn build(
    next: Joiner,
    served: Handle,
    provider: Arc<dyn Provider>,
    shutdown: CancellationToken,
) -> anyhow::Result<bool> {
    let (handle, stop) = (next.handle(), shutdown.child_token());
    let running = tokio::spawn(next.run(provider, Vec::new(), stop.clone()));
    let mut look = tokio::time::interval(LOOK_EVERY);
    let caught_up = loop {
        tokio::select! {
            () = shutdown.cancelled() => break false,
            _ = look.tick() => {}
        }
        if has_caught_up(&handle, &served) {
            break true;
        }
        if running.is_finished() {
            // It has said why, and its status does.
            shutdown.cancelled().await;
            break false;
        }
    };
    stop.cancel();
    let ended = running.await.context("the joiner of the other state ended abnormally")?;
    if caught_up {
        ended.context("the joiner of the other state stopped")?;
        tracing::info!(frontier = %frontier(&handle).unwrap_or_default(), "the other state has caught up, and takes over");
    }
    Ok(caught_up)
}

fn frontier(handle: &Handle) -> Option<Lsn> {
    let head = *handle.outbox().head().borrow();
    head.live.then_some(head.frontier)
}

/// Not while the old state is read again itself: it may yet go on to where the other one is not.
fn has_caught_up(next: &Handle, old: &Handle) -> bool {
    let old_is_done = matches!(old.status().phase, JoinerPhase::Live | JoinerPhase::Failed);
    if !old_is_done || frontier(next).is_none_or(|frontier| frontier < old.outbox().head().borrow().frontier) {
        return false;
    }
    // Of several sources, a greater version may yet be behind in one of them.
    let (next, old) = (next.status().sources, old.status().sources);
    old.iter().all(|(name, old)| next.get(name).is_some_and(|next| next.frontier >= old.frontier))
}

/// Puts the state that was built in the place of the old one. Nobody may have either open.
pub(crate) fn take_over(state: &Path) -> anyhow::Result<()> {
    let (next, old) = (beside(state, ".next"), beside(state, ".old"));
    rename(state, &old)?;
    rename(&next, state)?;
    remove_ours(&old)
}

/// Ends an exchange that was interrupted.
fn settle(state: &Path) -> anyhow::Result<()> {
    let (next, old) = (beside(state, ".next"), beside(state, ".old"));
    if old.exists() && next.exists() && !state.exists() {
        rename(&next, state)?;
    }
    if state.exists() { remove_ours(&old) } else { Ok(()) }
}

fn rename(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::rename(from, to).with_context(|| format!("{} cannot be renamed to {}", from.display(), to.display()))?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).with_context(|| format!("{} cannot be written", parent.display()))
}

/// Removes a folder of ours that nobody has open; whatever else stands there is left alone.
fn remove_ours(folder: &Path) -> anyhow::Result<()> {
    if joiner::definitions::is_state(folder) {
        joiner::checkpoint::is_free(folder)?;
        joiner::definitions::remove(folder)
            .with_context(|| format!("{} is no longer needed, and cannot be removed", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A folder that looks like a state.
    fn state(folder: &Path, source: &str) {
        std::fs::create_dir_all(folder).unwrap();
        let identity = format!(r#"{{"tributary_joiner_state": 2, "source": "{source}", "definitions": "in the state"}}"#);
        std::fs::write(folder.join("identity.json"), identity).unwrap();
    }

    fn source(folder: &Path) -> Option<String> {
        let text = std::fs::read_to_string(folder.join("identity.json")).ok()?;
        Some(text.split("\"source\": \"").nth(1)?.split('"').next()?.to_owned())
    }

    #[test]
    fn an_exchange_that_was_killed_is_ended() {
        for step in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let current = dir.path().join("state");
            let (next, old) = (beside(&current, ".next"), beside(&current, ".old"));
            state(&current, "old");
            state(&next, "next");
            if step > 0 {
                rename(&current, &old).unwrap();
            }
            if step > 1 {
                rename(&next, &current).unwrap();
            }
            settle(&current).unwrap();
            let expected = if step == 0 { ("old", true) } else { ("next", false) };
            assert_eq!(
                (source(&current).as_deref(), next.exists()),
                (Some(expected.0), expected.1),
                "killed after {step} renames"
            );
            assert!(!old.exists());
        }
        let dir = tempfile::tempdir().unwrap();
        let current = dir.path().join("state");
        state(&current, "old");
        state(&beside(&current, ".next"), "next");
        take_over(&current).unwrap();
        assert_eq!(source(&current).as_deref(), Some("next"));
        assert!(!beside(&current, ".old").exists() && !beside(&current, ".next").exists());
    }

    #[test]
    fn what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let current = dir.path().join("state");
        state(&current, "old");
        let foreign = beside(&current, ".old");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
        settle(&current).unwrap();
        assert!(foreign.join("thesis.txt").exists());
    }
}
