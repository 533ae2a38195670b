//! A table's contract over time.
//!
//! The file `dbo.orders.json` is the version in force, whichever number its `x-version` has. The versions before it stand beside it as they were, under
//! `dbo.orders.v1.json`, `dbo.orders.v2.json`, …: nothing reads rows by them; they say what was promised, and when one is taken into version control, by whom.
//!
//! A new version is written in two steps: the version in force is copied to its numbered name, then its file is replaced. A crash between the two leaves
//! a copy of the version in force under its number, which is therefore no error.

use std::collections::BTreeMap;

use super::{Contract, ContractError};
use crate::TableName;

/// The versions of one table's contract.
#[derive(Debug, Clone)]
pub struct Versions {
    /// The name of the file of the version in force.
    pub file: String,
    /// The version in force.
    pub current: Contract,
    pub earlier: BTreeMap<u32, Contract>,
}

/// The name under which a version is kept once it is no longer in force; `file` is the name of the contract's own file.
pub fn earlier_file(file: &str, version: u32) -> String {
    format!("{}.v{version}.json", file.strip_suffix(".json").unwrap_or(file))
}

/// The version that a file's name speaks of, if it is one of an earlier version. A table's name never ends so: a name with a dot in it is bracketed.
fn numbered(file: &str) -> Option<u32> {
    let (_, version) = file.strip_suffix(".json")?.rsplit_once(".v")?;
    version.bytes().all(|byte| byte.is_ascii_digit()).then(|| version.parse().ok()).flatten()
}

/// Sorts contract files by table and version. `files`: names without their folder, and what is in them.
pub fn arrange(files: impl IntoIterator<Item = (String, Contract)>) -> Result<BTreeMap<TableName, Versions>, ContractError> {
    let (earlier, current): (Vec<_>, Vec<_>) = files.into_iter().partition(|(file, _)| numbered(file).is_some());
    let mut tables: BTreeMap<TableName, Versions> = BTreeMap::new();
    for (file, contract) in current {
        let table = contract.table.name.clone();
        if let Some(other) = tables.get(&table) {
            let problem = format!("{} is a contract for {table} too", other.file);
            return Err(wrong(&file, "/x-table", problem, "Keep one of the two"));
        }
        tables.insert(table, Versions { file, current: contract, earlier: BTreeMap::new() });
    }
    for (file, contract) in earlier {
        let table = contract.table.name.clone();
        let Some(versions) = tables.get_mut(&table) else {
            let problem = format!("an earlier version of a contract for {table} that is not there");
            return Err(wrong(&file, "/x-table", problem, "Restore the contract's own file, or remove this one"));
        };
        if numbered(&file) != Some(contract.version) {
            let problem = format!("version {} under a name of another", contract.version);
            return Err(wrong(&file, "/x-version", problem, "Name the file after its version: nobody should edit it"));
        }
        let left_by_a_crash = contract.version == versions.current.version && contract.document == versions.current.document;
        if contract.version >= versions.current.version && !left_by_a_crash {
            let problem = format!("not before version {} of {}", versions.current.version, versions.file);
            return Err(wrong(
                &file,
                "/x-version",
                problem,
                "Count up the x-version of the contract in force, or remove this file",
            ));
        }
        if !left_by_a_crash {
            versions.earlier.insert(contract.version, contract);
        }
    }
    Ok(tables)
}

fn wrong(file: &str, place: &str, problem: String, remedy: &str) -> ContractError {
    ContractError { file: file.to_owned(), place: place.to_owned(), problem, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn contract(version: u32, columns: &str) -> Contract {
        let text = format!(r#"{{"x-table": "dbo.t", "x-version": {version}, "properties": {{{columns}}}}}"#);
        Contract::parse("t", &text).unwrap()
    }

    const A: &str = r#""a": {"x-sql-type": "int"}"#;
    const AB: &str = r#""a": {"x-sql-type": "int"}, "b": {"x-sql-type": "int"}"#;

    fn arranged(files: &[(&str, u32, &str)]) -> Result<BTreeMap<TableName, Versions>, String> {
        let files = files.iter().map(|(file, version, columns)| ((*file).to_owned(), contract(*version, columns)));
        arrange(files).map_err(|error| error.to_string())
    }

    #[test]
    fn the_file_without_a_number_is_in_force() {
        let tables = arranged(&[("dbo.t.v1.json", 1, A), ("dbo.t.json", 3, AB), ("dbo.t.v2.json", 2, A)]).unwrap();
        let versions = &tables[&TableName::new("dbo", "t")];
        assert_eq!((versions.current.version, versions.file.as_str()), (3, "dbo.t.json"));
        assert_eq!(versions.earlier.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(earlier_file(&versions.file, 3), "dbo.t.v3.json");
        assert_eq!(numbered("dbo.[t.v1].json"), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_remedy() {
        assert!(arranged(&[("a.json", 1, A), ("b.json", 1, A)]).unwrap_err().contains("a.json is a contract for dbo.t too"));
        assert!(arranged(&[("dbo.t.v1.json", 1, A)]).unwrap_err().contains("not there"));
        assert!(arranged(&[("dbo.t.json", 3, A), ("dbo.t.v1.json", 2, A)]).unwrap_err().contains("under a name of another"));
        assert!(arranged(&[("dbo.t.json", 1, A), ("dbo.t.v2.json", 2, AB)]).unwrap_err().contains("not before version 1"));
        assert!(arranged(&[("dbo.t.json", 1, A), ("dbo.t.v1.json", 1, AB)]).unwrap_err().contains("not before version 1"));
    }

    #[test]
    fn a_new_version_that_was_cut_short_is_no_error() {
        let tables = arranged(&[("dbo.t.json", 1, A), ("dbo.t.v1.json", 1, A)]).unwrap();
        assert!(tables[&TableName::new("dbo", "t")].earlier.is_empty());
    }
}
