//! Serves the stand-in until its standard input ends: `cargo run -p sqlserver --example serve [PORT] [SCRIPT]`.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().map_or(Ok(1433), |p| p.parse())?;
    let options = sqlserver::Options {
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
        capture_interval: Duration::from_millis(20),
        ..sqlserver::Options::default()
    };
    let password = options.sa_password.clone();
    let running = sqlserver::start(options).await?;
    if let Some(script) = arguments.next() {
        let text = std::fs::read_to_string(script)?;
        running.execute(&text).map_err(|e| format!("{} (line {}): {}", e.number, e.line, e.message))?;
    }
    println!("sqlserver://sa:{password}@{}/shop", running.address());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    running.stop().await?;
    Ok(())
}
