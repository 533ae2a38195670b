//! One run: trouble, then calm, then the audit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use schemas::KeyRange;
use tempfile::TempDir;

use crate::auditor;
use crate::dice::Dice;
use crate::disk::{self, Death};
use crate::faults::{Faults, Levels, Sabotage};
use crate::history::{Event, History};
use crate::kernel;
use crate::plan::Plan;
use crate::processes::{ImporterProcess, JoinerProcess, Site, wait_ms};
use crate::shop::TABLES;
use crate::target::{Kind, Target};

/// How long everything may take to come to rest once nothing goes wrong any more.
const REST_MS: u64 = 20 * 60 * 1000;
/// The same where something was broken on purpose: mostly it does not come to rest at all.
const REST_OF_BROKEN_MS: u64 = 3 * 60 * 1000;
/// Futures in debug builds are large.
const STACK_BYTES: usize = 64 << 20;
/// Keeps the choices that are about joiners apart from the others. (With this one, the first five seeds have one run of several instances, and one of a joiner that stands by.)
const OF_JOINERS: u64 = 0x6a6f_696e_6572_a25e;
/// Into how many shares the entities are divided at times: each is a part of those of the lesser numbers.
const SHARES: [u32; 3] = [1, 2, 4];

/// Runs a seed; false if the auditor finds anything.
pub(crate) fn one(seed: u64, history: Option<&Path>, sabotage: Option<Sabotage>, log: bool) -> anyhow::Result<bool> {
    if log {
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    }
    let keep_text = history.is_some();
    let simulated = move || {
        kernel::begin(seed);
        simulate(seed, sabotage, keep_text)
    };
    let thread = std::thread::Builder::new().name("simulation".to_owned()).stack_size(STACK_BYTES).spawn(simulated)?;
    let told = thread.join().map_err(|_| anyhow::anyhow!("seed {seed}: the simulation panicked"))??;
    if let Some(path) = history {
        std::fs::write(path, told.text()).with_context(|| path.display().to_string())?;
    }
    let entries = told.entries();
    let violations = auditor::audit(&entries);
    let count = |is: &dyn Fn(&Event) -> bool| entries.iter().filter(|entry| is(&entry.event)).count();
    println!(
        "seed {seed} hash {:016x} events {} faults {} deaths {} transactions {} records {} writes {} violations {}",
        told.hash(),
        entries.len(),
        count(&|event| matches!(event, Event::Fault { .. })),
        count(&|event| matches!(event, Event::ImporterEnded { .. } | Event::JoinerEnded { .. })),
        count(&|event| matches!(event, Event::Committed { .. })),
        count(&|event| matches!(event, Event::Appended { .. })),
        count(&|event| matches!(event, Event::Written { .. })),
        violations.len()
    );
    for violation in &violations {
        println!("INV-{} at {} ms: {}", violation.invariant, violation.at_ms, violation.what);
    }
    Ok(violations.is_empty())
}

fn simulate(seed: u64, sabotage: Option<Sabotage>, keep_text: bool) -> anyhow::Result<History> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(|| {
            eprintln!("the code under test has started a thread: what it does no longer follows from the seed");
            std::process::abort();
        })
        .build()?;
    let history = History::new(keep_text);
    let told = history.clone();
    runtime.block_on(async move {
        let mut dice = Dice::new(seed);
        let mut joiners = Dice::new(seed ^ OF_JOINERS);
        let plan = Plan::of(&mut dice, &mut joiners);
        let site = Site::new(plan, Faults::new(sabotage), &mut dice, joiners, told)?;
        let mut run = Box::pin(Run::begin(site, dice)).await?;
        Box::pin(run.trouble()).await?;
        Box::pin(run.calm()).await
    })?;
    Ok(history)
}

/// What stands for a process that is down: what it left, and for how many steps.
enum State<P, L> {
    Up(P),
    Down(L, u64),
}

/// A machine on which a joiner of a share runs; where one stands by, two have the same share.
struct Place {
    share: KeyRange,
    joiner: State<JoinerProcess, TempDir>,
    /// For how many steps its process stands still.
    frozen: Option<u64>,
    /// Where a subscriber of its outbox stands, and of which.
    subscriber: Option<(u64, u64)>,
}

impl Place {
    fn of(share: KeyRange, joiner: State<JoinerProcess, TempDir>) -> Self {
        Self { share, joiner, frozen: None, subscriber: None }
    }

    /// Whether its process does not stand by.
    fn works(&self) -> bool {
        matches!(&self.joiner, State::Up(joiner) if joiner.is_working())
    }

    /// Takes its process, or what one has left, out; whoever calls puts something in its place.
    fn take(&mut self) -> anyhow::Result<State<JoinerProcess, TempDir>> {
        Ok(std::mem::replace(&mut self.joiner, State::Down(disk::directory()?, 0)))
    }
}

/// So many equal shares.
fn shares(count: u32) -> Vec<KeyRange> {
    (0..count).filter_map(|nth| KeyRange::of(nth, count)).collect()
}

struct Run {
    site: Site,
    dice: Dice,
    importer: State<ImporterProcess, Arc<TempDir>>,
    places: Vec<Place>,
    /// Importers that go on though another has taken their place, and for how many steps.
    replaced: Vec<(ImporterProcess, u64)>,
    sabotaged: bool,
    is_calm: bool,
}

impl Run {
    async fn begin(mut site: Site, mut dice: Dice) -> anyhow::Result<Self> {
        for _ in 0..site.plan.before {
            let mut shop = site.shop();
            shop.commit();
            if dice.chance(500) {
                shop.scan(5);
            }
        }
        let importer = State::Up(site.start_importer(Arc::new(disk::directory()?)));
        let mut places = Vec::new();
        for share in shares(site.plan.instances) {
            for _ in 0..=u32::from(site.plan.stands_by) {
                let joiner = match site.start_joiner(disk::directory()?, share, None).await? {
                    Ok(joiner) => State::Up(joiner),
                    Err(disk) => State::Down(disk, 0),
                };
                places.push(Place::of(share, joiner));
            }
        }
        Ok(Self { site, dice, importer, places, replaced: Vec::new(), sabotaged: false, is_calm: false })
    }

    /// The shares that there are.
    fn shares(&self) -> Vec<KeyRange> {
        let mut shares: Vec<KeyRange> = self.places.iter().map(|place| place.share).collect();
        shares.dedup();
        shares
    }

    /// Some place. Where there is but one there is nothing to choose.
    fn any_place(&mut self) -> usize {
        match self.places.len() {
            1 => 0,
            several => usize::try_from(self.dice.below(several as u64)).unwrap_or_default(),
        }
    }

    async fn trouble(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.site.plan.steps {
            let pace = self.site.plan.pace_ms;
            wait_ms(self.dice.within(1, pace)).await;
            if self.site.plan.rests && self.dice.chance(15) {
                self.rest().await?;
            }
            for _ in 0..self.dice.below(4) {
                self.site.shop().commit();
            }
            if self.dice.chance(700) {
                let most = self.dice.within(1, 8) as usize;
                self.site.shop().scan(most);
            }
            self.supervise().await?;
            self.look().await?;
            if self.dice.chance(self.site.plan.trouble) {
                self.kill().await?;
            }
            if self.site.plan.redefines && self.dice.chance(50) {
                for at in 0..self.places.len() {
                    self.end_joiner(at, Death::Kill, false, 0).await?;
                }
            }
            if self.site.plan.stands_by && self.dice.chance(self.site.plan.trouble) {
                self.freeze();
            }
            if self.site.plan.reshapes && self.dice.chance(30) {
                self.reshape().await?;
            }
            if self.dice.chance(self.site.plan.trouble * 2) {
                self.disturb();
            }
        }
        Ok(())
    }

    /// Nothing is committed for a while, and time passes.
    async fn rest(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.dice.within(1, 4) {
            wait_ms(100_000).await;
            self.site.shop().scan(usize::MAX);
            self.supervise().await?;
            self.look().await?;
        }
        Ok(())
    }

    /// Looks from outside at what there is to see.
    async fn look(&mut self) -> anyhow::Result<()> {
        if let State::Up(importer) = &mut self.importer {
            self.site.look_at_saved(importer);
        }
        for (importer, _) in &mut self.replaced {
            self.site.look_at_saved(importer);
        }
        let shares = self.shares();
        for Place { share, joiner, frozen, subscriber } in &mut self.places {
            let (subscribes, state) = (self.dice.chance(250), self.dice.chance(100));
            let trims = self.dice.chance(500) && self.site.plan.checkpoints.trims;
            let (State::Up(joiner), None) = (&joiner, &frozen) else { continue };
            if subscribes {
                self.site.subscribe(joiner, subscriber)?;
            }
            if state {
                self.site.tell_state(joiner)?;
            }
            self.site.look_at_checkpoints(joiner, trims, &shares).await?;
            if self.site.faults.is(Sabotage::LostPart) && !self.sabotaged {
                self.sabotaged = self.site.storage.lose_a_part(*share).await?;
            }
        }
        Ok(())
    }

    /// Starts what is down long enough, and takes note of what has ended by itself.
    async fn supervise(&mut self) -> anyhow::Result<()> {
        self.importer = match std::mem::replace(&mut self.importer, State::Down(Arc::new(disk::directory()?), 0)) {
            State::Up(importer) if importer.has_ended() => {
                let left = Arc::clone(&importer.directory);
                self.site.kill_importer(importer).await;
                State::Down(left, self.dice.within(0, 3))
            }
            State::Down(left, 0) => {
                if self.site.faults.is(Sabotage::SavedAhead) && !self.sabotaged {
                    self.sabotaged = self.site.move_saved_ahead(left.path())?;
                }
                State::Up(self.site.start_importer(left))
            }
            State::Down(left, steps) => State::Down(left, steps - 1),
            up => up,
        };
        for at in 0..self.places.len() {
            self.supervise_joiner(at).await?;
        }
        for (importer, steps) in std::mem::take(&mut self.replaced) {
            match steps.checked_sub(1) {
                Some(steps) => self.replaced.push((importer, steps)),
                None => self.site.kill_importer(importer).await,
            }
        }
        Ok(())
    }

    async fn supervise_joiner(&mut self, at: usize) -> anyhow::Result<()> {
        let are_down = self.places.iter().all(|place| matches!(place.joiner, State::Down(..)));
        let place = &mut self.places[at];
        if let (State::Up(joiner), Some(steps)) = (&place.joiner, place.frozen) {
            place.frozen = steps.checked_sub(1);
            if place.frozen.is_none() {
                self.site.thaw(joiner, self.dice.below(4000));
            }
            return Ok(());
        }
        let joiner = match place.take()? {
            State::Up(joiner) if joiner.has_ended() => {
                let left = self.site.kill_joiner(joiner, Death::Kill, &mut self.dice).await?;
                State::Down(left, self.dice.within(0, 3))
            }
            State::Down(left, 0) => {
                // All serve the same. A write that is still on its way has the version that a load of the new documents may have.
                if self.site.plan.redefines && are_down && self.site.is_quiet() && self.dice.chance(400) {
                    self.site.definitions = self.site.definitions.other();
                }
                let lives_ms = (!self.is_calm && self.dice.chance(100)).then(|| self.dice.below(2000));
                match self.site.start_joiner(left, place.share, lives_ms).await? {
                    Ok(joiner) => State::Up(joiner),
                    Err(disk) => State::Down(disk, self.dice.within(0, 3)),
                }
            }
            State::Down(left, steps) => State::Down(left, steps - 1),
            up => up,
        };
        self.places[at].joiner = joiner;
        Ok(())
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        let victim = self.dice.below(5);
        let steps = self.dice.below(6);
        match victim {
            // Frozen, and thought dead by whoever starts another on a copy of its directory: both go on.
            0 => {
                if let State::Up(importer) = &self.importer {
                    let copy = Arc::new(importer.give_up_directory()?);
                    self.site.history.fault("another importer takes over, and the first goes on");
                    let successor = State::Up(self.site.start_importer(copy));
                    if let State::Up(importer) = std::mem::replace(&mut self.importer, successor) {
                        self.replaced.push((importer, self.dice.within(1, 10)));
                    }
                }
            }
            1 | 2 => {
                let down = State::Down(Arc::new(disk::directory()?), 0);
                self.importer = match std::mem::replace(&mut self.importer, down) {
                    State::Up(importer) => {
                        let left = Arc::clone(&importer.directory);
                        self.site.kill_importer(importer).await;
                        State::Down(left, steps)
                    }
                    down => down,
                };
            }
            _ => {
                let death = if self.dice.chance(500) { Death::Kill } else { Death::PowerFailure };
                let lost = self.site.plan.loses && self.dice.chance(500);
                let at = self.any_place();
                self.end_joiner(at, death, lost, steps).await?;
            }
        }
        Ok(())
    }

    /// Ends a joiner for some steps; `lost`: with its disk.
    async fn end_joiner(&mut self, at: usize, death: Death, lost: bool, steps: u64) -> anyhow::Result<()> {
        let alone = self.places.len() == 1;
        let place = &mut self.places[at];
        let joiner = match place.take()? {
            State::Up(joiner) => {
                let left = self.site.kill_joiner(joiner, death, &mut self.dice).await?;
                if lost {
                    self.site.history.add(Event::DiskLost);
                }
                // Whoever goes back in time often goes back to what was configured then.
                if lost && self.site.plan.redefines && self.dice.chance(500) && self.site.is_quiet() && alone {
                    self.site.definitions = self.site.definitions.other();
                }
                State::Down(if lost { disk::directory()? } else { left }, steps)
            }
            down => down,
        };
        (place.joiner, place.frozen) = (joiner, None);
        Ok(())
    }

    /// Some joiner stands still, mostly one that works, and with it the lease that it has.
    fn freeze(&mut self) {
        let (mut at, steps) = (self.any_place(), self.dice.within(1, 12));
        let (share, works) = (self.places[at].share, self.dice.chance(800));
        if works && let Some(working) = self.places.iter().position(|place| place.share == share && place.works()) {
            at = working;
        }
        let place = &mut self.places[at];
        if let (State::Up(joiner), None) = (&place.joiner, place.frozen) {
            self.site.freeze(joiner, self.dice.below(2000));
            place.frozen = Some(steps);
        }
    }

    /// The entities are divided anew: all joiners end, and others begin with what these have saved. Where that cannot be had, they go on as they were.
    async fn reshape(&mut self) -> anyhow::Result<()> {
        let others: Vec<u32> = SHARES.into_iter().filter(|count| *count as usize != self.shares().len()).collect();
        let count = self.dice.pick(&others).copied().unwrap_or(1);
        let orderly = self.dice.chance(500);
        for at in 0..self.places.len() {
            let place = &mut self.places[at];
            match (place.take()?, place.frozen) {
                (State::Up(joiner), None) if orderly => place.joiner = State::Down(self.site.stop_joiner(joiner).await, 0),
                (joiner, _) => {
                    place.joiner = joiner;
                    self.end_joiner(at, Death::Kill, false, 0).await?;
                }
            }
        }
        let copies = if self.site.plan.stands_by { 2 } else { 1 };
        let wanted: Vec<KeyRange> = shares(count).into_iter().flat_map(|share| vec![share; copies]).collect();
        if let Some(started) = self.site.start_reshaped(&wanted).await? {
            let places = wanted.into_iter().zip(started);
            self.places = places.map(|(share, joiner)| Place::of(share, State::Up(joiner))).collect();
        }
        Ok(())
    }

    /// Something else goes wrong, or gets well again.
    fn disturb(&mut self) {
        let Self { site, dice, importer, .. } = self;
        let stands_by = site.plan.stands_by;
        match dice.below(11) {
            0 => {
                let levels = Levels {
                    source: dice.below(80),
                    streams: dice.below(60),
                    stream_delay_ms: dice.pick(&[0, 20, 300, 4000]).copied().unwrap_or_default(),
                    targets: dice.below(150),
                    target_delay_ms: dice.pick(&[0, 30, 500, 6000]).copied().unwrap_or_default(),
                    storage: dice.below(150),
                    storage_delay_ms: dice.pick(&[0, 100, 2000]).copied().unwrap_or_default(),
                    leases: if stands_by { dice.below(100) } else { 0 },
                    lease_delay_ms: if stands_by { dice.pick(&[0, 50, 1000]).copied().unwrap_or_default() } else { 0 },
                    ..Levels::default()
                };
                site.history.fault(format!("{levels:?}"));
                *site.faults.levels() = levels;
            }
            1 => {
                let cut = !site.faults.source_is_cut();
                site.history.fault(format!("the source is {}", if cut { "cut off" } else { "there again" }));
                site.faults.levels().source_cut = cut;
            }
            2 | 3 => {
                let which = dice.below(Kind::ALL.len() as u64) as usize;
                let down = &mut site.faults.levels().targets_down[which];
                *down = !*down;
                site.history.fault(format!("target {which} is {}", if *down { "down" } else { "up" }));
            }
            4 => site.streams.reshard(),
            5 => {
                let skew = i64::try_from(dice.below(120_000)).unwrap_or_default() - 60_000;
                site.history.fault(format!("the processes' clock is off by {skew} ms"));
                kernel::skew(skew);
            }
            6 => {
                let mut shop = site.shop();
                let by = i64::try_from(dice.below(20_000)).unwrap_or_default() - 10_000;
                // Without marks, back only while nothing waits for capture: see what `importer/src/settle.rs` says of it.
                shop.skew_ms += if shop.marks || shop.is_captured() { by } else { by.abs() };
                site.history.fault(format!("the server's clock is off by {} ms", shop.skew_ms));
            }
            7 => {
                let mut shop = site.shop();
                shop.capturing = !shop.capturing;
                site.history.fault(format!("capture {}", if shop.capturing { "runs" } else { "stands still" }));
            }
            8 => {
                if let State::Up(importer) = importer {
                    let table = dice.below(TABLES.len() as u64) as usize;
                    let range = dice.chance(500).then(|| (dice.within(1, 8), dice.within(5, 15)));
                    site.history.fault(format!("{} is asked to be read again: {range:?}", TABLES[table].name));
                    importer.ask(table, range);
                }
            }
            9 => {
                let down = &mut site.faults.levels().storage_down;
                *down = !*down;
                site.history.fault(format!("the object storage is {}", if *down { "down" } else { "up" }));
            }
            _ if site.plan.purges => {
                let (table, keep) = (dice.below(TABLES.len() as u64) as usize, dice.within(0, 40) as usize);
                site.shop().purge(table, keep);
            }
            _ => {}
        }
    }

    /// Nothing goes wrong any more: everything is to come to rest, and the targets are to hold the source's join.
    async fn calm(&mut self) -> anyhow::Result<()> {
        self.site.history.add(Event::Calm);
        self.is_calm = true;
        *self.site.faults.levels() = Levels::default();
        for (importer, _) in std::mem::take(&mut self.replaced) {
            self.site.kill_importer(importer).await;
        }
        self.site.shop().capturing = true;
        // One more transaction, so that there is something behind whatever was left unfinished.
        self.site.shop().commit();
        let began = kernel::elapsed_ms();
        let rest_ms = if self.site.faults.sabotage.is_some() { REST_OF_BROKEN_MS } else { REST_MS };
        let shares = self.shares();
        for place in &mut self.places {
            let State::Up(joiner) = &place.joiner else { continue };
            // At one that is frozen nobody has looked: what it made meanwhile was made in trouble, and what it failed to remove then is removed after the next checkpoint.
            self.site.look_at_checkpoints(joiner, false, &shares).await?;
            if place.frozen.take().is_some() {
                self.site.thaw(joiner, 0);
            }
        }
        let mut saved = self.site.newest.clone();
        while !self.is_at_rest(&saved) {
            if kernel::elapsed_ms() - began > rest_ms {
                self.give_up();
                return Ok(());
            }
            wait_ms(300).await;
            self.site.shop().scan(usize::MAX);
            let before = self.running();
            self.supervise().await?;
            self.look().await?;
            // What one that has ended was about to upload is removed after the next checkpoint.
            if self.running() != before {
                saved.clone_from(&self.site.newest);
            }
        }
        for Place { joiner, subscriber, .. } in &mut self.places {
            if let State::Up(joiner) = joiner {
                self.site.subscribe(joiner, subscriber)?;
                self.site.tell_state(joiner)?;
                if joiner.is_working() {
                    self.site.tell_checkpoints(joiner).await?;
                }
            }
        }
        for kind in [Kind::Table, Kind::Database] {
            self.site.targets[kind as usize].tell()?;
        }
        self.end().await
    }

    /// The joiners that run.
    fn running(&self) -> Vec<Option<u32>> {
        let process = |place: &Place| match &place.joiner {
            State::Up(joiner) => Some(joiner.process),
            State::Down(..) => None,
        };
        self.places.iter().map(process).collect()
    }

    /// Everything has arrived, those who stand by have it too, and of each share there is a checkpoint that is newer than the one that is `saved`.
    fn is_at_rest(&self, saved: &BTreeMap<KeyRange, u64>) -> bool {
        let shop = self.site.shop();
        let last = shop.last_commit();
        let reached = |target: &Arc<Target>| target.frontier() >= Some(last);
        let is_saved = |share: KeyRange| self.site.newest.get(&share) > saved.get(&share);
        let rests = |place: &Place| match &place.joiner {
            State::Up(joiner) if joiner.is_working() => joiner.saves_nothing() && is_saved(place.share),
            State::Up(joiner) => joiner.status().frontier >= Some(last),
            State::Down(..) => false,
        };
        let working = self.places.iter().filter(|place| place.works()).count();
        shop.is_captured()
            && self.site.targets.iter().all(reached)
            && self.places.iter().all(rests)
            && working == self.shares().len()
    }

    fn give_up(&self) {
        let frontiers: Vec<_> = self.site.targets.iter().map(|target| target.frontier()).collect();
        let last = self.site.shop().last_commit();
        let status = |place: &Place| match &place.joiner {
            State::Up(joiner) => format!("{:?}", joiner.status()),
            State::Down(..) => "down".to_owned(),
        };
        let joiners: Vec<String> = self.places.iter().map(status).collect();
        let joiners = joiners.join("; ");
        let what = format!("after all this time the targets are at {frontiers:?} and not at {last}; the joiner: {joiners}");
        self.site.history.add(Event::Stuck { what });
    }

    async fn end(&mut self) -> anyhow::Result<()> {
        if let State::Up(importer) = std::mem::replace(&mut self.importer, State::Down(Arc::new(disk::directory()?), 0)) {
            self.site.stop_importer(importer).await;
        }
        for place in &mut self.places {
            if let State::Up(joiner) = place.take()? {
                self.site.stop_joiner(joiner).await;
            }
        }
        Ok(())
    }
}
