//! The writer: locks a stream at its first record, spreads records over the shards' buffers, makes them durable together.
//!
//! File work runs on the blocking pool, under a lock that only this writer's own calls take. A call whose future is dropped leaves its file work running to its end
//! there, so the files are never left in the middle; the next call waits for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use schemas::progress::{SequenceNumber, ShardPositions, StreamName};

use super::directory::{Meta, read_meta, shard_id, stream_folder};
use super::hub::{Announcer, Hub};
use super::segment::{FRAME_BYTES, MAX_RECORD_BYTES, io_error};
use super::shard::{ShardWriter, WRITE_BYTES};
use super::{Options, blocking, retention};
use crate::hash::{key_hash, shard_of};
use crate::{Error, Record, StreamWriter, check_partition_key};

pub(super) struct Writer {
    options: Options,
    inner: Arc<Mutex<Inner>>,
    /// Looks after retention as long as there is this writer.
    keeper: tokio::task::JoinHandle<()>,
}

pub(super) struct Inner {
    options: Options,
    streams: HashMap<StreamName, OpenStream>,
    /// Set by the first failed write or fsync: nothing is known of the files' ends any more.
    failed: Option<(String, std::io::ErrorKind)>,
}

/// A stream that is held by its lock.
pub(super) struct OpenStream {
    shards: Vec<ShardWriter>,
    last: Vec<Option<u64>>,
    announcer: Announcer,
    /// Held, for the lock on it; released last.
    _lock: File,
}

impl Writer {
    pub(super) fn new(options: Options) -> Self {
        let inner = Inner { options: options.clone(), streams: HashMap::new(), failed: None };
        let inner = Arc::new(Mutex::new(inner));
        let keeper = tokio::spawn(retention::keep(options.clone(), Arc::downgrade(&inner)));
        Self { options, inner, keeper }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// A panic in file work leaves `failed` unset but the buffers whole; the next write meets the files as they are.
pub(super) fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl StreamWriter for Writer {
    async fn append(&mut self, stream: &StreamName, records: Vec<Record>) -> Result<(), Error> {
        let mut bytes = 0;
        for record in &records {
            check_partition_key(stream, &record.partition_key)?;
            if record.data.len() > MAX_RECORD_BYTES {
                return Err(Error::TooLarge { stream: stream.clone(), bytes: record.data.len(), limit: MAX_RECORD_BYTES });
            }
            bytes += FRAME_BYTES + record.data.len();
        }
        {
            let mut inner = lock(&self.inner);
            if inner.fits_in_buffers(stream, bytes) {
                return inner.append(stream, records);
            }
        }
        let (inner, stream) = (Arc::clone(&self.inner), stream.clone());
        blocking(&self.options.path, move || lock(&inner).append(&stream, records)).await
    }

    async fn flush(&mut self) -> Result<ShardPositions, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(&self.options.path, move || lock(&inner).flush()).await
    }
}

impl Inner {
    /// Whether an append needs no file.
    fn fits_in_buffers(&self, stream: &StreamName, bytes: usize) -> bool {
        bytes < WRITE_BYTES / 4
            && self.failed.is_none()
            && self.streams.get(stream).is_some_and(|open| open.shards.iter().all(|shard| shard.only_buffers(bytes)))
    }

    fn check(&self) -> Result<(), Error> {
        match &self.failed {
            None => Ok(()),
            Some((path, kind)) => {
                let what = "an earlier write failed: this writer is finished, make a new one";
                Err(Error::Io { path: path.clone(), source: std::io::Error::new(*kind, what) })
            }
        }
    }

    /// Remembers a failure of the files, which ends this writer.
    fn note<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Io { path, source }) = &result {
            self.failed = Some((path.clone(), source.kind()));
        }
        result
    }

    /// Retention for a stream that is open here. Answers whether it is.
    pub(super) fn keep(&mut self, stream: &StreamName) -> Result<bool, Error> {
        let Some(open) = self.streams.get_mut(stream).filter(|_| self.failed.is_none()) else { return Ok(false) };
        let kept = open.keep();
        self.note(kept).map(|()| true)
    }

    fn append(&mut self, stream: &StreamName, records: Vec<Record>) -> Result<(), Error> {
        self.check()?;
        let result = self.open_and_append(stream, records);
        self.note(result)
    }

    fn open_and_append(&mut self, stream: &StreamName, records: Vec<Record>) -> Result<(), Error> {
        let open = match self.streams.entry(stream.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(OpenStream::open(&self.options, stream)?),
        };
        let count = open.shards.len() as u32;
        let mut wrote = false;
        for record in records {
            let shard = if count == 1 { 0 } else { shard_of(key_hash(&record.partition_key), count) as usize };
            open.last[shard] = Some(open.shards[shard].append(&record.data)?);
            wrote |= open.shards[shard].buffered() == 0;
        }
        if wrote {
            open.announcer.announce();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<ShardPositions, Error> {
        self.check()?;
        let result = self.write_and_sync();
        self.note(result)?;
        let positions = self.streams.iter().map(|(name, open)| (name.clone(), open.positions().collect()));
        Ok(positions.collect())
    }

    fn write_and_sync(&mut self) -> Result<(), Error> {
        for open in self.streams.values_mut() {
            let mut wrote = false;
            for shard in &mut open.shards {
                wrote |= shard.buffered() > 0;
                shard.write()?;
            }
            if wrote {
                open.announcer.announce();
            }
        }
        let mut unsynced: Vec<_> =
            self.streams.values_mut().flat_map(|open| &mut open.shards).filter(|shard| shard.unsynced().is_some()).collect();
        let files: Vec<_> =
            unsynced.iter().filter_map(|shard| shard.unsynced().map(|file| (shard.path().to_owned(), file))).collect();
        sync_together(&files)?;
        unsynced.iter_mut().for_each(|shard| shard.synced());
        Ok(())
    }
}

/// File systems join the fsyncs of several files into one commit of their journal when they come at the same time.
fn sync_together(files: &[(PathBuf, Arc<File>)]) -> Result<(), Error> {
    const AT_ONCE: usize = 16;
    let sync = |(path, file): &(PathBuf, Arc<File>)| file.sync_data().map_err(|error| io_error(path, error));
    for group in files.chunks(AT_ONCE) {
        let Some((own, others)) = group.split_first() else { continue };
        std::thread::scope(|scope| {
            let others: Vec<_> = others.iter().map(|file| scope.spawn(move || sync(file))).collect();
            let own = sync(own);
            others.into_iter().fold(own, |result, other| {
                let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result.and(other)
            })
        })?;
    }
    Ok(())
}

/// How often, and after which pause, a lock that another holds is tried again: another process may hold it for retention alone. (This one's retention is waited for: [`Hub::turn`].)
pub(super) const LOCK_ATTEMPTS: u32 = 50;
pub(super) const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Takes the lock on a stream; none: another writer holds it.
fn lock_file(folder: &Path, attempts: u32) -> Result<Option<File>, Error> {
    let path = folder.join("writer.lock");
    let file = File::options().create(true).append(true).open(&path).map_err(|error| io_error(&path, error))?;
    for attempt in 1..=attempts {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(error)) => return Err(io_error(&path, error)),
            Err(TryLockError::WouldBlock) if attempt < attempts => {
                #[allow(
                    clippy::disallowed_methods,
                    reason = "on a blocking thread; a lock that is freed wakes nobody who waits with a bound"
                )]
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {}
        }
    }
    Ok(None)
}

impl OpenStream {
    pub(super) fn open(options: &Options, stream: &StreamName) -> Result<Self, Error> {
        let folder = stream_folder(&options.path, stream);
        let meta = read_meta(&folder, stream)?;
        let hub = Hub::of(&folder);
        let _turn = hub.turn();
        let lock = lock_file(&folder, LOCK_ATTEMPTS)?.ok_or_else(|| Error::Locked { path: folder.display().to_string() })?;
        Self::locked(options, &folder, meta, lock)
    }

    /// Ends what is too old of a stream, and removes it, unless somebody has the stream open.
    pub(super) fn keep_if_free(options: &Options, stream: &StreamName) -> Result<(), Error> {
        let folder = stream_folder(&options.path, stream);
        let meta = read_meta(&folder, stream)?;
        let hub = Hub::of(&folder);
        let _turn = hub.turn();
        match lock_file(&folder, 1)? {
            Some(lock) => Self::locked(options, &folder, meta, lock)?.keep(),
            None => Ok(()),
        }
    }

    /// Ends what is too old, and removes it.
    pub(super) fn keep(&mut self) -> Result<(), Error> {
        self.shards.iter_mut().try_for_each(ShardWriter::keep)
    }

    fn locked(options: &Options, folder: &Path, meta: Meta, lock: File) -> Result<Self, Error> {
        let shards: Vec<_> =
            (0..meta.shards).map(|shard| ShardWriter::open(folder, meta, shard, options)).collect::<Result<_, _>>()?;
        Ok(Self { last: vec![None; shards.len()], shards, announcer: Announcer::new(Hub::of(folder)), _lock: lock })
    }

    fn positions(&self) -> impl Iterator<Item = (schemas::progress::ShardId, SequenceNumber)> {
        let written = self.shards.iter().zip(&self.last);
        written.filter_map(|(shard, last)| last.map(|last| (shard_id(shard.shard), SequenceNumber::from(last))))
    }
}
