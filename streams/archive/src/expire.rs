//! Removing what is older than the archive's retention.
//!
//! # Why nobody reads over what is removed
//! The oldest segments go, whole, up to one that ends with whole ticks: so everything committed after some LSN is still there, and nothing of what was committed up to it need be. First a *mark* (`beginning.json`) says which segment is the
//! first that stays, and that LSN; then the objects are removed, and each segment's manifest after its objects. Whoever finds an object or a manifest gone looks at the mark, and says *expired* where it would have said *lost* or *hole*
//! ([`Error::Expired`]). Killed in between, the next pass goes on from the manifests that are left below the mark: they still name what is to go.
//!
//! The index and the progress records of a segment are among its objects, and go with it. The last segment stays however old it is: it says where the archive ends.
//!
//! A segment's age is that of its manifest, by the store's own clock.

use bytes::Bytes;
use objects::ObjectPath;
use schemas::Lsn;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::manifest;
use crate::store::Archive;

/// `beginning.json`: what is left after something was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// The first segment that stays.
    pub(crate) segment: u64,
    /// What was committed after it is in the segments that stay.
    pub(crate) lsn: Lsn,
}

/// From where on the archive has everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Beginning {
    /// The first segment.
    pub segment: u64,
    /// What was committed after this LSN is there, but for gaps that are told; zero: everything since the first snapshot, and its rows.
    pub lsn: Lsn,
    /// There was more, and it has been removed for its age.
    pub expired: bool,
}

fn path() -> ObjectPath {
    ObjectPath::from("beginning.json")
}

impl Archive {
    pub(crate) async fn mark(&self) -> Result<Option<Mark>, Error> {
        let found = self.objects.get(&path()).await?;
        found.map(|data| self.read_json(&path(), &data)).transpose()
    }

    /// The error for something of a segment that is not there, if that is because it has expired.
    pub(crate) async fn expired(&self, segment: u64) -> Result<Option<Error>, Error> {
        let mark = self.mark().await?.filter(|mark| segment < mark.segment);
        Ok(mark.map(|mark| Error::Expired { store: self.objects.name().to_owned(), begins: mark.lsn }))
    }

    /// From where on the archive has everything; `None` where there is nothing yet.
    pub async fn beginning(&self) -> Result<Option<Beginning>, Error> {
        let Some((segment, _)) = self.numbers().await? else { return Ok(None) };
        let mark = self.mark().await?.filter(|mark| mark.segment == segment);
        if let Some(Mark { segment, lsn }) = mark {
            return Ok(Some(Beginning { segment, lsn, expired: true }));
        }
        if segment > 1 {
            // Somebody removed what was before. Where it ended is not known; what the first segment completes is behind it.
            let lsn = self.expected(segment).await?.frontier;
            return Ok(Some(Beginning { segment, lsn, expired: true }));
        }
        // What it was begun without is noted where its first tick is.
        let first = self.first(|manifest| !manifest.account.is_new()).await?;
        let begun = first.iter().flat_map(|first| &first.gaps).find(|gap| gap.is_beginning());
        Ok(Some(Beginning { segment, lsn: begun.and_then(|gap| gap.to_lsn).unwrap_or(Lsn::ZERO), expired: false }))
    }

    /// Removes the segments that were written before this time (milliseconds since 1970-01-01 UTC), as far as whole ticks end there, but for the last. Answers how many.
    pub async fn expire(&self, before_ms: i64) -> Result<u64, Error> {
        let Some((least, last)) = self.numbers().await? else { return Ok(0) };
        let mut stays = None;
        'groups: for group in self.objects.folders(&manifest::manifests_folder()).await? {
            let mut listed = self.objects.list(&group).await?;
            listed.sort_by(|one, other| one.path.cmp(&other.path));
            for manifest in listed {
                let Some(number) = manifest::number_of(&manifest.path).filter(|number| *number >= least) else { continue };
                if number >= last || manifest.modified_ms >= before_ms {
                    break 'groups;
                }
                let manifest = self.expected(number).await?;
                if manifest.complete.is_none() {
                    stays = Some(Mark { segment: number + 1, lsn: manifest.frontier });
                }
            }
        }
        let known = self.mark().await?;
        if let Some(mark) = stays.filter(|stays| known.is_none_or(|known| known.segment < stays.segment)) {
            let data = serde_json::to_vec(&mark).map_err(|error| Error::Task { what: error.to_string() })?;
            self.objects.put(&path(), Bytes::from(data)).await?;
        }
        match stays.or(known) {
            Some(mark) => self.remove_before(mark.segment).await,
            None => Ok(0),
        }
    }

    /// Removes what is left of the segments below this one, the oldest first.
    async fn remove_before(&self, segment: u64) -> Result<u64, Error> {
        let mut removed = 0;
        for group in self.objects.folders(&manifest::manifests_folder()).await? {
            let mut listed = self.objects.list(&group).await?;
            listed.sort_by(|one, other| one.path.cmp(&other.path));
            for listed in listed {
                let Some(number) = manifest::number_of(&listed.path) else { continue };
                if number >= segment {
                    return Ok(removed);
                }
                if let Some(manifest) = self.manifest(number).await? {
                    let paths = manifest.objects.iter().map(|object| self.path(object)).collect::<Result<Vec<_>, _>>()?;
                    self.objects.remove(paths).await?;
                }
                self.objects.remove([listed.path]).await?;
                self.forget(number);
                removed += 1;
            }
        }
        Ok(removed)
    }
}
