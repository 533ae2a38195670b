//! The routes, and the server's life: bind, serve, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware;
use axum::routing::{get, post};
use schemas::change::EntityKey;
use schemas::entity::EntityInfo;
use sinks::EntityReader;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::freshness::Freshness;
use crate::guard::Guard;
use crate::{ChangeFeed, Config, DeadLetters, Error, Savepoints, Snapshots, StatusSource};

/// Renders the process's metrics in Prometheus's text format.
pub type MetricsSource = Arc<dyn Fn() -> String + Send + Sync>;

/// The form in which an entity's key is kept (text without regard to case in lower case, …); `None` when it cannot be one of the entity's keys.
pub type KeyNormalizer = Arc<dyn Fn(&str, &EntityKey) -> Option<EntityKey> + Send + Sync>;

/// What the server serves.
#[derive(Clone)]
pub struct Parts {
    pub entities: Vec<EntityInfo>,
    pub normalize_key: KeyNormalizer,
    pub reader: Arc<dyn EntityReader>,
    /// `None` where this process has no outbox: subscriptions are then answered 501.
    pub feed: Option<Arc<dyn ChangeFeed>>,
    /// `None` where this process has no importer: asking for a snapshot is then answered 501.
    pub snapshots: Vec<Arc<dyn Snapshots>>,
    /// `None` where this process has no joiner: its dead letters are then answered 501.
    pub dead_letters: Option<Arc<dyn DeadLetters>>,
    /// `None` where this process makes no checkpoints: asking for a savepoint is then answered 501.
    pub savepoints: Option<Arc<dyn Savepoints>>,
    pub status: Arc<dyn StatusSource>,
    pub metrics: MetricsSource,
}

/// What every handler shares.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) parts: Parts,
    pub(crate) freshness: Freshness,
    pub(crate) openapi: String,
    pub(crate) subscriptions: Arc<Semaphore>,
    pub(crate) shutdown: CancellationToken,
}

/// A server that listens and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    guard: Guard,
    config: Config,
}

impl Server {
    /// Takes the address. Refuses one that others can reach when there is no token.
    pub async fn bind(config: Config) -> Result<Self, Error> {
        let listen = config.listen;
        if !listen.ip().is_loopback() && config.token.is_none() {
            return Err(Error::TokenMissing { listen });
        }
        let token = config.token.as_ref().map(|token| token.resolve("the API's token")).transpose()?;
        let guard = Guard::new(token, &config.hosts);
        let bound = TcpListener::bind(listen).await;
        let address = bound.as_ref().map_err(copy).and_then(|listener| listener.local_addr());
        match (bound, address) {
            (Ok(listener), Ok(address)) => Ok(Self { listener, address, guard, config }),
            (Err(source), _) | (_, Err(source)) => Err(Error::Listen { listen, source }),
        }
    }

    /// The address it has, with the port that port 0 became.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`; then ends subscriptions, answers what is under way within `drain_limit_ms`, and returns. A client that does not take its answer is left behind.
    pub async fn run(self, parts: Parts, shutdown: CancellationToken) -> Result<(), Error> {
        let address = self.address;
        let shared = Arc::new(Shared {
            freshness: Freshness::new(Arc::clone(&parts.reader), parts.feed.clone(), &self.config),
            openapi: crate::openapi::document(&parts.entities).to_string(),
            subscriptions: Arc::new(Semaphore::new(self.config.subscription_limit)),
            shutdown: shutdown.clone(),
            config: self.config,
            parts,
        });
        let drain_limit = Duration::from_millis(shared.config.drain_limit_ms);
        let router = routes(shared, self.guard);
        tracing::info!(listen = %address, "the API answers");
        let too_long = async {
            shutdown.cancelled().await;
            tokio::time::sleep(drain_limit).await;
        };
        let serving = axum::serve(self.listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
        tokio::select! {
            served = serving => served.map_err(|source| Error::Serve { listen: address, source }),
            () = too_long => Ok(()),
        }
    }
}

/// Binds and serves in one call.
pub async fn serve(config: Config, parts: Parts, shutdown: CancellationToken) -> Result<(), Error> {
    Server::bind(config).await?.run(parts, shutdown).await
}

fn copy(error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), error.to_string())
}

fn routes(shared: Arc<Shared>, guard: Guard) -> Router {
    Router::new()
        .route("/v1/entities", get(crate::entities::kinds))
        .route("/v1/entities/{entity}", get(crate::entities::list))
        .route("/v1/entities/{entity}/{key}", get(crate::entities::document))
        .route("/v1/changes", get(crate::changes::subscribe))
        .route("/v1/sources/{source}/snapshots", post(crate::snapshots::begin))
        .route("/v1/dead-letters", get(crate::dead_letters::list))
        .route("/v1/dead-letters/retry", post(crate::dead_letters::retry))
        .route("/v1/dead-letters/drop", post(crate::dead_letters::remove))
        .route("/v1/savepoints", post(crate::savepoints::create))
        .route("/v1/status", get(crate::page::status))
        .route("/metrics", get(crate::page::metrics))
        .route("/openapi.json", get(crate::openapi::get))
        .route("/healthz", get(crate::page::health))
        .route("/readyz", get(crate::page::readiness))
        .route("/", get(crate::page::page))
        .fallback(crate::problem::not_found)
        .method_not_allowed_fallback(crate::problem::method_not_allowed)
        .layer(middleware::from_fn_with_state(Arc::new(guard), crate::guard::check))
        .layer(middleware::from_fn(crate::metrics::observe))
        .with_state(shared)
}
