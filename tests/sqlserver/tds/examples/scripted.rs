//! The scripted engine of the tests behind a port, to try clients on: `cargo run -p tds --example scripted -- 14330 [off|on|required|strict] [utf8]`.
//! The login is `sa` with the password `x`; the words that it answers stand in `tests/fake/mod.rs`.

use std::sync::Arc;

use tds::{Collation, Encryption, Options};

#[path = "../tests/fake/mod.rs"]
#[allow(dead_code)]
mod fake;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    let encryption = match arguments.next().as_deref() {
        Some("off") => Encryption::Off,
        Some("required") => Encryption::Required,
        Some("strict") => Encryption::Strict,
        _ => Encryption::On,
    };
    let collation = match arguments.next().as_deref() {
        Some("utf8") => Collation::LATIN1_GENERAL_100_CI_AS_SC_UTF8,
        _ => Collation::LATIN1_GENERAL_CP1_CI_AS,
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on {}", listener.local_addr()?);
    let options = Options { encryption, collation, ..Options::default() };
    tds::serve(listener, Arc::new(fake::Fake::default()), options, std::future::pending()).await?;
    Ok(())
}
