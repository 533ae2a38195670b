//! Of several sources, an LSN each: what a version of an entity stands for.
//!
//! LSNs of different sources cannot be compared. Vectors of them can, component by component, and two vectors may each be ahead of the other. Written `bank=0000002a:00000118:0003;shop=00000107:00000020:0001`, in the order of the
//! names (of several sources, none has a character of these in its name): so in headers, events and tables; an object where a document of ours has it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Lsn;

/// By source, the LSN up to which everything of it is meant. Empty where there is but one source, whose LSN is the version itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vector(BTreeMap<String, Lsn>);

/// Text that is not a vector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an LSN of each of several sources: expected source=LSN, with semicolons between them (bank=0000002a:00000118:0003;shop=00000107:00000020:0001)"
)]
pub struct ParseVectorError {
    pub text: String,
}

impl Vector {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, source: &str) -> Option<Lsn> {
        self.0.get(source).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, Lsn)> {
        self.0.iter().map(|(source, lsn)| (source.as_str(), *lsn))
    }

    /// Whether all that this one means is meant by the other too. A source that the other does not have is not.
    pub fn is_within(&self, other: &Self) -> bool {
        self.iter().all(|(source, lsn)| other.get(source).is_some_and(|reached| lsn <= reached))
    }

    /// What both mean; none where they are of other sources.
    pub fn common(self, other: &Self) -> Option<Self> {
        if !self.0.keys().eq(other.0.keys()) {
            return None;
        }
        Some(self.0.into_iter().zip(other.0.values()).map(|((source, lsn), of_other)| (source, lsn.min(*of_other))).collect())
    }
}

impl FromIterator<(String, Lsn)> for Vector {
    fn from_iter<I: IntoIterator<Item = (String, Lsn)>>(sources: I) -> Self {
        Self(sources.into_iter().collect())
    }
}

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (source, lsn)) in self.iter().enumerate() {
            let separator = if nth == 0 { "" } else { ";" };
            write!(f, "{separator}{source}={lsn}")?;
        }
        Ok(())
    }
}

impl FromStr for Vector {
    type Err = ParseVectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseVectorError { text: text.to_owned() };
        let mut sources = BTreeMap::new();
        for part in text.split(';') {
            let (source, lsn) = part.trim().split_once('=').filter(|(source, _)| !source.is_empty()).ok_or_else(error)?;
            let lsn = lsn.parse().map_err(|_| error())?;
            if sources.insert(source.to_owned(), lsn).is_some() {
                return Err(error());
            }
        }
        Ok(Self(sources))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn vector(sources: &[(&str, u8)]) -> Vector {
        let lsn = |n: u8| Lsn::from_bytes([0, 0, 0, n, 0, 0, 0, 0, 0, 0]);
        sources.iter().map(|(source, n)| ((*source).to_owned(), lsn(*n))).collect()
    }

    #[test]
    fn text_and_vector_are_one() {
        let known = vector(&[("shop", 2), ("bank", 1)]);
        let text = "bank=00000001:00000000:0000;shop=00000002:00000000:0000";
        assert_eq!(known.to_string(), text);
        assert_eq!(text.parse(), Ok(known.clone()));
        assert_eq!("shop=00000002:00000000:0000; bank=0x00000001000000000000".parse(), Ok(known.clone()));
        assert_eq!(serde_json::from_str::<Vector>(&serde_json::to_string(&known).unwrap()).unwrap(), known);
        for wrong in ["", "bank", "=00000001:00000000:0000", "bank=1", "bank=0x00000001000000000000;", &format!("{text};{text}")]
        {
            assert!(wrong.parse::<Vector>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn vectors_are_compared_by_component() {
        let [first, second] = [vector(&[("bank", 1), ("shop", 5)]), vector(&[("bank", 2), ("shop", 4)])];
        assert!(!first.is_within(&second) && !second.is_within(&first));
        let both = first.clone().common(&second).unwrap();
        assert_eq!(both, vector(&[("bank", 1), ("shop", 4)]));
        assert!(both.is_within(&first) && both.is_within(&second));
        assert!(vector(&[("shop", 5)]).is_within(&first) && !vector(&[("till", 1)]).is_within(&first));
        assert_eq!(first.common(&vector(&[("bank", 1)])), None);
    }
}
