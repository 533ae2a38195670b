//! Many seeds, one after the other.
//!
//! Each is run in a process of its own, and twice: where the two histories differ, something in the code under test does not follow from the seed, and nothing else that the run says can be trusted.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

#[derive(Default)]
struct Tally {
    runs: u64,
    failed: Vec<u64>,
    differing: Vec<u64>,
    /// Sums of what the runs counted, by name.
    counted: BTreeMap<String, u64>,
}

/// What a run says of itself.
fn run_once(seed: u64) -> anyhow::Result<(bool, String)> {
    let program = std::env::current_exe().context("this program's own file")?;
    let run = Command::new(program).arg("run").arg(seed.to_string()).stderr(Stdio::inherit()).output()?;
    Ok((run.status.success(), String::from_utf8_lossy(&run.stdout).into_owned()))
}

impl Tally {
    fn take(&mut self, seed: u64, runs: &[(bool, String)]) {
        self.runs += 1;
        let Some((_, said)) = runs.first() else { return };
        if runs.iter().any(|(well, _)| !well) {
            self.failed.push(seed);
            println!("seed {seed} failed:\n{said}");
        }
        if runs.iter().any(|(_, other)| other != said) {
            self.differing.push(seed);
            println!("seed {seed} was run twice and differs:\n{said}{}", runs.last().map_or("", |(_, said)| said));
        }
        let words: Vec<&str> = said.lines().next().unwrap_or_default().split_whitespace().collect();
        for pair in words.chunks_exact(2).skip(2) {
            if let Ok(number) = pair[1].parse::<u64>() {
                *self.counted.entry(pair[0].to_owned()).or_default() += number;
            }
        }
    }
}

/// False if anything was found.
pub(crate) fn run(first_seed: u64, seeds: u64, seconds: u64, jobs: usize) -> anyhow::Result<bool> {
    let began = Instant::now();
    let (next, tally) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    let limit = Duration::from_secs(seconds);
    let work = || -> anyhow::Result<()> {
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= seeds || began.elapsed() >= limit {
                return Ok(());
            }
            let seed = first_seed + nth;
            let runs = [run_once(seed)?, run_once(seed)?];
            tally.lock().unwrap_or_else(PoisonError::into_inner).take(seed, &runs);
        }
    };
    let outcomes: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked")))).collect()
    });
    outcomes.into_iter().collect::<anyhow::Result<()>>()?;
    let Tally { runs, failed, differing, counted } = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let counted: Vec<String> = counted.iter().map(|(name, number)| format!("{number} {name}")).collect();
    println!("{runs} seeds from {first_seed}, each twice, in {} s: {}", began.elapsed().as_secs(), counted.join(", "));
    println!("failed: {failed:?}; not the same twice: {differing:?}");
    Ok(failed.is_empty() && differing.is_empty())
}
