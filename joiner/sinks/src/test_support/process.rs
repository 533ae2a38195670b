//! A server process that ends with its owner.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// A port that nobody had a moment ago.
pub(super) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port").local_addr().expect("its address").port()
}

/// Waits until `ready` says so; panics after `limit`.
#[allow(clippy::disallowed_methods, reason = "a server process cannot say when it listens: it is asked again and again")]
pub(super) fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < limit, "{what} was not ready within {limit:?}");
        std::thread::sleep(POLL);
    }
}

pub(super) fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Runs a command to its end; panics with what it said.
pub(super) fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}. Run `make setup`"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Killed and reaped when dropped.
pub(super) struct Owned(pub(super) Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have ended already. Its input stays open until it has.
        let _input = self.0.stdin.take();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a shell script when this process ends, however it ends: `kill -9` and a time limit of the suite run no destructor, but they close the pipe that the script waits on.
/// Dropping the answer, after an orderly stop, cancels it.
pub(super) fn when_this_process_ends(script: &str) -> Owned {
    let waiting = format!("cat > /dev/null; {script}");
    let shell =
        Command::new("sh").args(["-c", &waiting]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Owned(shell.expect("sh"))
}
