//! Packets and messages: every message of TDS is cut into packets of a header of eight bytes and a payload (MS-TDS 2.2.3.1).

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::{Error, Result, malformed};

pub(crate) const HEADER_BYTES: usize = 8;
/// The size before one was negotiated.
pub(crate) const DEFAULT_PACKET_BYTES: u16 = 4096;

/// What a message is, as its packets' first byte says.
pub(crate) mod kind {
    pub(crate) const BATCH: u8 = 0x01;
    pub(crate) const RPC: u8 = 0x03;
    pub(crate) const ANSWER: u8 = 0x04;
    pub(crate) const ATTENTION: u8 = 0x06;
    pub(crate) const BULK: u8 = 0x07;
    pub(crate) const TRANSACTION: u8 = 0x0E;
    pub(crate) const LOGIN7: u8 = 0x10;
    pub(crate) const PRELOGIN: u8 = 0x12;
}

pub(crate) mod status {
    pub(crate) const END_OF_MESSAGE: u8 = 0x01;
    pub(crate) const IGNORE: u8 = 0x02;
    pub(crate) const RESET_CONNECTION: u8 = 0x08;
    pub(crate) const RESET_KEEPING_TRANSACTION: u8 = 0x10;
}

/// A whole message from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) payload: Vec<u8>,
    /// The client gave the message up while it sent it; it is to be ignored.
    pub(crate) ignored: bool,
    /// A pooled connection's new user: forget the old one's state.
    pub(crate) reset: bool,
}

/// The next message, or `None` when the client closed the connection between messages.
pub(crate) async fn read_message<R: AsyncRead + Unpin>(from: &mut R, limit: usize) -> Result<Option<Message>> {
    let mut message: Option<Message> = None;
    loop {
        let mut header = [0; HEADER_BYTES];
        if message.is_none() {
            match from.read(&mut header[..1]).await? {
                0 => return Ok(None),
                _ => from.read_exact(&mut header[1..]).await?,
            };
        } else {
            from.read_exact(&mut header).await?;
        }
        let [kind, status, high, low, ..] = header;
        let Some(length) = usize::from(u16::from_be_bytes([high, low])).checked_sub(HEADER_BYTES) else {
            return malformed("packet", "its length is below that of its header");
        };
        let whole = message.get_or_insert_with(|| Message { kind, payload: Vec::new(), ignored: false, reset: false });
        if whole.kind != kind {
            return malformed("message", "its packets are of different kinds");
        }
        if whole.payload.len() + length > limit {
            return Err(Error::TooLong { what: "message", limit });
        }
        let at = whole.payload.len();
        whole.payload.resize(at + length, 0);
        from.read_exact(&mut whole.payload[at..]).await?;
        whole.reset |= status & (status::RESET_CONNECTION | status::RESET_KEEPING_TRANSACTION) != 0;
        if status & status::END_OF_MESSAGE != 0 {
            whole.ignored = status & status::IGNORE != 0;
            return Ok(message);
        }
        if length == 0 {
            // Empty packets that never end a message would keep the reader busy for ever.
            return malformed("message", "a packet in its middle is empty");
        }
    }
}

/// Appends the payload as one message's packets. `number` counts the message's packets and goes on where an earlier part of it ended.
pub(crate) fn frame(out: &mut Vec<u8>, payload: &[u8], packet_bytes: u16, number: &mut u8, end: bool) {
    let room = usize::from(packet_bytes) - HEADER_BYTES;
    let mut rest = payload;
    loop {
        let (packet, after) = rest.split_at(rest.len().min(room));
        let last = after.is_empty();
        let length = (packet.len() + HEADER_BYTES) as u16;
        *number = number.wrapping_add(1);
        out.extend([kind::ANSWER, u8::from(last && end) * status::END_OF_MESSAGE]);
        out.extend(length.to_be_bytes());
        out.extend([0, SPID, *number, 0]);
        out.extend_from_slice(packet);
        rest = after;
        if last {
            break;
        }
    }
}

/// The process id in the headers of answers; nobody reads it.
const SPID: u8 = 51;

/// Sends a short message at once.
pub(crate) async fn write_message<W: AsyncWrite + Unpin>(to: &mut W, payload: &[u8], packet_bytes: u16) -> Result<()> {
    let mut out = Vec::with_capacity(payload.len() + HEADER_BYTES);
    frame(&mut out, payload, packet_bytes, &mut 0, true);
    to.write_all(&out).await?;
    to.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn client_packets(kind: u8, payload: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut chunks = payload.chunks(size).peekable();
        while let Some(chunk) = chunks.next() {
            out.extend([kind, u8::from(chunks.peek().is_none())]);
            out.extend(((chunk.len() + HEADER_BYTES) as u16).to_be_bytes());
            out.extend([0; 4]);
            out.extend_from_slice(chunk);
        }
        out
    }

    #[tokio::test]
    async fn a_message_of_many_packets_is_put_together() {
        let payload: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let bytes = client_packets(kind::BATCH, &payload, 504);
        let mut from = &bytes[..];
        let message = read_message(&mut from, 1 << 20).await.unwrap().unwrap();
        assert_eq!((message.kind, message.payload), (kind::BATCH, payload));
        assert!(read_message(&mut from, 1 << 20).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_message_above_the_limit_is_refused_before_it_is_read() {
        let bytes = client_packets(kind::BATCH, &[0; 5000], 1000);
        let error = read_message(&mut &bytes[..], 4096).await.unwrap_err();
        assert!(matches!(error, Error::TooLong { limit: 4096, .. }), "{error}");
    }

    #[tokio::test]
    async fn a_packet_shorter_than_its_header_is_refused() {
        let error = read_message(&mut &[1, 1, 0, 7, 0, 0, 0, 0][..], 4096).await.unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }

    #[test]
    fn packets_are_full_except_for_the_last() {
        let mut out = Vec::new();
        frame(&mut out, &[7; 1200], 512, &mut 0, true);
        let lengths: Vec<u16> = [0, 512, 1024].iter().map(|at| u16::from_be_bytes([out[at + 2], out[at + 3]])).collect();
        assert_eq!(lengths, [512, 512, 1200 - 2 * 504 + 8]);
        assert_eq!([out[1], out[513], out[1025]], [0, 0, 1]);
        assert_eq!([out[6], out[518], out[1030]], [1, 2, 3]);
    }
}
