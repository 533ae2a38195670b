//! A running server over the scripted engine, and tiberius clients to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tds::{Encryption, Options};
use tiberius::{AuthMethod, Client, Config, EncryptionLevel};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

use crate::fake::Fake;

pub(crate) type Tiberius = Client<Compat<TcpStream>>;

/// Stopped by [`Running::stop`], which also waits for the end of every session.
pub(crate) struct Running {
    /// Rows that all sessions have written.
    pub(crate) rows: Arc<AtomicU64>,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), tds::Error>>,
}

pub(crate) async fn start(options: Options) -> Running {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let fake = Fake::default();
    let rows = Arc::clone(&fake.rows);
    let served = tokio::spawn(tds::serve(listener, Arc::new(fake), options, async move {
        let _ = stopped.await;
    }));
    Running { rows, address, stop, served }
}

pub(crate) async fn start_plain() -> Running {
    start(Options { encryption: Encryption::Off, ..Options::default() }).await
}

impl Running {
    pub(crate) fn config(&self, encryption: EncryptionLevel) -> Config {
        let mut config = Config::new();
        config.host("localhost");
        config.port(self.address.port());
        config.authentication(AuthMethod::sql_server("sa", "Päss word-1{"));
        config.encryption(encryption);
        config.trust_cert();
        config
    }

    /// A configuration that checks the server's certificate.
    pub(crate) fn untrusting(&self, encryption: EncryptionLevel) -> Config {
        let mut config = Config::new();
        config.host("localhost");
        config.port(self.address.port());
        config.authentication(AuthMethod::sql_server("sa", "x"));
        config.encryption(encryption);
        config
    }

    pub(crate) async fn connect_as(&self, config: Config) -> tiberius::Result<Tiberius> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        // Boxed: the future of a TLS handshake is large.
        Box::pin(Client::connect(config, stream.compat_write())).await
    }

    pub(crate) async fn connect(&self) -> Tiberius {
        self.connect_as(self.config(EncryptionLevel::NotSupported)).await.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap().unwrap();
    }
}

/// The number of the server's error.
pub(crate) fn code(error: &tiberius::error::Error) -> Option<u32> {
    match error {
        tiberius::error::Error::Server(token) => Some(token.code()),
        _ => None,
    }
}
