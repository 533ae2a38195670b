//! Query parameters as they were sent: in order, repeated names kept, and a problem for what cannot be read.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::keys;
use crate::problem::Problem;

pub(crate) struct Parameters(pub(crate) Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let pairs = parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let read = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // HTML forms write a space as a plus sign; a plus sign itself comes encoded.
            let decode =
                |text: &str| keys::decode(&text.replace('+', " ")).ok_or_else(|| Problem::parameter(pair, "is not UTF-8"));
            Ok((decode(name)?, decode(value)?))
        };
        pairs.map(read).collect::<Result<_, _>>().map(Self)
    }
}
