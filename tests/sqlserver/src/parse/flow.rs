//! Which statement stands next.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token;
use tds::SqlError;

use super::{Droppable, Kind, Reader};
use crate::message;

/// Whether the word begins a statement: where statements that are not read word by word end.
pub(super) fn starts_statement(word: &str) -> bool {
    matches!(
        word.to_ascii_uppercase().as_str(),
        "SELECT"
            | "INSERT"
            | "UPDATE"
            | "DELETE"
            | "MERGE"
            | "WITH"
            | "DECLARE"
            | "SET"
            | "IF"
            | "WHILE"
            | "BEGIN"
            | "END"
            | "PRINT"
            | "RAISERROR"
            | "THROW"
            | "EXEC"
            | "EXECUTE"
            | "USE"
            | "COMMIT"
            | "ROLLBACK"
            | "SAVE"
            | "TRUNCATE"
            | "CREATE"
            | "ALTER"
            | "DROP"
            | "GRANT"
            | "DENY"
            | "REVOKE"
            | "ELSE"
            | "RETURN"
            | "BREAK"
            | "CONTINUE"
            | "WAITFOR"
            | "CHECKPOINT"
    )
}

impl Reader<'_> {
    pub(super) fn kind(&mut self) -> Result<Kind, SqlError> {
        if self.peek() == Token::LParen {
            return Ok(Kind::Query(self.query()?));
        }
        let Some(word) = self.word() else {
            // A name at the start of a batch is a procedure called without EXEC.
            return if matches!(self.peek(), Token::Word(_)) { self.procedure() } else { self.unexpected() };
        };
        match word.as_str() {
            "SELECT" => Ok(Kind::Query(self.query()?)),
            "WITH" => self.with(),
            "INSERT" => self.insert(None),
            "UPDATE" if self.at_second("STATISTICS") => self.nothing(),
            "UPDATE" => self.update(None),
            "DELETE" => self.delete(None),
            "DECLARE" => self.declare(),
            "SET" => self.set(),
            "IF" => self.condition(),
            "WHILE" => {
                self.expect("WHILE")?;
                let condition = self.expression()?;
                self.skip_semicolons();
                Ok(Kind::While { condition, body: Box::new(self.statement()?) })
            }
            "BEGIN" => self.begin(),
            "BREAK" => self.single(Kind::Break),
            "CONTINUE" => self.single(Kind::Continue),
            "RETURN" => self.return_(),
            "PRINT" => {
                self.expect("PRINT")?;
                Ok(Kind::Print(self.expression()?))
            }
            "RAISERROR" => self.raiserror(),
            "THROW" => self.throw(),
            "EXEC" | "EXECUTE" => self.execute(),
            "USE" => {
                self.expect("USE")?;
                Ok(Kind::Use(self.identifier()?))
            }
            "COMMIT" => self.commit(),
            "ROLLBACK" => self.rollback(),
            "SAVE" => {
                self.expect("SAVE")?;
                if !self.take("TRAN") {
                    self.expect("TRANSACTION")?;
                }
                Ok(Kind::Save(self.identifier()?))
            }
            "TRUNCATE" => {
                self.expect("TRUNCATE")?;
                self.expect("TABLE")?;
                Ok(Kind::Truncate(self.name()?))
            }
            "CREATE" => self.create(),
            "ALTER" => self.alter(),
            "DROP" => self.drop_(),
            "GRANT" | "DENY" | "REVOKE" => self.permission(),
            "WAITFOR" => {
                self.expect("WAITFOR")?;
                self.expect("DELAY")?;
                Ok(Kind::WaitFor(self.expression()?))
            }
            "KILL" => {
                self.expect("KILL")?;
                let e = self.expression()?;
                Ok(Kind::Kill(e.to_string().parse().map_err(|_| message::syntax(&e.to_string(), self.line()))?))
            }
            "CHECKPOINT" | "DBCC" | "RECONFIGURE" => self.nothing(),
            "MERGE" => self.merge(),
            "BULK" | "OPEN" | "FETCH" | "CLOSE" | "DEALLOCATE" | "BACKUP" | "RESTORE" | "GOTO" => {
                Err(message::unsupported(&word))
            }
            _ if self.keyword() == Keyword::NoKeyword || word.starts_with("SP_") || word.starts_with("XP_") || word == "SYS" => {
                self.procedure()
            }
            _ => self.unexpected(),
        }
    }

    fn single(&mut self, kind: Kind) -> Result<Kind, SqlError> {
        self.parser.advance_token();
        Ok(kind)
    }

    fn nothing(&mut self) -> Result<Kind, SqlError> {
        self.parser.advance_token();
        self.rest_of_statement();
        Ok(Kind::Nothing)
    }

    fn create(&mut self) -> Result<Kind, SqlError> {
        self.expect("CREATE")?;
        let replace = self.take_all(&["OR", "ALTER"]);
        let Some(word) = self.word() else { return self.unexpected() };
        match word.as_str() {
            "TABLE" => self.create_table(),
            "UNIQUE" | "CLUSTERED" | "NONCLUSTERED" | "INDEX" => self.create_index(),
            "SCHEMA" => {
                self.expect("SCHEMA")?;
                let name = self.identifier()?;
                if self.take("AUTHORIZATION") {
                    self.identifier()?;
                }
                Ok(Kind::CreateSchema(name))
            }
            "TYPE" => {
                self.expect("TYPE")?;
                let name = self.name()?;
                if !self.take("FROM") {
                    return Err(message::unsupported("CREATE TYPE without FROM"));
                }
                let base = self.declared()?;
                let refused = self.take_all(&["NOT", "NULL"]);
                self.take("NULL");
                Ok(Kind::CreateType { name, base, nullable: !refused })
            }
            "VIEW" => self.create_view(replace),
            "DATABASE" => {
                self.expect("DATABASE")?;
                let name = self.identifier()?;
                self.rest_of_statement();
                Ok(Kind::CreateDatabase(name))
            }
            "LOGIN" | "USER" | "ROLE" => self.create_principal(&word),
            "STATISTICS" => self.nothing(),
            _ if matches!(
                word.as_str(),
                "PROCEDURE" | "PROC" | "FUNCTION" | "TRIGGER" | "SEQUENCE" | "SYNONYM" | "COLUMNSTORE"
            ) =>
            {
                Err(message::unsupported(&format!("CREATE {word}")))
            }
            _ => self.unexpected(),
        }
    }

    fn alter(&mut self) -> Result<Kind, SqlError> {
        self.expect("ALTER")?;
        let Some(word) = self.word() else { return self.unexpected() };
        match word.as_str() {
            "TABLE" => self.alter_table(),
            "DATABASE" => {
                self.expect("DATABASE")?;
                let name = if self.take("CURRENT") { None } else { Some(self.identifier()?) };
                self.expect("SET")?;
                Ok(Kind::AlterDatabase { name, words: self.rest_of_options() })
            }
            "VIEW" => self.create_view(true),
            "ROLE" | "SERVER" | "LOGIN" | "USER" | "AUTHORIZATION" => self.alter_principal(),
            "INDEX" => self.nothing(),
            _ => Err(message::unsupported(&format!("ALTER {word}"))),
        }
    }

    /// Options of ALTER DATABASE may carry WITH ROLLBACK IMMEDIATE, whose words start statements elsewhere.
    fn rest_of_options(&mut self) -> Vec<String> {
        let mut words = self.rest_of_statement();
        if self.at("WITH") && (self.at_second("ROLLBACK") || self.at_second("NO_WAIT")) {
            self.parser.advance_token();
            self.parser.advance_token();
            words.extend(self.rest_of_statement());
        }
        words
    }

    fn drop_(&mut self) -> Result<Kind, SqlError> {
        self.expect("DROP")?;
        let Some(word) = self.word() else { return self.unexpected() };
        self.parser.advance_token();
        let if_exists = self.take_all(&["IF", "EXISTS"]);
        let what = match word.as_str() {
            "TABLE" => Droppable::Table,
            "VIEW" => Droppable::View,
            "SCHEMA" => Droppable::Schema,
            "TYPE" => Droppable::Type,
            "LOGIN" => Droppable::Login,
            "USER" => Droppable::User,
            "ROLE" => Droppable::Role,
            "DATABASE" => {
                let names = self.names()?.into_iter().map(|n| n.object).collect();
                return Ok(Kind::DropDatabase { names, if_exists });
            }
            "INDEX" => {
                let mut name = self.name()?;
                if self.take("ON") {
                    let table = self.name()?;
                    return Ok(Kind::DropIndex { table, index: name.object, if_exists });
                }
                // The old form: DROP INDEX dbo.t.ix
                let index = std::mem::take(&mut name.object);
                let table =
                    super::Name { object: name.schema.take().unwrap_or_default(), schema: name.database.take(), database: None };
                return Ok(Kind::DropIndex { table, index, if_exists });
            }
            _ => return Err(message::unsupported(&format!("DROP {word}"))),
        };
        Ok(Kind::Drop { what, names: self.names()?, if_exists })
    }
}
