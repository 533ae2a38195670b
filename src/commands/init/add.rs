//! `tributary init --add`: one more source in a configuration that is there.
//!
//! The file is somebody's: comments, order and layout stay as they are. So it is edited as text, line by line ([`with_source`]), and the outcome is read and held against what was there: every key has the value that it had, and the list of sources is
//! what it was with one more. Where that is not so, because the file is laid out in a way that is not foreseen here, nothing is written, and what has to be put where is said.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use importer::init::Report;
use schemas::entity::{EntityDefinition, ManyEdge, OneEdge};
use schemas::table::SourceName;
use serde_yaml_ng::Value;

use crate::config::Config;
use crate::pipeline::plans;

/// What `init` is to add: the source's name, and its keys as they stand in the section `source`, indented by two.
pub(super) struct Addition<'a> {
    pub(super) name: &'a str,
    pub(super) keys: &'a str,
}

/// A configuration that takes one more source.
pub(super) struct Existing {
    path: PathBuf,
    text: String,
    config: Config,
}

impl Existing {
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let config = Config::load(path)?;
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        Ok(Self { path: path.to_owned(), text, config })
    }

    /// The configuration with the source added; says why where that cannot be. Nothing is touched.
    pub(super) fn with(&self, addition: &Addition<'_>) -> anyhow::Result<String> {
        let Addition { name, keys } = addition;
        let place = self.path.display();
        if self.config.sources.iter().any(|source| source.name == *name) {
            bail!("{place}: there is a source {name:?} already: give this one another name with --name");
        }
        let by_hand = || {
            format!(
                "{place}: the sources are laid out in a way that is not edited here: write `sources` as a list of lines, with this in it:\n{}",
                item(keys, 2)
            )
        };
        let text = with_source(&self.text, keys).with_context(by_hand)?;
        if !is_one_more(&self.text, &text, keys) {
            bail!(by_hand());
        }
        Config::parse(&text).with_context(|| format!("{place}: cannot have several sources as it is"))?;
        Ok(text)
    }

    /// Where the contracts of a source are, of several.
    fn contracts_of(&self, name: &str) -> PathBuf {
        self.config.contracts.join(name)
    }

    /// Writes what was inferred of the source, and the configuration last. The contracts of an only source go to a folder of their own.
    pub(super) fn write(&self, inferred: &importer::init::Inferred, name: &str, text: &str) -> anyhow::Result<Report> {
        let mut inferred = inferred.clone();
        let known: Vec<String> = self.config.load_entities()?.into_iter().map(|known| known.entity).collect();
        inferred.entities.iter_mut().for_each(|entity| called_by_source(entity, name, &known));
        let mut report = importer::init::write_schemas(&inferred, &self.contracts_of(name), &self.config.entities)?;
        if let [only] = self.config.sources.as_slice() {
            report.notes.extend(self.move_contracts(&only.name)?);
        }
        replace(&self.path, text)?;
        report.written.push(self.path.clone());
        report.notes.extend(self.what_remains(name)?);
        Ok(report)
    }

    fn move_contracts(&self, only: &str) -> anyhow::Result<Option<String>> {
        let (from, to) = (&self.config.contracts, self.contracts_of(only));
        let told = |what: &Path| format!("{}: cannot be moved to {}", what.display(), to.display());
        std::fs::create_dir_all(&to).with_context(|| told(from))?;
        let mut moved = 0;
        for entry in std::fs::read_dir(from).with_context(|| told(from))? {
            let file = entry.with_context(|| told(from))?.path();
            if let Some(name) = file.file_name().filter(|_| file.is_file()) {
                std::fs::rename(&file, to.join(name)).with_context(|| told(&file))?;
                moved += 1;
            }
        }
        Ok((moved > 0).then(|| format!("the contracts of {only} are in {} now", to.display())))
    }

    /// What somebody has to do yet.
    fn what_remains(&self, name: &str) -> anyhow::Result<Vec<String>> {
        let mut notes = Vec::new();
        let config = Config::load(&self.path)?;
        if let Err(error) = plans(&config, &config.load_contracts()?) {
            notes.push(format!("a definition has to be edited, because {name} has tables too: {error:#}"));
        }
        if let ([only], Some(archive)) = (self.config.sources.as_slice(), &config.archive) {
            let (store, to) = (&archive.store, archive.store.below(&only.name));
            notes.push(match &self.config.streams.prefix {
                None => format!(
                    "an archive that {store} holds of {} belongs to {to} now: move what is in it there, or name another store",
                    only.name
                ),
                Some(_) => {
                    format!("an archive that {store} holds is of streams that are called otherwise now: name another store")
                }
            });
        }
        if config.state_dir().exists() {
            let (data, known) = (config.data.display(), self.config.source_names());
            notes.push(format!(
                "what {data} holds is of {known} alone: name another folder in `data`, or remove it. All is read anew then, and sinks are brought to what it comes to"
            ));
        }
        Ok(notes)
    }
}

/// Tables are called by their source, and an entity whose name is taken is called by it too.
fn called_by_source(entity: &mut EntityDefinition, source: &str, known: &[String]) {
    let name: SourceName = source.into();
    entity.table = entity.table.clone().of(&name);
    called_in(&mut entity.one, &mut entity.many, &name);
    if known.contains(&entity.entity) {
        entity.entity = format!("{}-{}", entity.entity, source.to_lowercase());
    }
}

type Edges<E> = std::collections::BTreeMap<String, E>;

fn called_in(one: &mut Edges<OneEdge>, many: &mut Edges<ManyEdge>, source: &SourceName) {
    for edge in one.values_mut() {
        edge.table = edge.table.clone().of(source);
        called_in(&mut edge.one, &mut edge.many, source);
    }
    for edge in many.values_mut() {
        edge.table = edge.table.clone().of(source);
        called_in(&mut edge.one, &mut edge.many, source);
    }
}

/// Writes a file that is there, whole or not at all.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let beside = path.with_extension("yaml.new");
    let told = || format!("{}: cannot be written", path.display());
    std::fs::write(&beside, text).with_context(told)?;
    std::fs::rename(&beside, path).with_context(told)
}

/// Whether a line begins a section.
fn is_key(line: &str) -> bool {
    line.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '"' || c == '\'')
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn says_nothing(line: &str) -> bool {
    let text = line.trim_start();
    text.is_empty() || text.starts_with('#')
}

/// The keys of a mapping, each line indented by at least two, as an element of a list.
fn item(keys: &str, at: usize) -> String {
    let mut begun = false;
    let mut line = |line: &str| {
        let rest = &line[indentation(line).min(2)..];
        let first = !says_nothing(line) && !std::mem::replace(&mut begun, true);
        let mark = if first { "- " } else { "  " };
        if line.is_empty() { "\n".to_owned() } else { format!("{}{mark}{rest}\n", " ".repeat(at)) }
    };
    keys.lines().map(&mut line).collect()
}

/// The text with one more source; nothing where it is laid out otherwise than is understood.
fn with_source(text: &str, keys: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.iter().position(|line| line.starts_with("source:") || line.starts_with("sources:"))?;
    let next = lines[start + 1..].iter().position(|line| is_key(line)).map_or(lines.len(), |after| start + 1 + after);
    // Comments before the next section are about that one.
    let of_next = lines[start + 1..next].iter().rev().take_while(|line| line.is_empty() || line.starts_with('#')).count();
    let end = next - of_next;
    let (head, value) = lines[start].split_once(':')?;
    let value = value.trim_start();
    let body = &lines[start + 1..end];
    let (list, at) = match (head, value.chars().next()) {
        ("sources", None | Some('#')) => {
            let first = body.iter().find(|line| !says_nothing(line)).filter(|line| line.trim_start().starts_with('-'))?;
            let body: String = body.iter().map(|line| format!("{line}\n")).collect();
            (format!("{}\n{body}", lines[start]), indentation(first))
        }
        ("source", None | Some('#')) => {
            (format!("sources:{}{value}\n{}", if value.is_empty() { "" } else { "  " }, listed(body)?), 2)
        }
        ("source", Some('{')) => {
            let rest: String = body.iter().map(|line| format!("    {line}\n")).collect();
            (format!("sources:\n  - {value}\n{rest}"), 2)
        }
        _ => return None,
    };
    let before: String = lines[..start].iter().map(|line| format!("{line}\n")).collect();
    let after: String = lines[end..].iter().map(|line| format!("{line}\n")).collect();
    Some(format!("{before}{list}{}{after}", item(keys, at)))
}

/// The lines of a mapping as the first element of a list: two columns further in.
fn listed(body: &[&str]) -> Option<String> {
    let indent = body.iter().find(|line| !says_nothing(line)).map(|line| indentation(line)).filter(|indent| *indent > 0)?;
    let mut begun = false;
    let mut line = |line: &&str| {
        let first = !says_nothing(line) && !std::mem::replace(&mut begun, true);
        let (margin, rest) = line.split_at(indentation(line).min(indent));
        match (line.is_empty(), first) {
            (true, _) => "\n".to_owned(),
            (_, true) => format!("  - {rest}\n"),
            // What stands further out than the keys is a comment.
            (_, false) if margin.len() < indent => format!("  {line}\n"),
            (_, false) => format!("    {rest}\n"),
        }
    };
    Some(body.iter().map(&mut line).collect())
}

/// Whether the second text says what the first does, with one more source.
fn is_one_more(before: &str, after: &str, keys: &str) -> bool {
    let read = |text: &str| serde_yaml_ng::from_str::<Value>(text).ok();
    let (Some(mut before), Some(after), Some(added)) = (read(before), read(after), read(keys)) else { return false };
    let Some(members) = before.as_mapping_mut() else { return false };
    let mut sources = match (members.remove("source"), members.remove("sources")) {
        (Some(only), None) => vec![only],
        (None, Some(Value::Sequence(sources))) => sources,
        _ => return false,
    };
    sources.push(added);
    members.insert("sources".into(), Value::Sequence(sources));
    before == after
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEYS: &str =
        "  name: bank\n  url: \"sqlserver://sa@db/bank\"\n  # tables: [dbo.x]\n\n  # snapshot:\n  #   mode: initial\n";
    const ADDED: &str =
        "  - name: bank\n    url: \"sqlserver://sa@db/bank\"\n    # tables: [dbo.x]\n\n    # snapshot:\n    #   mode: initial\n";

    #[test]
    fn a_section_becomes_the_first_of_a_list() {
        let before = "# Ours.\nsource:  # the shop\n  # its name\n  name: shop\n  snapshot:\n    mode: initial  # slow\n  # tables: [a]\n\n# Where to.\nstreams: {provider: {memory: {}}}\n# The end.\n";
        let after = format!(
            "# Ours.\nsources:  # the shop\n    # its name\n  - name: shop\n    snapshot:\n      mode: initial  # slow\n    # tables: [a]\n{ADDED}\n# Where to.\nstreams: {{provider: {{memory: {{}}}}}}\n# The end.\n"
        );
        assert_eq!(with_source(before, KEYS).unwrap(), after);
        assert!(is_one_more(before, &after, KEYS));
    }

    #[test]
    fn every_layout_is_edited_or_refused() {
        for (before, sources) in [
            ("data: d\nsource:\n        name: shop\n        url: u\n", "  - name: shop\n    url: u\n"),
            ("source: {name: shop,\n  url: u}\ndata: d\n", "  - {name: shop,\n      url: u}\n"),
            ("data: d\nsources:\n  - name: shop\n    url: u\n", "  - name: shop\n    url: u\n"),
            ("sources:\n- {name: shop, url: u}\n# of data\ndata: d", "- {name: shop, url: u}\n- name: bank\n"),
            (
                "sources:\n    # both\n    - name: shop\n      url: u\n\ndata: d\n",
                "    # both\n    - name: shop\n      url: u\n    - name: bank\n",
            ),
        ] {
            let after = with_source(before, KEYS).unwrap();
            assert!(after.contains(sources) && is_one_more(before, &after, KEYS), "{after}");
        }
        for before in ["sources: [{name: shop}]\n", "source: &shop\n  name: shop\n", "data: d\n", "sources: *other\n"] {
            assert!(with_source(before, KEYS).is_none(), "{before}");
        }
        // A text whose lines are moved would be another.
        let block = "source:\n  name: |2\n    shop\n  url: u\n";
        assert!(with_source(block, KEYS).is_none_or(|after| is_one_more(block, &after, KEYS)));
        assert!(!is_one_more("source: {name: a}\ndata: d\n", "sources: [{name: a}, {name: bank}]\n", "name: bank"));
    }
}
