//! What a process leaves behind on its disk when it dies.
//!
//! Killed, it leaves what it has written: the operating system has that. After a power failure there is only what was forced to the disk, and of the rest as much as happened to get there: a log is cut at some byte
//! behind its last sync ([`crate::kernel::synced`]). Because a log is only ever appended to, such a cut is also what a kill in the middle of a step leaves, at each of its writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use crate::dice::Dice;
use crate::kernel;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    Kill,
    PowerFailure,
    /// A power failure on a disk that has kept nothing of what it was told to.
    LyingDisk,
}

/// Where the joiner's state is on its disk. Beside it is what it makes and restores checkpoints with.
pub(crate) const STATE: &str = "state";
const PREFIX: &str = "tributary-simulation-";
/// What a directory's name ends with, which is another in every run.
const NAME_CHARACTERS: usize = 6;

/// A message without the names of our directories.
pub(crate) fn without_directory(message: &str) -> String {
    let mut parts = message.split(PREFIX);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |told, rest| told + PREFIX + rest.get(NAME_CHARACTERS..).unwrap_or_default())
}

/// Memory where there is some; anywhere else otherwise.
pub(crate) fn directory() -> anyhow::Result<TempDir> {
    let base = Path::new("/dev/shm");
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX);
        builder
    };
    Ok(if base.is_dir() { builder().tempdir_in(base)? } else { builder().tempdir()? })
}

/// Files and how long they are.
type Files = BTreeMap<PathBuf, u64>;

/// The files of a directory.
fn listing(directory: &Path) -> anyhow::Result<Files> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory)?.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => files.extend(listing(&entry.path())?),
            Ok(metadata) if entry.file_name() != "LOCK" && entry.file_name() != "LOG" => {
                files.insert(entry.path(), metadata.len());
            }
            _ => {}
        }
    }
    Ok(files)
}

/// Copies a directory as it is found after a death.
pub(crate) fn leave(from: &Path, death: Death, dice: &mut Dice) -> anyhow::Result<TempDir> {
    let (to, files) = copied(from)?;
    if death != Death::Kill {
        cut_logs(from, to.path(), &files, death, dice)?;
    }
    Ok(to)
}

/// Files may come and go in the background while they are copied: then it is done again.
fn copied(from: &Path) -> anyhow::Result<(TempDir, Files)> {
    loop {
        let to = directory()?;
        let files = listing(from)?;
        let mut copied = true;
        for file in files.keys() {
            let target = to.path().join(file.strip_prefix(from)?);
            std::fs::create_dir_all(target.parent().context("a file is in a directory")?)?;
            copied &= std::fs::copy(file, target).is_ok();
        }
        if copied && listing(from)? == files {
            return Ok((to, files));
        }
    }
}

/// Cuts the database's newest log behind what is surely on the disk. Older ones are left as they are: whether one that is not needed any more is still there depends on threads in the background.
fn cut_logs(from: &Path, to: &Path, files: &Files, death: Death, dice: &mut Dice) -> anyhow::Result<()> {
    let permille = dice.below(1001);
    let is_log = |path: &Path| path.starts_with(from.join(STATE)) && path.extension().is_some_and(|extension| extension == "log");
    let Some((path, length)) = files.iter().rfind(|(path, _)| is_log(path)) else { return Ok(()) };
    let kept = match death {
        Death::LyingDisk => 0,
        Death::Kill | Death::PowerFailure => kernel::synced(&std::fs::metadata(path)?).min(*length),
    };
    let unsure = length - kept;
    let survives = if death == Death::LyingDisk { unsure / 2 } else { unsure * permille / 1000 };
    let copy = std::fs::OpenOptions::new().write(true).open(to.join(path.strip_prefix(from)?))?;
    copy.set_len(kept + survives)?;
    Ok(())
}
