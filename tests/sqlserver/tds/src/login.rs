//! LOGIN7 and its answer (MS-TDS 2.2.6.4).

use crate::error::{Error, Result, malformed};
use crate::options::Options;
use crate::packet::DEFAULT_PACKET_BYTES;
use crate::reader::{Reader, utf16_text};
use crate::session::{Command, EnvChange, Login, SqlError};
use crate::token::{self, Done, done};

const WHAT: &str = "login";
const TDS_7_3_A: u32 = 0x730A_0003;
const TDS_7_4: u32 = 0x7400_0004;
const TDS_8_0: u32 = 0x0800_0000;
const UTF8_SUPPORT: u8 = 0x0A;
const FEDERATED_AUTHENTICATION: u8 = 0x02;
/// The fixed part of LOGIN7.
const FIXED_BYTES: usize = 94;

/// A login message, taken apart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Login7 {
    pub(crate) login: Login,
    pub(crate) tds_version: u32,
    pub(crate) packet_bytes: u16,
    /// Windows or Entra authentication instead of a password.
    pub(crate) integrated: bool,
    /// The client sent feature extensions and wants to hear which are taken.
    extended: bool,
    utf8: bool,
}

impl Login7 {
    pub(crate) fn parse(payload: &[u8]) -> Result<Login7> {
        let mut from = Reader::new(payload, WHAT);
        let length = from.len32()?;
        if length > payload.len() || payload.len() < FIXED_BYTES {
            return malformed(WHAT, "its length is not that of the message");
        }
        let tds_version = from.u32()?;
        let packet_bytes = from.u32()?;
        let [_client_version, _process, _connection] = [from.u32()?, from.u32()?, from.u32()?];
        let [_flags1, flags2, type_flags, flags3] = from.array()?;
        let [_time_zone, _locale] = [from.u32()?, from.u32()?];
        let mut field = || Field::read(&mut from);
        let [host_name, user, password, application, _server] = [field()?, field()?, field()?, field()?, field()?];
        let [extension, library, language, database] = [field()?, field()?, field()?, field()?];
        let password = clear_password(password.bytes(payload)?);
        let mut parsed = Login7 {
            login: Login {
                user: user.text(payload)?,
                password,
                database: database.text(payload)?,
                host_name: host_name.text(payload)?,
                application_name: application.text(payload)?,
                client_library: library.text(payload)?,
                language: language.text(payload)?,
                read_only: type_flags & 0x20 != 0,
            },
            tds_version,
            packet_bytes: u16::try_from(packet_bytes).unwrap_or(u16::MAX),
            integrated: flags2 & 0x80 != 0,
            ..Login7::default()
        };
        if flags3 & 0x10 != 0 {
            parsed.extensions(payload, extension)?;
        }
        Ok(parsed)
    }

    /// The feature extensions stand where a pointer in the login's `ibExtension` points.
    fn extensions(&mut self, payload: &[u8], pointer: Field) -> Result<()> {
        let Some(&[a, b, c, d]) = payload.get(pointer.offset..).and_then(|rest| rest.first_chunk::<4>()) else {
            return malformed(WHAT, "its extensions are outside the message");
        };
        let at = u32::from_le_bytes([a, b, c, d]) as usize;
        let Some(block) = payload.get(at..) else {
            return malformed(WHAT, "its extensions are outside the message");
        };
        self.extended = true;
        let mut from = Reader::new(block, WHAT);
        loop {
            match from.u8()? {
                0xFF => return Ok(()),
                id => {
                    let length = from.len32()?;
                    from.take(length)?;
                    self.utf8 |= id == UTF8_SUPPORT;
                    self.integrated |= id == FEDERATED_AUTHENTICATION;
                }
            }
        }
    }

    /// The TDS version to go on with.
    pub(crate) fn agreed_version(&self, strict: bool) -> Result<u32> {
        match self.tds_version {
            TDS_8_0 if strict => Ok(TDS_8_0),
            version if (TDS_7_3_A..=TDS_7_4).contains(&version) => Ok(version),
            version if version > TDS_7_4 => Ok(TDS_7_4),
            _ => Err(Error::Unsupported { what: "a TDS version below 7.3" }),
        }
    }

    /// The packet size to go on with.
    pub(crate) fn agreed_packet_bytes(&self, limit: u16) -> u16 {
        match self.packet_bytes {
            0 => DEFAULT_PACKET_BYTES.min(limit.max(512)),
            wanted => wanted.clamp(512, limit.clamp(512, 32767)),
        }
    }

    /// The answer to a login that succeeded, in the order in which SQL Server gives it.
    pub(crate) fn accepted(&self, options: &Options, database: &str, tds_version: u32, packet_bytes: u16) -> Vec<u8> {
        const LANGUAGE: &str = "us_english";
        let mut out = Vec::new();
        let info = |number, state, message| SqlError { number, state, class: 0, message, procedure: String::new(), line: 1 };
        token::put_env_change(&mut out, &EnvChange::Database { new: database.to_owned(), old: "master".to_owned() });
        let message = format!("Changed database context to '{database}'.");
        token::put_error(&mut out, &info(5701, 2, message), &options.server_name);
        token::put_collation(&mut out, options.collation);
        token::put_env_change(&mut out, &EnvChange::Language { new: LANGUAGE.to_owned(), old: String::new() });
        let message = format!("Changed language setting to {LANGUAGE}.");
        token::put_error(&mut out, &info(5703, 1, message), &options.server_name);
        token::put_login_ack(&mut out, tds_version, options.version);
        token::put_packet_size(&mut out, packet_bytes, DEFAULT_PACKET_BYTES);
        if self.extended {
            // Everything else (session recovery, column encryption, data classification, …) is refused by not being named.
            let utf8: &[(u8, &[u8])] = if self.utf8 { &[(UTF8_SUPPORT, &[1])] } else { &[] };
            token::put_feature_ack(&mut out, utf8);
        }
        Done { flags: 0, command: Command::Other, rows: 0 }.put(&mut out, done::DONE);
        out
    }
}

/// The answer to a login that failed.
pub(crate) fn refused(options: &Options, error: &SqlError) -> Vec<u8> {
    let mut out = Vec::new();
    token::put_error(&mut out, error, &options.server_name);
    Done { flags: done::ERROR, command: Command::Other, rows: 0 }.put(&mut out, done::DONE);
    out
}

/// What a client is told that wants to log in by Windows or Entra.
pub(crate) fn integrated_refused() -> SqlError {
    SqlError {
        number: 18452,
        state: 1,
        class: 14,
        message: "Login failed. This server knows SQL Server authentication only: give a user name and a password.".to_owned(),
        procedure: String::new(),
        line: 1,
    }
}

/// Offset and length of a variable part.
#[derive(Debug, Clone, Copy)]
struct Field {
    offset: usize,
    units: usize,
}

impl Field {
    fn read(from: &mut Reader<'_>) -> Result<Field> {
        Ok(Field { offset: usize::from(from.u16()?), units: usize::from(from.u16()?) })
    }

    fn bytes(self, payload: &[u8]) -> Result<&[u8]> {
        match payload.get(self.offset..self.offset + self.units * 2) {
            Some(bytes) => Ok(bytes),
            None if self.units == 0 => Ok(&[]),
            None => malformed(WHAT, "a field is outside the message"),
        }
    }

    fn text(self, payload: &[u8]) -> Result<String> {
        Ok(utf16_text(self.bytes(payload)?))
    }
}

/// Undoes the obfuscation: every byte was swapped by halves and XORed with 0xA5.
fn clear_password(bytes: &[u8]) -> String {
    let clear: Vec<u8> = bytes.iter().map(|byte| (byte ^ 0xA5).rotate_left(4)).collect();
    utf16_text(&clear)
}
