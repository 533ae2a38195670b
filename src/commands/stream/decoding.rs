//! Records of any encoding, read with the schemas that lie beside the contracts.

use std::sync::Arc;

use schemas::encoding::{Opener, Registry, Schemas, to_json};
use schemas::parse::{Head, ParseError, RowBuffer};

use crate::config::Config;

pub(super) struct Decoder {
    schemas: Arc<Schemas>,
    known: Arc<Registry>,
}

impl Decoder {
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let schemas = config.schemas()?;
        Ok(Self { known: schemas.known(), schemas })
    }

    /// An event as JSON.
    pub(super) fn json(&mut self, record: &[u8]) -> anyhow::Result<Vec<u8>> {
        let json = |known: &Registry| {
            let mut text = Vec::new();
            to_json(&mut Opener::new(known), &mut RowBuffer::default(), record, &mut text).map(|()| text)
        };
        match json(&self.known) {
            // The importer may have written it since.
            Err(ParseError::UnknownSchema { .. }) => {
                self.known = self.schemas.look_again()?;
                Ok(json(&self.known)?)
            }
            other => Ok(other?),
        }
    }

    /// What each of these events is about; none for a record that is no event. A schema that is not there is an error: what stands under it cannot be counted.
    pub(super) fn heads<'r, R>(
        &mut self,
        records: impl Iterator<Item = &'r [u8]>,
        mut take: impl FnMut(Option<&Head<'_>>) -> R,
    ) -> anyhow::Result<Vec<R>> {
        let mut taken = Vec::new();
        let mut known = self.known.clone();
        let mut left = records.peekable();
        let mut looked = false;
        while left.peek().is_some() {
            let mut opener = Opener::new(&known);
            let unknown = loop {
                let Some(record) = left.peek() else { break None };
                match opener.head(record) {
                    Ok(head) => taken.push(take(Some(&head))),
                    Err(error @ ParseError::UnknownSchema { .. }) => break Some(error),
                    Err(_) => taken.push(take(None)),
                }
                looked = false;
                left.next();
            };
            let Some(error) = unknown else { break };
            // The importer may have written it since.
            if std::mem::replace(&mut looked, true) {
                return Err(error.into());
            }
            drop(opener);
            known = self.schemas.look_again()?;
        }
        self.known = known;
        Ok(taken)
    }
}
