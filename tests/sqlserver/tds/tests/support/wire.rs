//! A client of a few lines, for what no driver sends on purpose: requests byte by byte, answers token by token. It knows the types of the
//! scripted engine's wide rows and no others.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const BATCH: u8 = 0x01;
pub(crate) const RPC: u8 = 0x03;
pub(crate) const ATTENTION: u8 = 0x06;
pub(crate) const BULK: u8 = 0x07;
pub(crate) const LOGIN: u8 = 0x10;

pub(crate) const END: u8 = 1;
pub(crate) const IGNORE: u8 = 2;
pub(crate) const RESET: u8 = 8;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Token {
    Columns(Vec<String>),
    Row(Vec<Option<Vec<u8>>>),
    /// The token's byte, flags, row count.
    Done(u8, u16, u64),
    Error(i32),
    Info(i32),
    EnvChange(u8),
    Status(i32),
    /// Place, name and integer.
    Returned(u16, String, Option<i64>),
    LoginAck,
}

/// A parameter of an RPC.
pub(crate) enum Given<'a> {
    Int(i32),
    /// An int by reference.
    Out(&'a str, Option<i32>),
    Text(&'a str),
}

pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    /// The length of the longest packet so far.
    pub(crate) longest_packet: usize,
}

pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// ALL_HEADERS with a transaction descriptor of zero.
fn headers() -> Vec<u8> {
    let mut out = [22u32.to_le_bytes(), 18u32.to_le_bytes()].concat();
    out.extend([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    out
}

pub(crate) fn batch(sql: &str) -> Vec<u8> {
    [headers(), utf16(sql)].concat()
}

/// One procedure by its number.
pub(crate) fn call(procedure: u16, parameters: &[Given<'_>]) -> Vec<u8> {
    let mut out = vec![0xFF, 0xFF];
    out.extend(procedure.to_le_bytes());
    out.extend([0, 0]);
    parameters.iter().for_each(|parameter| put_parameter(&mut out, parameter));
    out
}

fn put_parameter(out: &mut Vec<u8>, parameter: &Given<'_>) {
    let mut name = |name: &str, status: u8| {
        out.push(name.encode_utf16().count() as u8);
        out.extend(utf16(name));
        out.push(status);
    };
    match parameter {
        Given::Int(n) => {
            name("", 0);
            out.extend([0x26, 4, 4]);
            out.extend(n.to_le_bytes());
        }
        Given::Out(called, value) => {
            name(called, 1);
            out.extend([0x26, 4]);
            match value {
                None => out.push(0),
                Some(n) => {
                    out.push(4);
                    out.extend(n.to_le_bytes());
                }
            }
        }
        Given::Text(text) => {
            name("", 0);
            out.push(0xE7);
            out.extend(8000u16.to_le_bytes());
            out.extend([0x09, 0x04, 0xD0, 0x00, 0x34]);
            let bytes = utf16(text);
            out.extend((bytes.len() as u16).to_le_bytes());
            out.extend(bytes);
        }
    }
}

/// One procedure by its name.
pub(crate) fn named(procedure: &str, parameters: &[Given<'_>]) -> Vec<u8> {
    let mut out = (procedure.len() as u16).to_le_bytes().to_vec();
    out.extend(utf16(procedure));
    out.extend([0, 0]);
    parameters.iter().for_each(|parameter| put_parameter(&mut out, parameter));
    out
}

/// A message of several calls.
pub(crate) fn calls(calls: &[Vec<u8>]) -> Vec<u8> {
    [headers(), calls.join(&0xFF)].concat()
}

pub(crate) fn login7(user: &str, password: &str) -> Vec<u8> {
    let password: Vec<u8> = utf16(password).iter().map(|byte| byte.rotate_left(4) ^ 0xA5).collect();
    let mut fields = Vec::new();
    let mut data = Vec::new();
    for bytes in [utf16("host"), utf16(user), password, utf16("wire"), vec![], vec![], utf16("wire"), vec![], vec![]] {
        fields.extend(((94 + data.len()) as u16).to_le_bytes());
        fields.extend(((bytes.len() / 2) as u16).to_le_bytes());
        data.extend(bytes);
    }
    let mut out = ((94 + data.len()) as u32).to_le_bytes().to_vec();
    for word in [0x7400_0004, 4096, 0, 0, 0, 0, 0, 0] {
        out.extend(u32::to_le_bytes(word));
    }
    out.extend(fields);
    out.resize(94, 0);
    out.extend(data);
    out
}

fn packets(kind: u8, status: u8, payload: &[u8]) -> Vec<u8> {
    let mut packets: Vec<&[u8]> = payload.chunks(992).collect();
    if packets.is_empty() {
        packets.push(&[]);
    }
    let last = packets.len() - 1;
    let mut out = Vec::new();
    for (at, packet) in packets.into_iter().enumerate() {
        out.extend([kind, if at == last { status } else { status & !(END | IGNORE) }]);
        out.extend(((packet.len() + 8) as u16).to_be_bytes());
        out.extend([0, 0, at as u8, 0]);
        out.extend_from_slice(packet);
    }
    out
}

impl Wire {
    /// A connection without a login.
    pub(crate) async fn dial(address: SocketAddr) -> Wire {
        Wire { stream: TcpStream::connect(address).await.unwrap(), longest_packet: 0 }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Wire {
        let mut wire = Wire::dial(address).await;
        wire.send(LOGIN, END, &login7("sa", "x")).await;
        assert!(wire.answer().await.contains(&Token::LoginAck));
        wire
    }

    /// Sends a message, in packets of 1000 bytes; the status is that of the last.
    pub(crate) async fn send(&mut self, kind: u8, status: u8, payload: &[u8]) {
        self.stream.write_all(&packets(kind, status, payload)).await.unwrap();
    }

    /// As [`Self::send`], to a server that may hang up in the middle.
    pub(crate) async fn send_lossy(&mut self, kind: u8, payload: &[u8]) {
        let _ = self.stream.write_all(&packets(kind, END, payload)).await;
    }

    /// The payload of the next message; `None` when the connection ended before its end.
    pub(crate) async fn message(&mut self) -> Option<Vec<u8>> {
        let mut payload = Vec::new();
        loop {
            let mut header = [0; 8];
            self.stream.read_exact(&mut header).await.ok()?;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]])) - 8;
            self.longest_packet = self.longest_packet.max(length + 8);
            let at = payload.len();
            payload.resize(at + length, 0);
            self.stream.read_exact(&mut payload[at..]).await.ok()?;
            if header[1] & END != 0 {
                return Some(payload);
            }
        }
    }

    pub(crate) async fn answer(&mut self) -> Vec<Token> {
        tokens(&self.message().await.unwrap())
    }

    pub(crate) async fn run(&mut self, sql: &str) -> Vec<Token> {
        self.send(BATCH, END, &batch(sql)).await;
        self.answer().await
    }

    pub(crate) async fn call(&mut self, procedure: u16, parameters: &[Given<'_>]) -> Vec<Token> {
        self.send(RPC, END, &calls(&[call(procedure, parameters)])).await;
        self.answer().await
    }
}

/// A cursor over bytes that are trusted: they are our own server's.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }
    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take(2).try_into().unwrap())
    }
    fn i32(&mut self) -> i32 {
        i32::from_le_bytes(self.take(4).try_into().unwrap())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }
    fn text(&mut self, units: usize) -> String {
        let units: Vec<u16> = self.take(units * 2).chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        String::from_utf16(&units).unwrap()
    }
}

#[derive(Clone, Copy)]
enum Layout {
    Fixed(usize),
    ByteCounted,
    WordCounted,
}

fn layout(from: &mut Bytes<'_>) -> Layout {
    match from.u8() {
        0x30 | 0x32 => Layout::Fixed(1),
        0x34 => Layout::Fixed(2),
        0x38 => Layout::Fixed(4),
        0x7F => Layout::Fixed(8),
        0x26 | 0x68 | 0x2A => {
            from.u8();
            Layout::ByteCounted
        }
        0x6A => {
            from.take(3);
            Layout::ByteCounted
        }
        0xE7 | 0xA7 => {
            from.take(7);
            Layout::WordCounted
        }
        0xAD | 0xA5 => {
            from.take(2);
            Layout::WordCounted
        }
        other => panic!("type {other:#x}"),
    }
}

fn value(from: &mut Bytes<'_>, layout: Layout) -> Option<Vec<u8>> {
    let length = match layout {
        Layout::Fixed(length) => length,
        Layout::ByteCounted => match from.u8() {
            0 => return None,
            length => usize::from(length),
        },
        Layout::WordCounted => match from.u16() {
            0xFFFF => return None,
            length => usize::from(length),
        },
    };
    Some(from.take(length).to_vec())
}

pub(crate) fn integer(bytes: &[u8]) -> i64 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | i64::from(*byte))
}

pub(crate) fn tokens(payload: &[u8]) -> Vec<Token> {
    let mut from = Bytes(payload);
    let mut layouts = Vec::new();
    let mut out = Vec::new();
    while !from.0.is_empty() {
        let token = match from.u8() {
            0x81 => {
                let mut names = Vec::new();
                layouts.clear();
                for _ in 0..from.u16() {
                    from.take(6);
                    layouts.push(layout(&mut from));
                    let units = from.u8();
                    names.push(from.text(units.into()));
                }
                Token::Columns(names)
            }
            0xD1 => Token::Row(layouts.iter().map(|layout| value(&mut from, *layout)).collect()),
            0xD2 => {
                let nulls = from.take(layouts.len().div_ceil(8)).to_vec();
                let is_null = |at: usize| nulls[at / 8] & 1 << (at % 8) != 0;
                let cells =
                    layouts.iter().enumerate().map(|(at, layout)| if is_null(at) { None } else { value(&mut from, *layout) });
                Token::Row(cells.collect())
            }
            kind @ (0xFD..=0xFF) => {
                let flags = from.u16();
                from.u16();
                Token::Done(kind, flags, from.u64())
            }
            0x79 => Token::Status(from.i32()),
            0xAC => {
                let place = from.u16();
                let units = from.u8();
                let name = from.text(units.into());
                from.take(7);
                let layout = layout(&mut from);
                Token::Returned(place, name, value(&mut from, layout).map(|bytes| integer(&bytes)))
            }
            kind @ (0xAA | 0xAB | 0xAD | 0xE3) => {
                let length = from.u16();
                let mut body = Bytes(from.take(length.into()));
                match kind {
                    0xAA => Token::Error(body.i32()),
                    0xAB => Token::Info(body.i32()),
                    0xAD => Token::LoginAck,
                    _ => Token::EnvChange(body.u8()),
                }
            }
            other => panic!("token {other:#x}"),
        };
        out.push(token);
    }
    out
}
