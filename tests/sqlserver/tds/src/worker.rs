//! The session's thread, or task ([`Sessions`]): takes requests one at a time, has the engine answer them, and keeps what belongs to the protocol of a session
//! (prepared statements, cursors, the open transaction).

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::answer::{Answer, Chunk, Style};
use crate::connection::protocol_error;
use crate::error::{Error, Result};
use crate::faults::Verdict;
use crate::options::{Options, Sessions};
use crate::packet::kind;
use crate::prepared::Handles;
use crate::request;
use crate::rpc;
use crate::session::{Batch, Call, Cancel, EnvChange, Login, Response, Server, Session, SqlError, TransactionRequest};

/// A request as it came.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) kind: u8,
    pub(crate) payload: Vec<u8>,
    pub(crate) reset: bool,
}

/// All that a session's thread needs.
pub(crate) struct Start {
    pub(crate) server: Arc<dyn Server>,
    pub(crate) options: Arc<Options>,
    pub(crate) login: Login,
    pub(crate) cancel: Cancel,
    pub(crate) packet_bytes: u16,
    pub(crate) jobs: mpsc::Receiver<Job>,
    pub(crate) chunks: mpsc::Sender<Chunk>,
    /// The outcome of the login: the session's database.
    pub(crate) logged_in: oneshot::Sender<std::result::Result<String, SqlError>>,
    /// Dropped when the thread ends.
    pub(crate) end: oneshot::Sender<()>,
}

/// Runs the session, where the options say.
pub(crate) fn spawn(start: Start) -> Result<()> {
    if start.options.sessions == Sessions::InPlace {
        tokio::spawn(run_in_place(start));
        return Ok(());
    }
    // Engines parse deeply nested SQL by recursion.
    const STACK_BYTES: usize = 16 << 20;
    std::thread::Builder::new()
        .name("tds-session".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || run(start))
        .map(|_| ())
        .map_err(|_| Error::Thread("could not be started"))
}

fn run(start: Start) {
    if let Some(mut running) = log_in(start) {
        while let Some(job) = running.jobs.blocking_recv() {
            running.worker.answer(&job, &running.chunks);
        }
    }
}

async fn run_in_place(start: Start) {
    if let Some(mut running) = log_in(start) {
        while let Some(job) = running.jobs.recv().await {
            running.worker.answer(&job, &running.chunks);
        }
    }
}

/// A session that is logged in.
struct Running {
    worker: Worker,
    jobs: mpsc::Receiver<Job>,
    chunks: mpsc::Sender<Chunk>,
    /// Dropped last.
    _end: oneshot::Sender<()>,
}

fn log_in(start: Start) -> Option<Running> {
    let Start { server, options, login, cancel, packet_bytes, jobs, chunks, logged_in, end } = start;
    match server.login(&login, cancel.clone()) {
        Ok(session) => {
            logged_in.send(Ok(session.database())).ok()?;
            let worker = Worker { session, handles: Handles::default(), options, cancel, packet_bytes, transaction: 0 };
            Some(Running { worker, jobs, chunks, _end: end })
        }
        Err(error) => {
            // A client that has gone away in the meantime hears nothing, and that is all right.
            let _ = logged_in.send(Err(error));
            None
        }
    }
}

pub(crate) struct Worker {
    pub(crate) session: Box<dyn Session>,
    pub(crate) handles: Handles,
    pub(crate) options: Arc<Options>,
    cancel: Cancel,
    packet_bytes: u16,
    transaction: u64,
}

impl Worker {
    fn answer(&mut self, job: &Job, chunks: &mpsc::Sender<Chunk>) {
        let (cancel, options) = (self.cancel.clone(), Arc::clone(&self.options));
        let mut answer = Answer::new(chunks, &cancel, &options, self.packet_bytes);
        answer.transaction = self.transaction;
        if job.reset {
            self.session.reset();
            self.handles.clear();
            answer.transaction = 0;
            answer.env_change(&EnvChange::ResetConnection);
        }
        let outcome = match job.kind {
            kind::BATCH => request::batch(&job.payload).map(|sql| self.batch(sql, &mut answer)),
            kind::RPC => rpc::parse(&job.payload, options.collation).map(|calls| self.procedures(calls, &mut answer)),
            _ => request::transaction(&job.payload).map(|request| self.transaction(&request, &mut answer)),
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "request refused");
            answer.error(&protocol_error(&error));
            if !matches!(error, Error::Unsupported { .. }) {
                answer.close_after();
            }
        }
        self.transaction = answer.transaction;
        answer.finish();
    }

    fn batch(&mut self, sql: String, answer: &mut Answer<'_>) {
        self.execute(&Batch { sql, parameters: Vec::new() }, answer);
    }

    fn procedures(&mut self, calls: Vec<rpc::Rpc>, answer: &mut Answer<'_>) {
        answer.set_style(Style::Procedure);
        let last = calls.len() - 1;
        for (at, call) in calls.into_iter().enumerate() {
            if answer.is_closed() {
                break;
            }
            match call.known {
                Some(known) => self.known_procedure(known, call.parameters, answer),
                None => self.call(&Call { procedure: call.name, parameters: call.parameters }, answer),
            }
            answer.end_procedure(at == last);
        }
    }

    /// Runs SQL, unless a fault is in its way.
    pub(crate) fn execute(&mut self, batch: &Batch, answer: &mut Answer<'_>) {
        answer.guess_command(request::guess_command(&batch.sql));
        if self.may_run(&batch.sql, answer) {
            self.session.batch(batch, answer);
        }
    }

    fn call(&mut self, call: &Call, answer: &mut Answer<'_>) {
        let ordinals = call.parameters.iter().enumerate().filter(|(_, parameter)| parameter.output);
        answer.set_ordinals(ordinals.map(|(at, parameter)| (parameter.name.clone(), at as u16)).collect());
        if self.may_run(&call.procedure, answer) {
            self.session.call(call, answer);
        }
    }

    fn transaction(&mut self, request: &TransactionRequest, answer: &mut Answer<'_>) {
        let text = match request {
            TransactionRequest::Begin { .. } => "begin transaction",
            TransactionRequest::Commit { .. } => "commit transaction",
            TransactionRequest::Rollback { .. } => "rollback transaction",
            TransactionRequest::Save { .. } => "save transaction",
        };
        if self.may_run(text, answer) {
            self.session.transaction(request, answer);
        }
    }

    /// Lets an armed fault strike a request with this text; false when it is not to run.
    pub(crate) fn may_run(&self, text: &str, answer: &mut Answer<'_>) -> bool {
        match self.options.faults.on_request(text) {
            Verdict::Run => return true,
            Verdict::Cut => answer.cut(),
            Verdict::Fail(error) => answer.error(&error),
            Verdict::LoseAnswer => {
                answer.lose();
                return true;
            }
            Verdict::CutAfterRows(rows) => {
                answer.cut_after_rows(rows);
                return true;
            }
        }
        false
    }
}
