//! The operating system, where it would bring something in that does not follow from the seed: the time, random bytes, waiting, and what a disk keeps.
//!
//! The production code is not changed to be simulated: it asks the same functions of the C library as ever, and this module is linked in their place.
//! - `clock_gettime` answers a clock that stands still while anything is computed. It is moved on by `epoll_wait` alone: when the runtime would sleep until its next timer, that time comes at once.
//! - `getrandom` answers bytes that follow from the seed. Hash maps, the runtime's own choices and whatever else asks for randomness are settled by it.
//! - `fsync` and `fdatasync` note how long a file was when it was forced to the disk ([`synced`]), so that a power failure can take the rest.
//!
//! Clock, randomness and waiting are the simulation's for the one thread that has called [`begin`]; other threads (RocksDB's, which flush and compact) are served by the real system, and nothing that they do is seen in a history.
//! There is one simulated run to a process: counters that libraries keep for the whole process begin anew with each.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use libc::{c_int, c_long, c_uint, c_void, clockid_t, epoll_event, size_t, ssize_t, timespec};

use crate::dice::Dice;

/// When every run begins: 2026-01-01 00:00 UTC, in nanoseconds since 1970.
const BEGINNING: i64 = 1_767_225_600_000_000_000;
/// Where the monotonic clock stands then, in nanoseconds. Later than any real one: the driver's own timeouts are kept by a thread of its own, and must not come due by the real clock. They do not come due at all.
const MONOTONIC_BEGINNING: i64 = 3_000_000_000_000_000_000;

/// Since the beginning.
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);
/// By how much the wall clock of the processes is off.
static SKEW: AtomicI64 = AtomicI64::new(0);
static RANDOM: Mutex<Option<Dice>> = Mutex::new(None);
static SYNCED: Mutex<BTreeMap<(u64, u64), u64>> = Mutex::new(BTreeMap::new());

thread_local! {
    static SIMULATED: Cell<bool> = const { Cell::new(false) };
}

/// From here on this thread lives in simulated time.
pub(crate) fn begin(seed: u64) {
    *RANDOM.lock().unwrap_or_else(PoisonError::into_inner) = Some(Dice::new(seed ^ 0x6b65_726e_656c));
    SIMULATED.set(true);
}

/// Milliseconds since the beginning.
pub(crate) fn elapsed_ms() -> u64 {
    NANOSECONDS.load(Ordering::Relaxed) / 1_000_000
}

/// Milliseconds since 1970, by a clock that nobody moves.
pub(crate) fn true_time_ms() -> i64 {
    BEGINNING / 1_000_000 + elapsed_ms().cast_signed()
}

/// Moves the processes' wall clock. The monotonic clock goes on as it was.
pub(crate) fn skew(ms: i64) {
    SKEW.store(ms * 1_000_000, Ordering::Relaxed);
}

/// How much of a file is surely on the disk.
pub(crate) fn synced(metadata: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let synced = SYNCED.lock().unwrap_or_else(PoisonError::into_inner);
    synced.get(&(metadata.dev(), metadata.ino())).copied().unwrap_or_default()
}

fn note_synced(fd: c_int) -> c_int {
    // SAFETY: a stat of zeros is a valid one, and fstat writes into it alone.
    let (outcome, stat) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &raw mut stat), stat)
    };
    if outcome == 0 {
        let length = u64::try_from(stat.st_size).unwrap_or_default();
        SYNCED.lock().unwrap_or_else(PoisonError::into_inner).insert((stat.st_dev, stat.st_ino), length);
    }
    outcome
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    note_synced(fd)
}

/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    note_synced(fd)
}

/// # Safety
/// As the C library's: `time` points to a timespec.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    if !SIMULATED.try_with(Cell::get).unwrap_or(false) {
        // SAFETY: the caller's arguments, handed on.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, c_long::from(clock), time) } as c_int;
    }
    let elapsed = NANOSECONDS.load(Ordering::Relaxed).cast_signed();
    let now = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => BEGINNING + elapsed + SKEW.load(Ordering::Relaxed),
        _ => MONOTONIC_BEGINNING + elapsed,
    };
    // SAFETY: the caller promises a timespec.
    unsafe { *time = timespec { tv_sec: now / 1_000_000_000, tv_nsec: now % 1_000_000_000 } };
    0
}

/// # Safety
/// As the C library's: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if SIMULATED.try_with(Cell::get).unwrap_or(false)
        && let Some(dice) = RANDOM.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
    {
        // SAFETY: the caller promises the room.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        bytes.fill_with(|| dice.next() as u8);
        return length.cast_signed();
    }
    // SAFETY: the caller's arguments, handed on.
    unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, c_long::from(flags)) as ssize_t }
}

/// # Safety
/// As the C library's: `events` has room for `most` events.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(epoll: c_int, events: *mut epoll_event, most: c_int, timeout: c_int) -> c_int {
    let simulated = SIMULATED.try_with(Cell::get).unwrap_or(false);
    let patience = if simulated { 0 } else { timeout };
    // SAFETY: the caller's arguments, handed on, but for how long to wait.
    let found =
        unsafe { libc::syscall(libc::SYS_epoll_wait, c_long::from(epoll), events, c_long::from(most), c_long::from(patience)) }
            as c_int;
    if simulated && found == 0 {
        match u64::try_from(timeout) {
            Ok(milliseconds) => {
                NANOSECONDS.fetch_add(milliseconds * 1_000_000, Ordering::Relaxed);
            }
            Err(_) => {
                eprintln!("nothing is left that could ever happen: every task waits for another, and none for the time");
                std::process::abort();
            }
        }
    }
    found
}
