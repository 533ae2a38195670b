//! Which of several archivers works, and when another takes over.
//!
//! # What holds
//! Whatever is said here, two archivers do no harm: the chain of manifests takes each number once ([`crate::store`]). This keeps them from taking it from each other again and again, as two processes of one pipeline would: who works
//! says so in `archiver.json` every third of a term, and who comes later waits until nothing has been said for a whole term, by its own clock. So clocks need not agree, and the object needs no conditional writes.
//!
//! Who ends in order says that as well, and is followed at once. Who was stopped for longer than a term, and wakes up, finds another's name and waits in its turn.

use std::time::Duration;

use bytes::Bytes;
use objects::ObjectPath;
use schemas::ErrorClass;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::Error;
use crate::store::Archive;

/// Signs of life in a term.
const BEATS: u32 = 3;

/// `archiver.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sign {
    writer: String,
    /// Grows while the writer works.
    beat: u64,
    /// The writer has ended in order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    released: bool,
}

/// A place among the archivers of a source.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    archive: Archive,
    writer: String,
    term: Duration,
}

fn path() -> ObjectPath {
    ObjectPath::from("archiver.json")
}

impl Lease {
    pub(crate) fn new(archive: Archive, writer: &str, term: Duration) -> Self {
        Self { archive, writer: writer.to_owned(), term }
    }

    async fn seen(&self) -> Result<Option<Sign>, Error> {
        let found = self.archive.objects.get(&path()).await?;
        found.map(|data| self.archive.read_json(&path(), &data)).transpose()
    }

    async fn say(&self, beat: u64, released: bool) -> Result<(), Error> {
        let data = serde_json::to_vec(&Sign { writer: self.writer.clone(), beat, released });
        let data = data.map_err(|error| Error::Task { what: error.to_string() })?;
        Ok(self.archive.objects.put(&path(), Bytes::from(data)).await?)
    }

    /// Returns when nobody else works: with the last segment, which the next one is to follow. `waiting` is called once if somebody does.
    pub(crate) async fn wait(&self, waiting: impl Fn(&str)) -> Result<u64, Error> {
        let (mut last, mut since, mut told) = (None, Instant::now(), false);
        loop {
            match self.look(&mut last, &mut since).await {
                Ok(None) => {}
                Ok(Some(segment)) => return Ok(segment),
                Err(error) if error.class() == ErrorClass::Transient => {
                    tracing::warn!(%error, "it cannot be seen whether another archiver works; trying again");
                    // Nothing has been seen, so nothing is known of the time since.
                    last = None;
                }
                Err(error) => return Err(error),
            }
            if let Some(sign) = last.as_ref().filter(|_| !std::mem::replace(&mut told, true)) {
                waiting(&sign.writer);
            }
            tokio::time::sleep(self.term / BEATS).await;
        }
    }

    /// The last segment, if nobody has worked since it was looked for. Of several that wait one may have begun meanwhile: then either the number that follows is taken, or its sign is seen.
    async fn look(&self, last: &mut Option<Sign>, since: &mut Instant) -> Result<Option<u64>, Error> {
        let over = |sign: Option<&Sign>| sign.is_none_or(|sign| sign.released || sign.writer == self.writer);
        let sign = self.seen().await?;
        if *last != sign {
            (*last, *since) = (sign.clone(), Instant::now());
        }
        if !over(sign.as_ref()) && since.elapsed() < self.term {
            return Ok(None);
        }
        let segment = self.archive.last().await?.number;
        Ok((self.seen().await? == sign).then_some(segment))
    }

    /// The first sign of life, at once when the archive has been taken over.
    pub(crate) async fn begin(&self) -> Result<(), Error> {
        self.say(0, false).await
    }

    /// Says that the archiver works, again and again; ends when another does.
    pub(crate) async fn keep(self) -> Result<(), Error> {
        for beat in 1.. {
            tokio::time::sleep(self.term / BEATS).await;
            let said = match self.seen().await {
                Ok(Some(sign)) if sign.writer != self.writer => {
                    let number = self.archive.last().await.map_or(0, |last| last.number);
                    return Err(Error::Superseded { store: self.archive.objects.name().to_owned(), number });
                }
                Ok(_) => self.say(beat, false).await,
                Err(error) => Err(error),
            };
            if let Err(error) = said {
                tracing::warn!(%error, "it could not be said that this archiver works; trying again");
            }
        }
        Ok(())
    }

    /// Lets the next one work at once.
    pub(crate) async fn release(&self) {
        let release = async {
            match self.seen().await? {
                Some(sign) if sign.writer == self.writer => self.say(sign.beat + 1, true).await,
                _ => Ok(()),
            }
        };
        match tokio::time::timeout(self.term, release).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "it could not be said that this archiver has ended; another waits for a while")
            }
            Err(_) => tracing::warn!("the archive's store does not answer; another archiver waits for a while"),
        }
    }
}
