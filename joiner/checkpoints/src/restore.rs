//! A checkpoint becomes a state directory again: whole, or not at all.
//!
//! # Why a kill at any step leaves the old state or the new one
//! Everything is fetched into a folder beside the state's, `<state>.restoring`, and held against sizes and checksums there; then the joiner's identity is written into it, everything is forced to the disk, and the folder is renamed. A directory
//! that is not empty is renamed to `<state>.replaced` before, and removed after. [`settle`], which comes before anything else, tells from what it finds how far another attempt had come:
//!
//! | `.restoring` | `.replaced` | what had happened | what is done |
//! |---|---|---|---|
//! | no | no | nothing, or everything | nothing |
//! | yes | no | it was being fetched, or is whole and nothing was renamed yet | it is removed: begin again |
//! | yes | yes | killed between the two renames; what is there is whole, or nothing would have been renamed | the second rename |
//! | no | yes | killed before the old state was removed | it is removed |

use std::fs::File as LocalFile;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt};
use joiner::checkpoint::Facts;
use xxhash_rust::xxh3::Xxh3;

use crate::manifest::{File, Manifest};
use crate::writer::{folder_error, hex};
use crate::{Checkpoints, Error};

/// Files that are fetched side by side, a part of each in memory.
const CONCURRENCY: usize = 4;

fn beside(state: &Path, suffix: &str) -> PathBuf {
    let mut name = state.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(folder_error(path, "it cannot be looked at"))
}

/// Whether there is no state yet.
pub fn is_empty(state: &Path) -> Result<bool, Error> {
    match std::fs::read_dir(state) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(folder_error(state, "it cannot be read")(error)),
    }
}

/// Ends, or takes back, what an interrupted attempt left behind. Nobody may have the state open.
pub fn settle(state: &Path) -> Result<(), Error> {
    let (restoring, replaced) = (beside(state, ".restoring"), beside(state, ".replaced"));
    match (exists(&restoring)?, exists(&replaced)?) {
        (true, true) => put_in_place(&restoring, state)?,
        (true, false) => remove(&restoring)?,
        _ => {}
    }
    if exists(&replaced)? { remove(&replaced) } else { Ok(()) }
}

fn remove(folder: &Path) -> Result<(), Error> {
    std::fs::remove_dir_all(folder).map_err(folder_error(folder, "what an interrupted attempt left cannot be removed"))
}

/// A directory that is empty gives way to the renamed one; another would not.
fn put_in_place(from: &Path, state: &Path) -> Result<(), Error> {
    std::fs::rename(from, state).map_err(folder_error(state, "the restored state cannot be put there"))?;
    sync_parent(state)
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    LocalFile::open(parent).and_then(|parent| parent.sync_all()).map_err(folder_error(parent, "it cannot be written"))
}

/// The folder in which a state is made; ends, or takes back, what another attempt left.
pub(crate) fn begin(state: &Path) -> Result<PathBuf, Error> {
    settle(state)?;
    Ok(beside(state, ".restoring"))
}

/// Makes what has been fetched the state, in place of what is there.
pub(crate) fn put_back(restoring: &Path, facts: &Facts, state: &Path) -> Result<(), Error> {
    joiner::checkpoint::seal(restoring, facts)?;
    if !is_empty(state)? {
        let replaced = beside(state, ".replaced");
        std::fs::rename(state, &replaced).map_err(folder_error(state, "it cannot be moved away"))?;
        sync_parent(state)?;
    }
    put_in_place(restoring, state)?;
    settle(state)
}

impl Checkpoints {
    /// Makes a checkpoint the state in this directory, in place of what is there. Nobody may have it open.
    pub async fn restore(&self, manifest: &Manifest, state: &Path) -> Result<(), Error> {
        let restoring = begin(state)?;
        let facts = self.fetch_all(manifest, &restoring).await?;
        put_back(&restoring, &facts, state)
    }

    /// Fetches the files of a checkpoint into a folder, as the database of a state.
    pub(crate) async fn fetch_all(&self, manifest: &Manifest, folder: &Path) -> Result<Facts, Error> {
        let database = folder.join(joiner::checkpoint::DATABASE);
        std::fs::create_dir_all(&database).map_err(folder_error(&database, "it cannot be made"))?;
        let Some(checkpoint) = &manifest.checkpoint else {
            return Err(Error::NoSuch { store: self.store(), which: manifest.number.to_string() });
        };
        let fetches = checkpoint.files.iter().map(|file| self.fetch(manifest.number, file, database.clone()));
        let fetches: Vec<_> = fetches.collect();
        futures_util::stream::iter(fetches).buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        LocalFile::open(&database)
            .and_then(|folder| folder.sync_all())
            .map_err(folder_error(&database, "it cannot be written"))?;
        Ok(checkpoint.state.clone())
    }

    async fn fetch(&self, number: u64, file: &File, database: PathBuf) -> Result<(), Error> {
        // The name comes from outside: it may not lead anywhere else.
        if file.name.contains(['/', '\\']) || file.name.starts_with('.') {
            return Err(self.damaged(&file.part(0), format!("{:?} is no file of a state", file.name)));
        }
        let path = database.join(&file.name);
        let failed = |error| folder_error(&path, "it cannot be written")(error);
        let mut out = LocalFile::create(&path).map_err(failed)?;
        let mut hasher = Xxh3::new();
        let mut bytes = 0;
        for part in 0..file.parts() {
            let object = file.part(part);
            let Some(data) = self.objects.get(&object).await? else {
                return Err(match self.entry(number).await? {
                    Some(_) => self.damaged(&object, "it is gone"),
                    None => Error::Vanished { store: self.store(), number },
                });
            };
            bytes += data.len() as u64;
            let write = move || {
                hasher.update(&data);
                out.write_all(&data)?;
                Ok((out, hasher))
            };
            (out, hasher) = self.blocking(&path, "it cannot be written", write).await?;
        }
        if bytes != file.bytes || hex(&hasher) != file.checksum {
            let told = format!(
                "{} has {bytes} bytes and checksum {}, and was written with {} and {}",
                file.name,
                hex(&hasher),
                file.bytes,
                file.checksum
            );
            return Err(self.damaged(&file.part(0), told));
        }
        self.blocking(&path, "it cannot be written", move || out.sync_all()).await
    }
}
