//! `docs/configuration.md` against what is read: every key, and every default that it names.
//!
//! What keys there are is asked of the reading itself: a key that cannot be is refused with the list of those that can.

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml_ng::{Mapping, Value};

use super::Config;

const PAGE: &str = include_str!("../../docs/configuration.md");
/// A key that no section has.
const PROBE: &str = "__probe";

/// What every sink has beside the keys of its kind, under the headings that it has on the page. It is read flattened into the same mapping, so the kinds' refusals do not name it.
const OF_EVERY_SINK: &[(&str, &str)] = &[
    ("What every sink has", EVERY_SINK),
    ("Entities of a sink", "sinks[sqlite].entities.*"),
    ("Retries of a sink", "sinks[sqlite].retry"),
];
const EVERY_SINK: &str = "sinks[*]";

/// Where object storage is documented.
const OBJECT_STORAGE: &str = "streams.provider.kinesis.oversize.pointer";

/// What a section needs, so that one more key is all that is new in it.
const REQUIRED: &[(&str, &str)] = &[
    ("archive", "store: {local: {path: data/archive}}"),
    ("checkpoints", "store: {local: {path: data/checkpoints}}"),
    ("source.stream", "{name: s, tables: {dbo.t: {}}}"),
    ("source.stream.tables.*.delete", "when: {/a: 1}"),
    ("streams.provider.embedded", "path: streams"),
    ("streams.provider.kinesis.oversize.pointer.s3", "bucket: b"),
    ("sinks[sqlite]", "path: entities.db"),
    ("sinks[postgres]", "url: 'postgres://u@127.0.0.1/d'"),
    ("sinks[mysql]", "url: 'mysql://u@127.0.0.1/d'"),
    ("sinks[dynamodb]", "table: t"),
    ("sinks[lake]", "store: {local: {path: lake}}"),
    ("sinks[sns]", "topic_arn: 'arn:aws:sns:eu-west-1:1:t'"),
    ("sinks[sqs]", "queue_url: 'https://sqs.eu-west-1.amazonaws.com/1/q'"),
    ("sinks[kinesis]", "stream: entities"),
    ("sinks[search]", "url: 'https://search.example:9200'"),
    ("sinks[webhook]", "{url: 'https://hooks.example/', secrets: [{env: WEBHOOK_SECRET}]}"),
];

/// The page's sections: the keys in their tables, with the default cell.
fn page() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections = BTreeMap::new();
    let mut section = None;
    for line in PAGE.lines() {
        if let Some(heading) = line.strip_prefix("## ").or_else(|| line.strip_prefix("### ")) {
            section = match quoted(heading) {
                Some(path) => Some(path.to_owned()),
                None if heading == "Top level" => Some(String::new()),
                None => OF_EVERY_SINK.iter().find(|(of, _)| *of == heading).map(|(_, path)| (*path).to_owned()),
            };
            if let Some(section) = &section {
                sections.insert(section.clone(), BTreeMap::new());
            }
        } else if let (Some(row), Some(section)) = (line.strip_prefix("| `"), &section) {
            let (key, rest) = row.split_once("` |").unwrap_or_else(|| panic!("no key in {line}"));
            // The meaning, which may hold anything but a bar, and the default, which may be empty.
            let (_, default) = rest.strip_suffix(" |").and_then(|cells| cells.rsplit_once(" |")).unwrap_or_default();
            let keys: &mut BTreeMap<String, String> = sections.get_mut(section).unwrap();
            assert!(keys.insert(key.to_owned(), default.to_owned()).is_none(), "{section}.{key} stands there twice");
        }
    }
    sections
}

/// What stands between the first pair of backquotes.
fn quoted(text: &str) -> Option<&str> {
    text.split('`').nth(1)
}

fn mapping(key: &str, value: Value) -> Value {
    Value::Mapping(Mapping::from_iter([(Value::from(key), value)]))
}

fn yaml(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap()
}

fn required(section: &str) -> &'static str {
    REQUIRED.iter().find(|(path, _)| *path == section).map_or("{}", |(_, text)| *text)
}

/// `content` at a path such as `source.per_table.*` or `sinks[sqlite]`.
fn at(path: &str, content: Value) -> Value {
    path.rsplit('.').filter(|step| !step.is_empty()).fold(content, |inner, step| match step.split_once('[') {
        Some((list, kind)) => {
            let kind = kind.trim_end_matches(']').replace('*', "sqlite");
            let mut element = mapping("type", Value::from(kind.as_str()));
            merge(&mut element, yaml(required(&format!("{list}[{kind}]"))));
            merge(&mut element, inner);
            mapping(list, Value::Sequence(vec![element]))
        }
        None => mapping(if step == "*" { "dbo.t" } else { step }, inner),
    })
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Mapping(into), Value::Mapping(from)) => {
            for (key, value) in from {
                match into.get_mut(&key) {
                    Some(held) => merge(held, value),
                    None => drop(into.insert(key, value)),
                }
            }
        }
        (into, from) => *into = from,
    }
}

/// The least configuration, with this content at a path.
fn configuration(path: &str, content: Value) -> Value {
    let source = match path.strip_prefix("source.stream") {
        None => "{source: {name: shop, url: 'sqlserver://sa:x@127.0.0.1/shop'}}",
        Some(_) => "{source: {name: shop, stream: {name: s, tables: {dbo.t: {}}}}}",
    };
    let mut all = yaml(source);
    if !path.starts_with("streams.provider") {
        merge(&mut all, yaml("{streams: {provider: {memory: {}}}}"));
    }
    merge(&mut all, at(path, content));
    all
}

/// The names that may stand where `PROBE` does, as `what` of the refusal tells; none where something else was wrong.
fn expected(path: &str, content: Value, what: &str) -> Option<BTreeSet<String>> {
    // A member of a map that holds anything is taken.
    let refusal = serde_yaml_ng::from_value::<Config>(configuration(path, content)).err()?.to_string();
    let (_, names) = refusal.split_once(&format!("unknown {what} `{PROBE}`, "))?;
    Some(names.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// The keys of the section at a path; none where no section is.
fn keys(path: &str) -> Option<BTreeSet<String>> {
    if path == EVERY_SINK {
        let entry: sinks::Entry = serde_yaml_ng::from_str("{type: sqlite, path: entities.db}").unwrap();
        // Its members, but for the kind's own.
        let shown = format!("{entry:#?}");
        let members = shown.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(':')).map(|(name, _)| name);
        return Some(members.filter(|name| !name.starts_with([' ', '}']) && *name != "sink").map(str::to_owned).collect());
    }
    expected(path, mapping(PROBE, Value::from(0)), "field").filter(|keys| !keys.is_empty())
}

/// The sections below a key: itself, its values where it is a map, its elements by kind where it is a list.
fn sections_below(path: &str) -> Vec<String> {
    // The settings of a mask and a reference to a secret are values; object storage and stream stores are the same wherever they stand.
    let value = |keys: &BTreeSet<String>| {
        let mut values = vec![&["env", "file"][..], &["fixed", "hash", "truncate"]];
        if path != OBJECT_STORAGE {
            values.push(&["local", "s3"]);
        }
        if path != "streams.provider" {
            values.push(&["embedded", "kinesis", "memory"]);
        }
        values.iter().any(|names| keys.iter().eq(names.iter()))
    };
    let mut found: Vec<String> = Vec::new();
    for section in [path.to_owned(), format!("{path}.*")] {
        if keys(&section).is_some_and(|keys| !value(&keys)) {
            found.push(section);
        }
    }
    let kinds = expected(&format!("{path}[{PROBE}]"), Value::Mapping(Mapping::new()), "variant").unwrap_or_default();
    found.extend(kinds.into_iter().map(|kind| format!("{path}[{kind}]")));
    found
}

#[test]
fn every_key_is_documented() {
    let page = page();
    let mut seen = BTreeSet::new();
    let mut sections = vec![String::new()];
    sections.extend(OF_EVERY_SINK.iter().map(|(_, path)| (*path).to_owned()));
    while let Some(section) = sections.pop() {
        let keys = keys(&section).unwrap_or_else(|| panic!("{section} is no section"));
        let documented: BTreeSet<String> = page.get(&section).into_iter().flat_map(|keys| keys.keys().cloned()).collect();
        assert_eq!(documented, keys, "docs/configuration.md, section {section:?}");
        for key in keys {
            let path = if section.is_empty() { key } else { format!("{section}.{key}") };
            if section != EVERY_SINK {
                sections.extend(sections_below(&path));
            }
        }
        seen.insert(section);
    }
    assert_eq!(page.into_keys().collect::<BTreeSet<_>>(), seen);
    assert!(seen.len() > 12, "{seen:?}");
}

/// What a configuration comes to, defaults applied.
fn in_force(configuration: &Value) -> String {
    let folder = std::path::Path::new("/p");
    let config: Config = serde_yaml_ng::from_value(configuration.clone()).unwrap();
    let mut config = config.checked().unwrap();
    config.resolve_paths(folder);
    let importer = match config.source().stream() {
        None => format!("{:?}", config.importer(Vec::new()).unwrap()),
        Some(service) => format!("{:?}", config.service_importer(service, Vec::new())),
    };
    let streams = (config.prefix(), config.layout(), config.streams.shards, &config.streams.provider);
    let read_from = config.readable_sink().map(sinks::Entry::name);
    let mut joiner = joiner::Config::new("state", Vec::new(), "shop", "shop");
    config.outbox.apply(&mut joiner);
    let outbox = (joiner.backlog_bytes, joiner.outbox_age, joiner.outbox_entries);
    let Config { archive, checkpoints, contracts, entities, data, sinks, api, .. } = &config;
    // How a sink tries again is the kind's own where nothing is said.
    let sinks: Vec<_> = sinks.iter().map(|entry| (&entry.sink, &entry.entities, entry.open().unwrap().terms().retry)).collect();
    format!("{:?}", (importer, streams, archive, checkpoints, contracts, entities, data, outbox, sinks, read_from, api))
}

#[test]
fn every_default_is_the_one_in_force() {
    let mut compared = 0;
    for (section, keys) in page() {
        let without = configuration(&section, yaml(required(&section)));
        for (key, default) in keys {
            // A cell of words says where the default comes from.
            let whole = default.trim().strip_prefix('`').and_then(|cell| cell.strip_suffix('`'));
            let Some(text) = whole.filter(|text| !text.contains('`')) else { continue };
            let mut with = without.clone();
            merge(&mut with, at(&section, mapping(&key, yaml(text))));
            if section.contains('[') {
                let mut element = yaml(required(&section));
                merge(&mut element, mapping(&key, yaml(text)));
                with = configuration(&section, element);
            }
            assert_eq!(in_force(&with), in_force(&without), "{section}.{key}: {text} is not its default");
            compared += 1;
        }
    }
    assert!(compared > 40, "{compared}");
}
