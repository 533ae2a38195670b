//! `tributary dead-letter`: what the joiner has set aside, in a running process or in the state of a stopped one.

use std::process::ExitCode;

use anyhow::{Context, bail};
use hyper::Method;
use joiner::DeadLetters;
use joiner::dead_letters::Which;
use serde_json::{Value, json};

use super::{aligned, api_client};
use crate::cli::{DeadLetterCommand, DeadLetterPlace, DeadLetterWhich};
use crate::config::Config;

pub(crate) async fn run(command: DeadLetterCommand) -> anyhow::Result<ExitCode> {
    match command {
        DeadLetterCommand::List(args) => {
            let which = args.sink.map_or(Which::All, Which::Sink);
            let letters = Place::open(args.place).await?.list(&which, args.limit).await?;
            if args.json {
                println!("{:#}", Value::from(letters));
            } else {
                print!("{}", listed(&letters));
            }
        }
        DeadLetterCommand::Show(args) => {
            let letters = Place::open(args.place).await?.list(&Which::Id(args.id.clone()), 1).await?;
            let letter = letters.first().with_context(|| nothing(&Which::Id(args.id)))?;
            println!("{letter:#}");
        }
        DeadLetterCommand::Retry(args) => {
            let which = meant(&args.which);
            let retried = Place::open(args.place).await?.retry(&which).await?;
            let count = |member: &str| retried[member].as_u64().unwrap_or_default();
            let [changes, events, documents, sinks] = ["changes", "events", "documents", "sinks"].map(count);
            if sinks > 0 {
                let sinks = if sinks == 1 { "A sink that fails is".to_owned() } else { format!("{sinks} sinks that fail are") };
                println!("{sinks} tried at once: `tributary status` says how it goes.");
            }
            if events > 0 {
                println!(
                    "Events of a table: {events}. `tributary snapshot --table NAME` has the table read again, then drop them."
                );
            }
            if documents > 0 {
                println!(
                    "Documents past the `limits` of their definitions: {documents}. They are told as soon as they fit: raise the limits, or find out why they have grown."
                );
            }
            if changes == 0 && sinks > 0 {
                return Ok(ExitCode::SUCCESS);
            }
            if changes == 0 && events + documents > 0 {
                bail!("nothing of that is tried again by asking");
            }
            if changes == 0 {
                bail!("nothing to try again: {}", nothing(&which));
            }
            println!("{changes} to be tried again: what is refused once more stands in `tributary dead-letter list`.");
        }
        DeadLetterCommand::Drop(args) => {
            let which = meant(&args.which);
            let dropped = Place::open(args.place).await?.remove(&which).await?;
            if dropped == 0 {
                bail!("nothing was dropped: {}", nothing(&which));
            }
            println!("{dropped} dropped.");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn meant(which: &DeadLetterWhich) -> Which {
    match (&which.id, &which.sink) {
        (Some(id), _) => Which::Id(id.clone()),
        (_, Some(sink)) => Which::Sink(sink.clone()),
        _ => Which::All,
    }
}

fn nothing(which: &Which) -> String {
    match which {
        Which::Id(id) => format!("there is no dead letter {id}: `tributary dead-letter list` shows those that there are"),
        Which::Sink(sink) => format!("there are no dead letters of a sink {sink:?}"),
        Which::All => "there are no dead letters".to_owned(),
    }
}

/// Where the letters are.
enum Place {
    Running(crate::cli::ApiArgs),
    /// Nobody has the state open.
    Stopped(DeadLetters),
}

impl Place {
    async fn open(place: DeadLetterPlace) -> anyhow::Result<Self> {
        let Some(config) = place.config else { return Ok(Self::Running(place.api)) };
        let state = Config::load(&config)?.data.join("state");
        let opened = tokio::task::spawn_blocking(move || DeadLetters::open(&state)).await?;
        Ok(Self::Stopped(opened.context("without --config the running process is asked")?))
    }

    async fn list(&self, which: &Which, limit: usize) -> anyhow::Result<Vec<Value>> {
        match self {
            Self::Stopped(letters) => Ok(letters.list(which, limit)?.iter().map(|kept| json!(kept)).collect()),
            Self::Running(api) => {
                let only = match which {
                    Which::Id(id) => format!("&id={}", encoded(id)),
                    Which::Sink(sink) => format!("&sink={}", encoded(sink)),
                    Which::All => String::new(),
                };
                let mut answer = api_client::get(api, &format!("/v1/dead-letters?limit={limit}{only}")).await?;
                match answer["items"].take() {
                    Value::Array(letters) => Ok(letters),
                    other => bail!("the API answered {other} where dead letters were expected"),
                }
            }
        }
    }

    async fn retry(&self, which: &Which) -> anyhow::Result<Value> {
        match self {
            Self::Stopped(letters) => {
                let joiner::dead_letters::Retried { changes, events, documents, sinks } = letters.retry(which)?;
                Ok(json!({"changes": changes, "events": events, "documents": documents, "sinks": sinks}))
            }
            Self::Running(api) => post(api, "/v1/dead-letters/retry", which).await,
        }
    }

    async fn remove(&self, which: &Which) -> anyhow::Result<u64> {
        match self {
            Self::Stopped(letters) => Ok(letters.remove(which)?),
            Self::Running(api) => Ok(post(api, "/v1/dead-letters/drop", which).await?["dropped"].as_u64().unwrap_or_default()),
        }
    }
}

async fn post(api: &crate::cli::ApiArgs, path: &str, which: &Which) -> anyhow::Result<Value> {
    let body = match which {
        Which::Id(id) => json!({"id": id}),
        Which::Sink(sink) => json!({"sink": sink}),
        Which::All => json!({"all": true}),
    };
    match api_client::ask(api, Method::POST, path, Some(&body)).await? {
        (status, answer) if status.is_success() => Ok(answer),
        (status, problem) => Err(api_client::refused(status, &problem)),
    }
}

/// Everything but letters and digits as `%XX`.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

/// A line each; what stands there in full is shown by id.
fn listed(letters: &[Value]) -> String {
    if letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |letter: &Value| {
        let (of, what, lsn) = if letter["kind"] == "change" {
            (text(&letter["sink"]), format!("{} {}", text(&letter["entity"]), text(&letter["key"])), text(&letter["version"]))
        } else if letter["kind"] == "document" {
            (text(&letter["entity"]), text(&letter["key"]), text(&letter["version"]))
        } else {
            (text(&letter["stream"]), text(&letter["table"]), text(&letter["commit_lsn"]))
        };
        let mut reason = text(&letter["reason"]);
        if letter["retry"] == true {
            reason.insert_str(0, "(to be tried again) ");
        }
        [text(&letter["id"]), of, what, lsn, reason]
    };
    aligned(["", "of", "what", "lsn", "reason"], &letters.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_every_kind_are_listed() {
        let letters = [
            json!({"id": "0f", "kind": "change", "sink": "postgres", "entity": "order", "key": "7", "version": "00000001:00000002:0003", "reason": "a NUL", "retry": true}),
            json!({"id": "2d", "kind": "document", "entity": "order", "key": "9", "version": "00000001:00000002:0002", "reason": "the document has more than 5 children"}),
            json!({"id": "1e", "kind": "event", "stream": "shop", "table": "dbo.orders", "commit_lsn": "00000001:00000002:0001", "reason": "no key"}),
        ];
        let expected = "      of        what        lsn                     reason\n  \
                          0f  postgres  order 7     00000001:00000002:0003  (to be tried again) a NUL\n  \
                          2d  order     9           00000001:00000002:0002  the document has more than 5 children\n  \
                          1e  shop      dbo.orders  00000001:00000002:0001  no key\n";
        assert_eq!(listed(&letters), expected);
        assert_eq!(listed(&[]), "no dead letters\n");
        assert_eq!(encoded("a b/ü"), "a%20b%2F%C3%BC");
    }
}
