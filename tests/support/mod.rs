//! What the scenarios share: the program's processes, clients, and waiting for conditions.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod databases;
pub mod http;
pub mod pipeline;
pub mod process;
pub mod shop;
pub mod sqlserver;
pub mod tpch_load;

use std::time::{Duration, Instant};

/// Asks again and again, with a short pause, until the answer is there; panics with `what` when it takes longer than `limit`.
pub async fn wait_for<T, F: AsyncFnMut() -> Option<T>>(what: &str, limit: Duration, mut ask: F) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        // Between two questions, not instead of a condition.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
