//! How fast rows leave (two million of twelve columns over loopback, to a client that only counts bytes), and how fast requests are answered.
//! `cargo run --release -p tds --example answers`

use std::sync::Arc;
use std::time::Instant;

use tds::{Encryption, Options};
use tokio::io::AsyncReadExt;

#[path = "../tests/fake/mod.rs"]
#[allow(dead_code)]
mod fake;
#[path = "../tests/support/wire.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod wire;

const ROWS: u32 = 2_000_000;
const REQUESTS: u32 = 20_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let options = Options { encryption: Encryption::Off, ..Options::default() };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(tds::serve(listener, Arc::new(fake::Fake::default()), options, async {
        let _ = stopped.await;
    }));
    let mut client = wire::Wire::connect(address).await;
    let start = Instant::now();
    client.send(wire::BATCH, wire::END, &wire::batch(&format!("rows {ROWS}"))).await;
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, mut left_of_packet, mut ended) = (0, 0, false);
    while !ended || left_of_packet > 0 {
        let read = client.stream.read(&mut buffer).await?;
        bytes += read;
        let mut at = 0;
        while at < read {
            if left_of_packet == 0 {
                // A header that is cut by the end of the buffer is completed first.
                let mut header = [0; 8];
                let have = (read - at).min(8);
                header[..have].copy_from_slice(&buffer[at..at + have]);
                client.stream.read_exact(&mut header[have..]).await?;
                at += have;
                left_of_packet = usize::from(u16::from_be_bytes([header[2], header[3]])) - 8;
                ended = header[1] & 1 != 0;
            }
            let skip = left_of_packet.min(read - at);
            at += skip;
            left_of_packet -= skip;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{:.0} rows/s, {:.0} MB/s", f64::from(ROWS) / seconds, bytes as f64 / seconds / 1e6);
    let start = Instant::now();
    for _ in 0..REQUESTS {
        client.run("insert 1").await;
    }
    println!("{:.0} requests/s, one at a time", f64::from(REQUESTS) / start.elapsed().as_secs_f64());
    drop(stop);
    drop(client);
    served.await??;
    Ok(())
}
