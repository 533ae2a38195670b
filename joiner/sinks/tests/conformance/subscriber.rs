//! A receiver of events that does what the sinks' documentation tells it to: it keeps the highest version of each key, of those that are gone too.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;

#[derive(Default)]
pub(super) struct Subscriber {
    held: Mutex<BTreeMap<String, (Lsn, Option<Value>)>>,
}

impl Subscriber {
    pub(super) fn clear(&self) {
        self.held.lock().unwrap().clear();
    }

    pub(super) fn take(&self, event: &Value) {
        assert_eq!(event["specversion"], "1.0");
        let version: Lsn = event["lsn"].as_str().unwrap().parse().unwrap();
        let mut all = self.held.lock().unwrap();
        let held = all.entry(event["subject"].as_str().unwrap().to_owned()).or_insert((Lsn::ZERO, None));
        if version > held.0 {
            *held = (version, event.get("data").cloned());
        }
    }

    pub(super) fn held(&self) -> Held {
        let held = self.held.lock().unwrap();
        held.iter().filter_map(|(key, (version, document))| Some((key.clone(), (*version, document.clone()?)))).collect()
    }
}
