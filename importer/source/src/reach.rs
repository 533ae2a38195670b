//! From a host's name to an open TCP connection.
//!
//! A name may have several addresses. By default they are tried one after the other, as they were answered. An availability group's listener over several subnets has one
//! in each, of which a single one is up at a time, and the others do not refuse but keep silent: with `multi_subnet_failover` all are tried at once, and the first that
//! answers is taken.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, lookup_host};

use super::browser;
use super::error::Error;
use super::network::{Network, Wire};

/// How long a TCP connection may take, whatever is tried for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to connect.
pub(super) struct Place<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// Its port is asked for.
    pub(super) instance: Option<&'a str>,
    /// All addresses at once.
    pub(super) at_once: bool,
    pub(super) network: &'a Network,
}

impl Place<'_> {
    /// As errors name it.
    pub(super) fn address(&self) -> String {
        match self.instance {
            Some(instance) => format!("{}\\{instance}", self.host),
            None => format!("{}:{}", self.host, self.port),
        }
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Wire>, Error> {
        let unreachable = |message: String| Error::Unreachable { address: self.address(), message };
        if let Some(other) = &self.network.0 {
            return other.dial(self.host, self.port).await.map_err(|error| unreachable(error.to_string()));
        }
        let tcp = tokio::time::timeout(CONNECT_TIMEOUT, self.try_addresses())
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?
            .map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
        Ok(Box::new(tcp))
    }

    async fn try_addresses(&self) -> Result<TcpStream, String> {
        let port = if self.instance.is_some() { browser::PORT } else { self.port };
        let addresses: Vec<SocketAddr> = lookup_host((self.host, port)).await.map_err(|error| error.to_string())?.collect();
        if self.at_once {
            first(addresses, |address| self.try_address(address)).await
        } else {
            in_turn(addresses, |address| self.try_address(address)).await
        }
    }

    async fn try_address(&self, mut address: SocketAddr) -> Result<TcpStream, String> {
        if let Some(instance) = self.instance {
            let port = browser::ask(address, instance).await?;
            address.set_port(port);
        }
        TcpStream::connect(address).await.map_err(|error| describe(address, &error))
    }
}

fn describe(address: SocketAddr, error: &io::Error) -> String {
    format!("{address}: {error}")
}

const NO_ADDRESS: &str = "the name has no address";

async fn in_turn<T, F: Future<Output = Result<T, String>>>(
    addresses: Vec<SocketAddr>,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, String> {
    let mut failures = Vec::new();
    for address in addresses {
        match attempt(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(failure) => failures.push(failure),
        }
    }
    Err(if failures.is_empty() { NO_ADDRESS.to_owned() } else { failures.join("; ") })
}

async fn first<T, F: Future<Output = Result<T, String>>>(
    addresses: Vec<SocketAddr>,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, String> {
    let mut attempts: FuturesUnordered<F> = addresses.into_iter().map(attempt).collect();
    let mut failures = Vec::new();
    while let Some(result) = attempts.next().await {
        match result {
            Ok(tcp) => return Ok(tcp),
            Err(failure) => failures.push(failure),
        }
    }
    Err(if failures.is_empty() { NO_ADDRESS.to_owned() } else { failures.join("; ") })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 1433).into()
    }

    /// 1 keeps silent, 2 refuses, 3 answers.
    async fn attempt(address: SocketAddr) -> Result<SocketAddr, String> {
        match address.to_string().as_str() {
            "192.0.2.1:1433" => std::future::pending().await,
            "192.0.2.2:1433" => Err("192.0.2.2: refused".to_owned()),
            _ => Ok(address),
        }
    }

    #[tokio::test]
    async fn a_silent_subnet_does_not_hold_up_the_others() {
        assert_eq!(first(vec![address(1), address(2), address(3)], attempt).await, Ok(address(3)));
        assert_eq!(first(vec![address(2), address(2)], attempt).await, Err("192.0.2.2: refused; 192.0.2.2: refused".to_owned()));
        assert_eq!(first(vec![], attempt).await, Err(NO_ADDRESS.to_owned()));
        assert_eq!(in_turn(vec![address(2), address(3), address(1)], attempt).await, Ok(address(3)));
        assert_eq!(in_turn(vec![address(2)], attempt).await, Err("192.0.2.2: refused".to_owned()));
    }
}
