//! `tributary init`: from a source's catalog to contracts, entities and a configuration that run as they are.
//!
//! [`infer`] is pure: it turns a catalog into contracts and entity definitions. [`run`] reads the catalog, and [`write`] puts files in place, never over one that is there.

mod infer;
mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemas::TableName;
use schemas::contract::Contract;
use schemas::entity::EntityDefinition;

use crate::error::Error;
use source::{Catalog, Client, Source};

pub use infer::infer;

/// What was inferred.
#[derive(Debug, Clone)]
pub struct Inferred {
    /// One a captured table.
    pub contracts: Vec<Contract>,
    pub entities: Vec<EntityDefinition>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// What `init` did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub written: Vec<PathBuf>,
    /// Files that were there already and were left as they are.
    pub kept: Vec<PathBuf>,
    pub notes: Vec<String>,
}

/// Reads the source's catalog.
pub async fn read_catalog(source: &Source) -> Result<Catalog, Error> {
    let mut client = Client::connect(source).await?;
    let catalog = Catalog::read(&mut client).await?;
    if catalog.tables.is_empty() {
        return Err(source::Error::NothingCaptured { database: catalog.database }.into());
    }
    Ok(catalog)
}

/// The columns of captured tables that no capture instance records, by table.
pub async fn uncaptured_columns(source: &Source) -> Result<BTreeMap<TableName, Vec<String>>, Error> {
    Ok(source::catalog::uncaptured_columns(&mut Client::connect(source).await?).await?)
}

/// Reads the catalog, infers, and writes into `out_dir`. `configuration` makes the text of `tributary.yaml`.
pub async fn run(source: &Source, out_dir: &Path, configuration: impl Fn(&Inferred) -> String + Send) -> Result<Report, Error> {
    let catalog = read_catalog(source).await?;
    let inferred = infer(&catalog);
    write(&inferred, &configuration(&inferred), out_dir)
}

/// Writes `tributary.yaml`, `schemas/tables/*.json` and `schemas/entities/*.yaml`. Files that exist are kept: they may have been edited.
pub fn write(inferred: &Inferred, configuration: &str, out_dir: &Path) -> Result<Report, Error> {
    let schemas = out_dir.join("schemas");
    let mut report = write_schemas(inferred, &schemas.join("tables"), &schemas.join("entities"))?;
    put(&out_dir.join("tributary.yaml"), configuration, &mut report)?;
    Ok(report)
}

/// Writes contracts and entity definitions alone, likewise.
pub fn write_schemas(inferred: &Inferred, tables: &Path, entities: &Path) -> Result<Report, Error> {
    let mut report = Report { notes: inferred.notes.clone(), ..Report::default() };
    for directory in [tables, entities] {
        std::fs::create_dir_all(directory).map_err(|source| Error::Io {
            path: directory.to_owned(),
            doing: "creating a directory",
            source,
        })?;
    }
    for contract in &inferred.contracts {
        put(&tables.join(Contract::file_name(&contract.table.name)), &contract.to_text(), &mut report)?;
    }
    for entity in &inferred.entities {
        let path = entities.join(format!("{}.yaml", entity.entity));
        let text =
            serde_yaml_ng::to_string(entity).map_err(|error| Error::Damaged { path: path.clone(), what: error.to_string() })?;
        put(&path, &text, &mut report)?;
    }
    Ok(report)
}

fn put(path: &Path, text: &str, report: &mut Report) -> Result<(), Error> {
    use std::io::Write;
    let create = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
    match create {
        Ok(mut file) => {
            file.write_all(text.as_bytes()).map_err(|source| Error::Io { path: path.to_owned(), doing: "writing", source })?;
            report.written.push(path.to_owned());
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            report.kept.push(path.to_owned());
            Ok(())
        }
        Err(source) => Err(Error::Io { path: path.to_owned(), doing: "creating", source }),
    }
}
