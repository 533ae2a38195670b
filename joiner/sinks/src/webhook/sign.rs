//! Signatures as [Standard Webhooks](https://www.standardwebhooks.com) has them: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`, one for each secret, with spaces between, so that a receiver that
//! knows any of the secrets is content while they are being changed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{Error, Secret};

const PREFIX: &str = "whsec_";
/// What the specification asks of a secret.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The secrets of an endpoint, the newest first.
pub(super) struct Keys(Vec<Hmac<Sha256>>);

impl Keys {
    pub(super) fn new(target: &str, secrets: &[Secret]) -> Result<Self, Error> {
        secrets.iter().map(|secret| key(target, secret)).collect::<Result<_, _>>().map(Self)
    }

    /// The header's value.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &str) -> String {
        let signatures: Vec<String> = self
            .0
            .iter()
            .map(|key| {
                let mut mac = key.clone();
                for part in [id, ".", &timestamp.to_string(), ".", body] {
                    mac.update(part.as_bytes());
                }
                format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
            })
            .collect();
        signatures.join(" ")
    }
}

fn key(target: &str, secret: &Secret) -> Result<Hmac<Sha256>, Error> {
    // The message says nothing of the secret itself.
    let wrong = |what: &str| {
        let remedy = "Write whsec_ and the base64 of 24 to 64 random bytes: `echo whsec_$(openssl rand -base64 32)` makes one";
        Error::misconfigured(target, format!("a signing secret {what}"), remedy)
    };
    let text = secret.reveal().strip_prefix(PREFIX).unwrap_or(secret.reveal());
    let bytes = STANDARD.decode(text.trim()).map_err(|_| wrong("is not base64"))?;
    if !KEY_BYTES.contains(&bytes.len()) {
        return Err(wrong(&format!("has {} bytes", bytes.len())));
    }
    Hmac::new_from_slice(&bytes).map_err(|error| wrong(&error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_specifications_own_example_is_signed_alike() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let keys = Keys::new("webhook", std::slice::from_ref(&secret)).unwrap();
        let signature = keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let both = Keys::new("webhook", &[Secret::new("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), secret]).unwrap();
        let signatures = both.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert!(signatures.ends_with(&format!(" {signature}")), "{signatures}");
    }

    #[test]
    fn secrets_that_are_none_are_refused_and_not_told() {
        for secret in ["whsec_hunter2!", "whsec_aHVudGVyMg=="] {
            let error = Keys::new("webhook", &[Secret::new(secret)]).err().unwrap().to_string();
            assert!(error.contains("signing secret") && !error.contains("unter2") && !error.contains("aHVudGVyMg"), "{error}");
        }
    }
}
