//! Asking the SQL Server Browser on which port a named instance listens (MS-SQLR).
//!
//! One datagram asks, one answers: nothing is authenticated and either may be lost, so it is asked a few times, and what the answer leads to is a server to which the
//! connection still has to be made and encrypted.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;

/// The port that the Browser answers on.
pub(super) const PORT: u16 = 1434;
const ATTEMPTS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(1);
/// Asks for one instance by name.
const ASK_FOR_INSTANCE: u8 = 0x04;
const ANSWER: u8 = 0x05;
/// The longest answer about one instance.
const LONGEST_ANSWER: usize = 1024;

/// The port of an instance, as the Browser at this address says.
pub(super) async fn ask(browser: SocketAddr, instance: &str) -> Result<u16, String> {
    let any: SocketAddr = if browser.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let failed = |error: std::io::Error| format!("the SQL Server Browser at {browser} cannot be asked: {error}");
    let socket = UdpSocket::bind(any).await.map_err(failed)?;
    // Only the Browser's own datagrams are received then.
    socket.connect(browser).await.map_err(failed)?;
    let mut question = vec![ASK_FOR_INSTANCE];
    question.extend_from_slice(instance.as_bytes());
    question.push(0);
    let mut answer = vec![0; LONGEST_ANSWER + 3];
    for _ in 0..ATTEMPTS {
        socket.send(&question).await.map_err(failed)?;
        match tokio::time::timeout(PATIENCE, socket.recv(&mut answer)).await {
            Err(_) => {}
            Ok(received) => {
                let length = received.map_err(failed)?;
                return port(&answer[..length]).ok_or_else(|| {
                    format!("the SQL Server Browser at {browser} does not say on which port instance {instance} listens: it may not listen on TCP")
                });
            }
        }
    }
    Err(format!("the SQL Server Browser at {browser} does not answer for instance {instance}: give the instance's port instead"))
}

/// The port in an answer: three bytes, then names and values between semicolons.
fn port(answer: &[u8]) -> Option<u16> {
    let [ANSWER, _, _, text @ ..] = answer else { return None };
    let text = String::from_utf8_lossy(text);
    let mut parts = text.split(';');
    while let Some(name) = parts.next() {
        let value = parts.next()?;
        if name.eq_ignore_ascii_case("tcp") {
            return value.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn answer(text: &str) -> Vec<u8> {
        let length = u16::try_from(text.len()).unwrap().to_le_bytes();
        [&[ANSWER][..], &length, text.as_bytes()].concat()
    }

    #[test]
    fn the_port_stands_among_names_and_values() {
        let full = "ServerName;DB1;InstanceName;tcp;IsClustered;No;Version;16.0.1000.6;np;\\\\DB1\\pipe\\x;tcp;51433;;";
        assert_eq!(port(&answer(full)), Some(51433));
        assert_eq!(port(&answer("ServerName;DB1;InstanceName;SALES;IsClustered;No;Version;16.0;;")), None);
        assert_eq!(port(&[]), None);
        assert_eq!(port(&[ANSWER, 0]), None);
    }

    /// A Browser that hears nothing the first time.
    #[tokio::test]
    async fn a_lost_question_is_asked_again() {
        let browser = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = browser.local_addr().unwrap();
        let answering = tokio::spawn(async move {
            let mut question = [0; 64];
            let mut heard = Vec::new();
            for attempt in 0..2 {
                let (length, from) = browser.recv_from(&mut question).await.unwrap();
                heard.push(question[..length].to_vec());
                if attempt == 1 {
                    browser.send_to(&answer("ServerName;X;InstanceName;SALES;tcp;4711;;"), from).await.unwrap();
                }
            }
            heard
        });
        assert_eq!(ask(address, "SALES").await, Ok(4711));
        assert_eq!(answering.await.unwrap(), [b"\x04SALES\0".to_vec(), b"\x04SALES\0".to_vec()]);
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = port(&bytes);
            let _ = port(&[&[ANSWER, 0, 0][..], &bytes].concat());
        }
    }
}
