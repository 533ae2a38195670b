//! PRELOGIN: version, encryption and other options, agreed upon before the login (MS-TDS 2.2.6.5).

use crate::error::{Error, Result, malformed};
use crate::options::{Encryption, Version};

mod option {
    pub(super) const VERSION: u8 = 0;
    pub(super) const ENCRYPTION: u8 = 1;
    pub(super) const INSTANCE: u8 = 2;
    pub(super) const THREAD: u8 = 3;
    pub(super) const MARS: u8 = 4;
    pub(super) const FEDERATED: u8 = 6;
    pub(super) const END: u8 = 0xFF;
}

mod encrypt {
    pub(super) const OFF: u8 = 0;
    pub(super) const ON: u8 = 1;
    pub(super) const NOT_SUPPORTED: u8 = 2;
    pub(super) const REQUIRED: u8 = 3;
    /// The client has a certificate of its own, which is not looked at.
    pub(super) const CLIENT_CERTIFICATE: u8 = 0x80;
}

/// What the client asked for, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prelogin {
    encryption: u8,
    federated: bool,
}

/// How much of the connection is encrypted by TLS inside TDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Nothing,
    Login,
    Everything,
}

impl Prelogin {
    pub(crate) fn parse(payload: &[u8]) -> Result<Prelogin> {
        const WHAT: &str = "prelogin";
        let mut found = Prelogin { encryption: encrypt::NOT_SUPPORTED, federated: false };
        let mut at = 0;
        loop {
            match payload.get(at) {
                Some(&option::END) => return Ok(found),
                Some(&token) => {
                    let Some(&[o1, o2, l1, l2]) = payload.get(at + 1..at + 5).and_then(|entry| entry.first_chunk::<4>()) else {
                        return malformed(WHAT, "an option is cut short");
                    };
                    let offset = usize::from(u16::from_be_bytes([o1, o2]));
                    let length = usize::from(u16::from_be_bytes([l1, l2]));
                    let Some(value) = payload.get(offset..offset + length) else {
                        return malformed(WHAT, "an option's value is outside the message");
                    };
                    match (token, value.first()) {
                        (option::ENCRYPTION, Some(byte)) => found.encryption = byte & !encrypt::CLIENT_CERTIFICATE,
                        (option::FEDERATED, Some(byte)) => found.federated = *byte != 0,
                        _ => {}
                    }
                    at += 5;
                }
                None => return malformed(WHAT, "its list of options has no end"),
            }
        }
    }

    /// What to answer and what to encrypt; an error when the two do not agree. `strict`: TLS is there already, below.
    pub(crate) fn agree(self, offered: Encryption, strict: bool) -> (u8, Result<Scope>) {
        use encrypt::{NOT_SUPPORTED, OFF, ON, REQUIRED};
        if strict {
            return (ON, Ok(Scope::Nothing));
        }
        const WITHOUT: Error = Error::Unsupported { what: "a connection without encryption" };
        match (offered, self.encryption) {
            (_, 4..) => (NOT_SUPPORTED, malformed("prelogin", "its encryption option is unknown")),
            (Encryption::Off, OFF | NOT_SUPPORTED) => (NOT_SUPPORTED, Ok(Scope::Nothing)),
            (Encryption::Off, _) => (NOT_SUPPORTED, Err(Error::Unsupported { what: "encryption" })),
            (Encryption::On, OFF) => (OFF, Ok(Scope::Login)),
            (Encryption::On, NOT_SUPPORTED) => (NOT_SUPPORTED, Ok(Scope::Nothing)),
            (Encryption::On, _) => (ON, Ok(Scope::Everything)),
            (Encryption::Required, NOT_SUPPORTED) => (REQUIRED, Err(WITHOUT)),
            (Encryption::Required, OFF) => (REQUIRED, Ok(Scope::Everything)),
            (Encryption::Required, _) => (ON, Ok(Scope::Everything)),
            (Encryption::Strict, _) => (REQUIRED, Err(WITHOUT)),
        }
    }

    /// The server's half.
    pub(crate) fn answer(self, version: Version, encryption: u8) -> Vec<u8> {
        let [high, low] = version.build.to_be_bytes();
        let mut options: Vec<(u8, Vec<u8>)> = vec![
            (option::VERSION, vec![version.major, version.minor, high, low, 0, 0]),
            (option::ENCRYPTION, vec![encryption]),
            (option::INSTANCE, vec![0]),
            (option::THREAD, vec![]),
            (option::MARS, vec![0]),
        ];
        if self.federated {
            options.push((option::FEDERATED, vec![0]));
        }
        let mut offset = (options.len() * 5 + 1) as u16;
        let mut out = Vec::new();
        for (token, value) in &options {
            out.push(*token);
            out.extend(offset.to_be_bytes());
            out.extend((value.len() as u16).to_be_bytes());
            offset += value.len() as u16;
        }
        out.push(option::END);
        out.extend(options.into_iter().flat_map(|(_, value)| value));
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn our_own_answer_parses() {
        let answer = Prelogin { encryption: 0, federated: true }.answer(Version::default(), encrypt::ON);
        assert_eq!(Prelogin::parse(&answer).unwrap(), Prelogin { encryption: encrypt::ON, federated: false });
    }

    #[test]
    fn a_list_without_end_and_a_value_outside_are_refused() {
        assert!(Prelogin::parse(&[0, 0, 5, 0, 0]).is_err());
        assert!(Prelogin::parse(&[1, 0, 200, 0, 1, 0xFF]).is_err());
        assert!(Prelogin::parse(&[]).is_err());
    }

    #[test]
    fn a_server_that_requires_encryption_refuses_a_client_that_has_none() {
        let (answer, scope) =
            Prelogin { encryption: encrypt::NOT_SUPPORTED, federated: false }.agree(Encryption::Required, false);
        assert_eq!(answer, encrypt::REQUIRED);
        assert!(scope.is_err());
    }
}
