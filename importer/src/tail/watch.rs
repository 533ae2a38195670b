//! Looking after the source while the tail runs: whether capture works, and how long what waits is safe.
//!
//! Capture that stands still looks like a database in which nothing happens. So while nothing comes, the source is asked about its capture job now and then ([`source::health`]), and an operator is told
//! what is wrong and what mends it, within a minute. Nothing is lost by it so far, and so the importer goes on. Where the login may not see the job, a silence that is longer than
//! even an idle database keeps is told, with the grant that would show more.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::Error;
use crate::headroom::{self, Headroom};
use crate::metrics;
use crate::session::Session;
use crate::snapshot::Look;
use source::health::{Diagnosis, Health};

/// What warnings of a stalled capture begin with.
const STALLED: &str = "capture has stalled";

pub(super) struct Watch {
    headroom: Look,
    short: bool,
    /// When something last came.
    quiet_since: Instant,
    capture: Look,
    check: Duration,
    told: bool,
}

impl Watch {
    pub(super) fn new(config: &Config) -> Self {
        let check = config.stall_check.min(config.stalled_after);
        Self {
            headroom: Look::new(config.headroom_check),
            short: false,
            quiet_since: Instant::now(),
            capture: Look::new(check),
            check,
            told: false,
        }
    }

    /// Something came.
    pub(super) fn busy(&mut self) {
        self.quiet_since = Instant::now();
    }

    /// Whether there is time for anything but the tail.
    pub(super) fn has_time(&self) -> bool {
        !self.short
    }

    pub(super) async fn look(&mut self, session: &mut Session<'_>) -> Result<(), Error> {
        if self.headroom.is_due() {
            self.short = headroom::forecast(session).await? == Headroom::Short;
        }
        let quiet = self.quiet_since.elapsed() >= self.check;
        if (quiet || self.told) && self.capture.is_due() {
            self.capture(session).await?;
        }
        Ok(())
    }

    async fn capture(&mut self, session: &mut Session<'_>) -> Result<(), Error> {
        let health = Health::read(&mut session.client).await?;
        let diagnosis = Diagnosis::of(&health);
        session.status.unwarn(STALLED);
        self.told = match &diagnosis {
            // A database in which nothing ever happened cannot be told from one without capture where the job cannot be seen.
            Diagnosis::Unknown { .. } => health.newest.is_some(),
            other => other.is_problem(),
        };
        metrics::stalled(&session.config.output.name, self.told);
        if self.told {
            let remedy = diagnosis.remedy().unwrap_or_default();
            tracing::warn!(%diagnosis, remedy, "capture has stalled");
            session.status.warn(&format!("{STALLED}: {diagnosis}. Nothing is lost yet, but changes wait. {remedy}"));
        }
        Ok(())
    }
}
