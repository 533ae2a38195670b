//! The folder of table contracts: reading all versions, and putting a new one in force.
//!
//! Which file is what is decided in [`schemas::contract::versions`]; here are the reads and writes. A new version is put in force so that at every moment the
//! folder can be read and no version is lost: the one in force is first copied, byte for byte, to its numbered name and synced, then its file is replaced as a whole.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use schemas::contract::{Contract, ContractError, Versions, versions};
use schemas::{ErrorClass, TableName};

use crate::lease::replace;

/// A contract folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContractsError {
    #[error("{path}: {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, source: std::io::Error },
    #[error(transparent)]
    Contract(#[from] ContractError),
    #[error("{folder}: {error}")]
    Folder { folder: PathBuf, error: ContractError },
    #[error(
        "{path} is there already and is not version {version} as it is in force: somebody has edited one of the two. Remove the one that is wrong"
    )]
    Kept { path: PathBuf, version: u32 },
    #[error(transparent)]
    Write(crate::Error),
}

impl ContractsError {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Write(error) => error.class(),
            _ => ErrorClass::Misconfigured,
        }
    }
}

fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> ContractsError {
    let path = path.to_owned();
    move |source| ContractsError::Io { path, doing, source }
}

/// Every table's contract in a folder (`*.json`), in all its versions.
pub fn read(folder: &Path) -> Result<BTreeMap<TableName, Versions>, ContractsError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io(folder, "the folder cannot be read"))? {
        let path = entry.map_err(io(folder, "the folder cannot be read"))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".json")) else { continue };
        let text = std::fs::read_to_string(&path).map_err(io(&path, "the contract cannot be read"))?;
        files.push((name.to_owned(), Contract::parse(&path.display().to_string(), &text)?));
    }
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    versions::arrange(files).map_err(|error| ContractsError::Folder { folder: folder.to_owned(), error })
}

/// Writes the contract of a table that has none. Returns the file.
pub fn write_first(folder: &Path, contract: &Contract) -> Result<PathBuf, ContractsError> {
    let path = folder.join(Contract::file_name(&contract.table.name));
    let create = OpenOptions::new().write(true).create_new(true).open(&path);
    let write = |mut file: File| file.write_all(contract.to_text().as_bytes()).and_then(|()| file.sync_all());
    create.and_then(write).map_err(io(&path, "the contract cannot be written"))?;
    Ok(path)
}

/// Puts the next version of a contract in force ([`Contract::evolve`]); the version before it stays under its number. Returns the files written.
pub fn put_in_force(folder: &Path, versions: &Versions, next: &Contract) -> Result<[PathBuf; 2], ContractsError> {
    let current = folder.join(&versions.file);
    let kept = folder.join(versions::earlier_file(&versions.file, versions.current.version));
    let text = std::fs::read(&current).map_err(io(&current, "the contract cannot be read"))?;
    let write = |mut file: File| file.write_all(&text).and_then(|()| file.sync_all());
    match OpenOptions::new().write(true).create_new(true).open(&kept) {
        Ok(file) => write(file).map_err(io(&kept, "the version in force cannot be kept"))?,
        // What a crash between the two steps left behind, whole or in part.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = std::fs::read(&kept).map_err(io(&kept, "the kept version cannot be read"))?;
            if !text.starts_with(&found) {
                return Err(ContractsError::Kept { path: kept, version: versions.current.version });
            }
            replace(&kept, &text).map_err(ContractsError::Write)?;
        }
        Err(error) => return Err(io(&kept, "the version in force cannot be kept")(error)),
    }
    replace(&current, next.to_text().as_bytes()).map_err(ContractsError::Write)?;
    Ok([kept, current])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::table::{Column, SqlType, TableSchema};

    use super::*;

    fn table(columns: &[&str]) -> TableSchema {
        let column =
            |name: &&str| Column { name: (*name).to_owned(), sql_type: SqlType::Int, nullable: false, case_insensitive: false };
        TableSchema { name: TableName::new("dbo", "t"), columns: columns.iter().map(column).collect(), key: vec![0] }
    }

    #[test]
    fn versions_follow_one_another_and_none_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let name = TableName::new("dbo", "t");
        // As somebody might have formatted it.
        let first = Contract::from_table(&table(&["id"])).to_json().to_string();
        std::fs::write(folder.path().join("dbo.t.json"), &first).unwrap();
        let mut columns = vec!["id"];
        for (version, column) in [(2, "a"), (3, "b")] {
            columns.push(column);
            let versions = read(folder.path()).unwrap().remove(&name).unwrap();
            let next = versions.current.evolve(&table(&columns)).unwrap().unwrap();
            assert_eq!(next.version, version);
            put_in_force(folder.path(), &versions, &next).unwrap();
        }
        let versions = read(folder.path()).unwrap().remove(&name).unwrap();
        assert_eq!(versions.current.version, 3);
        assert_eq!(versions.current.table.columns.len(), 3);
        assert_eq!(versions.earlier.values().map(|contract| contract.table.columns.len()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(std::fs::read_to_string(folder.path().join("dbo.t.v1.json")).unwrap(), first);
    }

    #[test]
    fn a_crash_between_the_steps_is_made_good_and_an_edited_version_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let name = TableName::new("dbo", "t");
        let text = Contract::from_table(&table(&["id"])).to_text();
        std::fs::write(folder.path().join("dbo.t.json"), &text).unwrap();
        std::fs::write(folder.path().join("dbo.t.v1.json"), &text).unwrap();
        let versions = read(folder.path()).unwrap().remove(&name).unwrap();
        let next = versions.current.evolve(&table(&["id", "a"])).unwrap().unwrap();
        std::fs::write(folder.path().join("dbo.t.v1.json"), &text[..7]).unwrap();
        put_in_force(folder.path(), &versions, &next).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("dbo.t.v1.json")).unwrap(), text);
        assert_eq!(read(folder.path()).unwrap()[&name].current.version, 2);
        std::fs::write(folder.path().join("dbo.t.json"), text.replace("dbo.t\"", "dbo.t\" ")).unwrap();
        assert!(matches!(put_in_force(folder.path(), &versions, &next), Err(ContractsError::Kept { .. })));
    }
}
