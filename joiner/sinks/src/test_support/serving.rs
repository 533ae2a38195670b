//! An HTTP service of the loopback interface that can be taken down and up again.

use std::net::SocketAddr;
use std::sync::Mutex;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Listens on a free port, which stays its own, and ends with this value.
pub struct Served {
    address: SocketAddr,
    router: Router,
    server: Mutex<Option<JoinHandle<()>>>,
}

impl Served {
    pub async fn start(router: Router) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(any).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let served = Self { address, router, server: Mutex::default() };
        served.serve(listener);
        served
    }

    fn serve(&self, listener: TcpListener) {
        let router = self.router.clone();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("to serve") });
        *self.server.lock().expect("the server") = Some(server);
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its port refuses connections; those that there are end with what they are about.
    pub async fn down(&self) {
        let server = self.server.lock().expect("the server").take();
        if let Some(server) = server {
            server.abort();
            // The port is free when the task has ended.
            let _ = server.await;
        }
    }

    pub async fn up(&self) {
        self.serve(TcpListener::bind(self.address).await.expect("its port"));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(server) = self.server.get_mut().expect("the server").take() {
            server.abort();
        }
    }
}
