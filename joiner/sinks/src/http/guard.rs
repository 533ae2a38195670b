//! Which networks a target may be in.
//!
//! A URL that somebody else may have chosen must not make this process speak to what only it can reach: cloud metadata, databases, its own ports. So every address of the name is checked,
//! one that is not allowed refuses all of them, and the connection is made to the checked addresses themselves: the name is not resolved a second time, so it cannot mean something else meanwhile.
//! Connections that wait in the pool have been made that way too.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_util::client::legacy::connect::dns::Name;
use ipnet::IpNet;
use tower_service::Service;

use crate::Error;

/// An address that is not allowed, and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{host} is at {address}, {why}")]
pub(crate) struct Forbidden {
    host: String,
    address: IpAddr,
    why: &'static str,
}

impl Forbidden {
    pub(crate) fn into_error(self, target: &str) -> Error {
        Error::misconfigured(target, self, "If it is meant, name its network in allow_networks, such as [10.20.0.0/16]")
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LookUp {
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    #[error("{host} is not found: {source}")]
    Unknown { host: String, source: std::io::Error },
    #[error("{host} has no address")]
    Nowhere { host: String },
}

#[derive(Debug, Clone)]
pub(crate) enum Guard {
    /// The operator has named the target: it may be anywhere.
    Anywhere,
    /// Public addresses, and those in these networks.
    Public(Arc<[IpNet]>),
    /// These networks alone.
    Only(Arc<[IpNet]>),
}

/// The host of a URL, without the brackets of an IPv6 address.
pub(crate) fn host_of(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

impl Guard {
    fn check(&self, host: &str, address: IpAddr) -> Result<(), Forbidden> {
        let plain = address.to_canonical();
        let named = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&plain));
        let (allowed, why) = match self {
            Self::Anywhere => (true, ""),
            Self::Public(networks) => (is_public(plain) || named(networks), "which is not a public address"),
            Self::Only(networks) => (named(networks), "and what goes there without TLS stays in networks that are named"),
        };
        if allowed { Ok(()) } else { Err(Forbidden { host: host.to_owned(), address, why }) }
    }

    /// An address in a URL is connected to without being looked up.
    pub(crate) fn check_literal(&self, uri: &Uri) -> Result<(), Forbidden> {
        let host = host_of(uri);
        host.parse().map_or(Ok(()), |address| self.check(host, address))
    }

    /// The addresses of a name, all of them allowed.
    pub(crate) async fn look_up(&self, host: &str) -> Result<Vec<SocketAddr>, LookUp> {
        let unknown = |source| LookUp::Unknown { host: host.to_owned(), source };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await.map_err(unknown)?.collect();
        for address in &addresses {
            self.check(host, address.ip())?;
        }
        if addresses.is_empty() { Err(LookUp::Nowhere { host: host.to_owned() }) } else { Ok(addresses) }
    }
}

/// Whether an address belongs to everybody's internet: none of the blocks that IANA keeps for special purposes.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        // Carriers' own, protocol assignments, 6to4 relays, benchmarks, reserved and broadcast.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        || a >= 240;
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [a, b, ..] = segments;
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match a {
        // NAT64 and 6to4 carry an IPv4 address.
        0x64 => b == 0xff9b && segments[2..6] == [0; 4] && embedded(segments[6], segments[7]),
        0x2002 => embedded(b, segments[2]),
        // Teredo, benchmarks, ORCHID and other protocol assignments; documentation.
        0x2001 => b >= 0x200 && b != 0xdb8,
        0x3fff => b >= 0x1000,
        // Only 2000::/3 is given out: neither loopback, unique local, link-local, site-local, multicast nor discard is in it.
        _ => (0x2000..0x4000).contains(&a),
    }
}

/// Resolves the names that a connection is made to.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    guard: Guard,
}

impl Resolver {
    pub(crate) fn new(guard: Guard) -> Self {
        Self { guard }
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = LookUp;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, LookUp>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LookUp>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.guard.clone();
        Box::pin(async move { Ok(guard.look_up(name.as_str()).await?.into_iter()) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn public(address: &str) -> bool {
        Guard::Public(Arc::new([])).check("host", address.parse().unwrap()).is_ok()
    }

    #[test]
    fn addresses_that_only_we_can_reach_are_not_public() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.0.8",
            "198.18.0.1",
            "192.0.2.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::",
            "2001::1",
            "2001:db8::1",
            "100::1",
            "3fff::1",
            "::127.0.0.1",
        ] {
            assert!(!public(address), "{address}");
        }
        for address in [
            "1.1.1.1",
            "52.94.5.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "2a00:1450::1",
            "64:ff9b::1.1.1.1",
            "::ffff:1.1.1.1",
        ] {
            assert!(public(address), "{address}");
        }
    }

    #[test]
    fn a_network_that_is_named_is_allowed() {
        let guard = Guard::Public(Arc::new(["10.20.0.0/16".parse().unwrap()]));
        assert!(guard.check("host", "10.20.3.4".parse().unwrap()).is_ok());
        assert!(guard.check("host", "::ffff:10.20.3.4".parse().unwrap()).is_ok());
        assert!(guard.check("host", "10.21.3.4".parse().unwrap()).is_err());
        let only = Guard::Only(Arc::new(["10.20.0.0/16".parse().unwrap()]));
        assert!(only.check("host", "10.20.3.4".parse().unwrap()).is_ok());
        assert!(only.check("host", "1.1.1.1".parse().unwrap()).unwrap_err().to_string().contains("TLS"));
    }

    #[tokio::test]
    async fn a_name_is_refused_by_any_of_its_addresses_and_a_literal_without_a_look_up() {
        let guard = Guard::Public(Arc::new([]));
        let refused = guard.look_up("localhost").await.unwrap_err();
        assert!(matches!(refused, LookUp::Forbidden(_)), "{refused}");
        // The ways of writing 127.0.0.1 that resolvers understand.
        for host in ["127.1", "0x7f.0.0.1", "2130706433"] {
            assert!(guard.look_up(host).await.is_err(), "{host}");
        }
        assert!(guard.check_literal(&"http://[::1]:80/x".parse().unwrap()).is_err());
        assert!(guard.check_literal(&"http://127.0.0.1/x".parse().unwrap()).is_err());
        assert!(Guard::Anywhere.look_up("localhost").await.is_ok());
    }
}
