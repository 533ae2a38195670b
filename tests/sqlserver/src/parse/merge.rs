//! MERGE, as the statements that come to the same: the rows to insert are read first, then rows are deleted and updated, and at last the rows are inserted.
//!
//! The order matters. Which source rows are without a match is decided before anything changes, as SQL Server does; a deletion takes no other row's match away, so an update may follow it; what a
//! clause takes, later clauses of its kind leave alone by its condition, and not by what it did. A guess is what becomes of a row that a `WHEN NOT MATCHED BY SOURCE` update makes match.

use sqlparser::ast::Expr;
use sqlparser::tokenizer::Token;
use tds::SqlError;

use super::{Insert, Kind, Name, Reader, Source, Statement, script};
use crate::message;

#[derive(Debug, Clone)]
pub(crate) struct Merge {
    pub(crate) changes: Vec<Change>,
    /// The rows to insert, and where.
    pub(crate) inserts: Option<(Statement, Insert)>,
}

/// An UPDATE or DELETE.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) statement: Statement,
    /// Counts the pairs of rows that it works on: more than there are rows is error 8672.
    pub(crate) pairs: Option<Statement>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Matched,
    NotMatched,
    NotMatchedBySource,
}

enum Action {
    Delete,
    /// `a = 1, b = 2`.
    Update(String),
    Insert {
        columns: Vec<String>,
        values: Vec<Expr>,
    },
}

struct Clause {
    when: When,
    condition: Option<Expr>,
    action: Action,
}

/// The parts of a MERGE, as text.
struct Parts {
    target: Name,
    /// What the target is called in the statement.
    exposed: String,
    source: String,
    on: String,
}

impl Reader<'_> {
    pub(super) fn merge(&mut self) -> Result<Kind, SqlError> {
        self.expect("MERGE")?;
        if self.at("TOP") {
            return Err(message::unsupported("TOP in MERGE"));
        }
        self.take("INTO");
        let target = self.name()?;
        self.hints()?;
        let named = self.take("AS") || !self.at("USING");
        let exposed = if named { quoted(&self.identifier()?) } else { full(&target) };
        self.expect("USING")?;
        let source = self.parser.parse_table_factor().map_err(|e| self.fault(&e))?.to_string();
        self.expect("ON")?;
        let on = self.expression()?.to_string();
        let mut clauses = Vec::new();
        while self.take("WHEN") {
            clauses.push(self.clause()?);
        }
        if clauses.is_empty() {
            return self.unexpected();
        }
        if self.at("OUTPUT") {
            return Err(message::unsupported("OUTPUT of MERGE"));
        }
        if self.peek() != Token::SemiColon {
            return Err(message::error(10_713, 15, "A MERGE statement must be terminated by a semi-colon (;).".into()));
        }
        let merge = Parts { target, exposed, source, on }.statements(&clauses)?;
        Ok(Kind::Merge(Box::new(merge)))
    }

    fn clause(&mut self) -> Result<Clause, SqlError> {
        let when = if self.take_all(&["NOT", "MATCHED"]) {
            match (self.take_all(&["BY", "SOURCE"]), self.take_all(&["BY", "TARGET"])) {
                (true, _) => When::NotMatchedBySource,
                (false, _) => When::NotMatched,
            }
        } else {
            self.expect("MATCHED")?;
            When::Matched
        };
        let condition = if self.take("AND") { Some(self.expression()?) } else { None };
        self.expect("THEN")?;
        let action = match (when, self.word().as_deref()) {
            (When::NotMatched, Some("INSERT")) => self.inserted()?,
            (When::Matched | When::NotMatchedBySource, Some("DELETE")) => {
                self.parser.advance_token();
                Action::Delete
            }
            (When::Matched | When::NotMatchedBySource, Some("UPDATE")) => {
                self.parser.advance_token();
                self.expect("SET")?;
                let mut set = Vec::new();
                for (column, value) in self.assignments()? {
                    let value = value.map_or_else(|| "DEFAULT".to_string(), |value| value.to_string());
                    set.push(format!("{} = {value}", quoted(&column)));
                }
                Action::Update(set.join(", "))
            }
            _ => return self.unexpected(),
        };
        Ok(Clause { when, condition, action })
    }

    fn inserted(&mut self) -> Result<Action, SqlError> {
        self.expect("INSERT")?;
        let columns = if self.peek() == Token::LParen { self.columns()? } else { Vec::new() };
        if !self.take("VALUES") {
            return Err(message::unsupported("INSERT without VALUES in MERGE"));
        }
        let row = self.rows()?.into_iter().next().unwrap_or_default();
        let values: Option<Vec<Expr>> = row.into_iter().collect();
        let values = values.ok_or_else(|| message::unsupported("DEFAULT among the VALUES of MERGE"))?;
        Ok(Action::Insert { columns, values })
    }
}

impl Parts {
    fn statements(&self, clauses: &[Clause]) -> Result<Merge, SqlError> {
        let (mut deletes, mut updates, mut inserts) = (Vec::new(), Vec::new(), None);
        for (place, clause) in clauses.iter().enumerate() {
            let condition = self.condition(clauses, place);
            match &clause.action {
                Action::Delete => deletes.push(self.change(clause.when, &format!("DELETE {}", self.exposed), &condition)?),
                Action::Update(set) => {
                    updates.push(self.change(clause.when, &format!("UPDATE {} SET {set}", self.exposed), &condition)?);
                }
                Action::Insert { columns, values } => inserts = Some(self.insert(columns, values, &condition)?),
            }
        }
        deletes.extend(updates);
        Ok(Merge { changes: deletes, inserts })
    }

    /// The condition of a clause, and that no earlier one of its kind has taken the row.
    fn condition(&self, clauses: &[Clause], place: usize) -> String {
        let clause = &clauses[place];
        let taken = clauses[..place].iter().filter(|earlier| earlier.when == clause.when);
        // A condition that is unknown does not take the row.
        let taken = taken.map(|earlier| match &earlier.condition {
            Some(condition) => format!("CASE WHEN {condition} THEN 1 ELSE 0 END = 0"),
            None => "1 = 0".to_string(),
        });
        let own = clause.condition.iter().map(|condition| format!("({condition})"));
        let none = match clause.when {
            When::Matched => None,
            When::NotMatched => Some(format!("NOT EXISTS (SELECT 1 AS one FROM {} WHERE {})", self.target(), self.on)),
            When::NotMatchedBySource => Some(format!("NOT EXISTS (SELECT 1 AS one FROM {} WHERE {})", self.source, self.on)),
        };
        let all: Vec<String> = none.into_iter().chain(own).chain(taken).collect();
        if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) }
    }

    fn target(&self) -> String {
        let name = full(&self.target);
        if self.exposed == name { name } else { format!("{name} AS {}", self.exposed) }
    }

    fn change(&self, when: When, what: &str, condition: &str) -> Result<Change, SqlError> {
        if when == When::NotMatchedBySource {
            let statement = one(&format!("{what} FROM {}{condition}", self.target()))?;
            return Ok(Change { statement, pairs: None });
        }
        let from = format!("FROM {} INNER JOIN {} ON {}{condition}", self.target(), self.source, self.on);
        let pairs = one(&format!("SELECT COUNT_BIG(*) AS pairs {from}"))?;
        Ok(Change { statement: one(&format!("{what} {from}"))?, pairs: Some(pairs) })
    }

    fn insert(&self, columns: &[String], values: &[Expr], condition: &str) -> Result<(Statement, Insert), SqlError> {
        let list: Vec<String> = values.iter().enumerate().map(|(n, value)| format!("{value} AS v{n}")).collect();
        let rows = one(&format!("SELECT {} FROM {}{condition}", list.join(", "), self.source))?;
        let (target, columns) = (self.target.clone(), columns.to_vec());
        Ok((rows, Insert { target, columns, output: None, source: Source::DefaultValues, with: None }))
    }
}

fn one(text: &str) -> Result<Statement, SqlError> {
    script(text)?.into_iter().next().ok_or_else(|| message::syntax("MERGE", 1))
}

fn quoted(name: &str) -> String {
    format!("[{}]", name.replace(']', "]]"))
}

fn full(name: &Name) -> String {
    let parts = [name.database.as_ref(), name.schema.as_ref(), Some(&name.object)];
    parts.into_iter().flatten().map(|part| quoted(part)).collect::<Vec<_>>().join(".")
}
