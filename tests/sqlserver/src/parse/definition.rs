//! CREATE and ALTER TABLE, indexes, views.

use sqlparser::tokenizer::Token;
use tds::SqlError;

use super::{AlterTable, ColumnDefinition, Constraint, ConstraintKind, IndexDefinition, Kind, Name, Reader, TableDefinition};
use crate::message;

impl Reader<'_> {
    pub(super) fn create_table(&mut self) -> Result<Kind, SqlError> {
        self.expect("TABLE")?;
        let name = self.name()?;
        let mut table = self.table_body()?;
        table.name = name;
        self.storage_options()?;
        Ok(Kind::CreateTable(Box::new(table)))
    }

    /// `ON [PRIMARY] TEXTIMAGE_ON [PRIMARY] WITH (…)`
    fn storage_options(&mut self) -> Result<(), SqlError> {
        loop {
            if self.at("ON") && !self.at_second("DELETE") && !self.at_second("UPDATE")
                || self.at("TEXTIMAGE_ON")
                || self.at("FILESTREAM_ON")
            {
                self.parser.advance_token();
                self.identifier()?;
                if self.peek() == Token::LParen {
                    self.skip_parentheses()?;
                }
            } else if self.at("WITH") && self.parser.peek_nth_token(1).token == Token::LParen {
                self.parser.advance_token();
                self.skip_parentheses()?;
            } else {
                return Ok(());
            }
        }
    }

    pub(super) fn table_body(&mut self) -> Result<TableDefinition, SqlError> {
        let mut table =
            TableDefinition { name: Name::default(), columns: Vec::new(), constraints: Vec::new(), indexes: Vec::new() };
        self.expect_token(&Token::LParen)?;
        loop {
            if self.peek() == Token::RParen {
                break;
            }
            if self.at("CONSTRAINT") || self.at_constraint() {
                table.constraints.push(self.constraint(None)?);
            } else if self.at("INDEX") {
                table.indexes.push(self.inline_index()?);
            } else {
                let column = self.column(&mut table.constraints)?;
                table.columns.push(column);
            }
            if !self.punctuation(&Token::Comma) {
                break;
            }
        }
        self.expect_token(&Token::RParen)?;
        Ok(table)
    }

    fn inline_index(&mut self) -> Result<IndexDefinition, SqlError> {
        self.expect("INDEX")?;
        let name = self.identifier()?;
        let unique = self.take("UNIQUE");
        let clustered = self.take("CLUSTERED");
        self.take("NONCLUSTERED");
        let columns = self.index_columns()?;
        self.storage_options()?;
        Ok(IndexDefinition { name, table: Name::default(), unique, clustered, columns, included: Vec::new(), filter: None })
    }

    fn at_constraint(&self) -> bool {
        (self.at("PRIMARY") && self.at_second("KEY"))
            || (self.at("FOREIGN") && self.at_second("KEY"))
            || ((self.at("UNIQUE") || self.at("CHECK")) && self.starts_list())
    }

    fn starts_list(&self) -> bool {
        matches!(self.parser.peek_nth_token(1).token, Token::LParen)
            || matches!(self.word_at(1).as_deref(), Some("CLUSTERED" | "NONCLUSTERED" | "NOT"))
    }

    fn parenthesised(&mut self) -> Result<String, SqlError> {
        let start = self.parser.peek_token().span.start;
        self.skip_parentheses()?;
        Ok(self.text_from_to(start))
    }

    /// The text from `start` to the end of the token read last.
    fn text_from_to(&self, start: sqlparser::tokenizer::Location) -> String {
        let from = super::dialect::offset(self.sql, start);
        let to = super::dialect::offset(self.sql, self.parser.get_current_token().span.end);
        self.sql.get(from..to).unwrap_or_default().trim().to_string()
    }

    fn clustered(&mut self, default: bool) -> bool {
        if self.take("CLUSTERED") {
            true
        } else if self.take("NONCLUSTERED") {
            false
        } else {
            default
        }
    }

    fn index_columns(&mut self) -> Result<Vec<(String, bool)>, SqlError> {
        self.expect_token(&Token::LParen)?;
        let mut columns = Vec::new();
        loop {
            let name = self.identifier()?;
            let descending = self.take("DESC");
            self.take("ASC");
            columns.push((name, descending));
            if !self.punctuation(&Token::Comma) {
                break;
            }
        }
        self.expect_token(&Token::RParen)?;
        Ok(columns)
    }

    /// A table constraint, or a column's when `column` is given.
    fn constraint(&mut self, column: Option<&str>) -> Result<Constraint, SqlError> {
        let name = if self.take("CONSTRAINT") { Some(self.identifier()?) } else { None };
        let own = |reader: &mut Self| -> Result<Vec<(String, bool)>, SqlError> {
            match column {
                Some(c) if reader.peek() != Token::LParen => Ok(vec![(c.to_string(), false)]),
                _ => reader.index_columns(),
            }
        };
        let kind = if self.take_all(&["PRIMARY", "KEY"]) {
            let clustered = self.clustered(true);
            let columns = own(self)?;
            self.key_options()?;
            ConstraintKind::PrimaryKey { columns, clustered }
        } else if self.take("UNIQUE") {
            let clustered = self.clustered(false);
            let columns = own(self)?;
            self.key_options()?;
            ConstraintKind::Unique { columns, clustered }
        } else if self.at("FOREIGN") || self.at("REFERENCES") {
            let columns = if self.take_all(&["FOREIGN", "KEY"]) && self.peek() == Token::LParen {
                self.columns()?
            } else {
                column.map(str::to_string).into_iter().collect()
            };
            self.references(columns)?
        } else if self.take("CHECK") {
            self.take_all(&["NOT", "FOR", "REPLICATION"]);
            ConstraintKind::Check(self.parenthesised()?)
        } else if self.take("DEFAULT") {
            let expression = self.default_text()?;
            self.expect("FOR")?;
            let column = self.identifier()?;
            self.take_all(&["WITH", "VALUES"]);
            ConstraintKind::Default { expression, column }
        } else {
            return self.unexpected();
        };
        Ok(Constraint { name, kind })
    }

    fn key_options(&mut self) -> Result<(), SqlError> {
        self.storage_options()
    }

    fn references(&mut self, columns: Vec<String>) -> Result<ConstraintKind, SqlError> {
        self.expect("REFERENCES")?;
        let table = self.name()?;
        let referenced = if self.peek() == Token::LParen { self.columns()? } else { Vec::new() };
        let (mut on_delete, mut on_update) = (0, 0);
        while self.at("ON") && (self.at_second("DELETE") || self.at_second("UPDATE")) {
            self.parser.advance_token();
            let delete = self.take("DELETE");
            if !delete {
                self.expect("UPDATE")?;
            }
            let action = if self.take_all(&["NO", "ACTION"]) {
                0
            } else if self.take("CASCADE") {
                1
            } else if self.take_all(&["SET", "NULL"]) {
                2
            } else if self.take_all(&["SET", "DEFAULT"]) {
                3
            } else {
                return self.unexpected();
            };
            if delete { on_delete = action } else { on_update = action }
        }
        self.take_all(&["NOT", "FOR", "REPLICATION"]);
        Ok(ConstraintKind::ForeignKey { columns, table, referenced, on_delete, on_update })
    }

    /// A default's expression: up to a comma, a closing parenthesis or a column option.
    fn default_text(&mut self) -> Result<String, SqlError> {
        let start = self.parser.peek_token().span.start;
        if self.peek() == Token::LParen {
            self.skip_parentheses()?;
        } else {
            // A prefix expression only: `DEFAULT 0 NOT NULL` must not read NOT.
            self.punctuation(&Token::Minus);
            self.parser.advance_token();
            if self.peek() == Token::LParen {
                self.skip_parentheses()?;
            }
        }
        Ok(self.text_from_to(start))
    }

    pub(super) fn column(&mut self, constraints: &mut Vec<Constraint>) -> Result<ColumnDefinition, SqlError> {
        let name = self.identifier()?;
        let mut column = ColumnDefinition {
            name,
            what: None,
            nullable: None,
            identity: None,
            default: None,
            computed: None,
            collation: None,
            rowguid: false,
        };
        if self.take("AS") {
            let text = self.parenthesised()?;
            let persisted = self.take("PERSISTED");
            if persisted && self.take_all(&["NOT", "NULL"]) {
                column.nullable = Some(false);
            }
            column.computed = Some((text, persisted));
        } else if self.at("TIMESTAMP") && !matches!(self.parser.peek_nth_token(1).token, Token::LParen)
            || !matches!(self.peek(), Token::Comma | Token::RParen)
        {
            column.what = Some(self.declared()?);
        } else if column.name.eq_ignore_ascii_case("timestamp") {
            // `timestamp` alone declares a column of that name and type.
            column.what = Some(crate::types::parse("timestamp", 1)?);
        } else {
            return self.unexpected();
        }
        self.column_options(&mut column, constraints)?;
        Ok(column)
    }

    fn column_options(&mut self, column: &mut ColumnDefinition, constraints: &mut Vec<Constraint>) -> Result<(), SqlError> {
        loop {
            if self.take_all(&["NOT", "NULL"]) {
                column.nullable = Some(false);
            } else if self.take("NULL") {
                column.nullable = Some(true);
            } else if self.take("COLLATE") {
                column.collation = Some(self.identifier()?);
            } else if self.take("IDENTITY") {
                column.identity = Some(self.seed()?);
            } else if self.take_all(&["NOT", "FOR", "REPLICATION"]) || self.take("SPARSE") || self.take("HIDDEN") {
            } else if self.take("ROWGUIDCOL") {
                column.rowguid = true;
            } else if self.take("DEFAULT") {
                column.default = Some((None, self.default_text()?));
                self.take_all(&["WITH", "VALUES"]);
            } else if self.at("CONSTRAINT") && self.word_at(2).as_deref() == Some("DEFAULT") {
                self.parser.advance_token();
                let name = self.identifier()?;
                self.expect("DEFAULT")?;
                column.default = Some((Some(name), self.default_text()?));
                self.take_all(&["WITH", "VALUES"]);
            } else if self.at("CONSTRAINT")
                || self.at("PRIMARY")
                || self.at("UNIQUE")
                || self.at("FOREIGN")
                || self.at("REFERENCES")
                || self.at("CHECK")
            {
                let name = column.name.clone();
                constraints.push(self.constraint(Some(&name))?);
            } else if self.at("ON") || self.at("WITH") && matches!(self.parser.peek_nth_token(1).token, Token::LParen) {
                self.storage_options()?;
            } else {
                return Ok(());
            }
        }
    }

    fn seed(&mut self) -> Result<(i64, i64), SqlError> {
        if !self.punctuation(&Token::LParen) {
            return Ok((1, 1));
        }
        let seed = self.integer()?;
        self.expect_token(&Token::Comma)?;
        let increment = self.integer()?;
        self.expect_token(&Token::RParen)?;
        Ok((seed, increment))
    }

    pub(super) fn alter_table(&mut self) -> Result<Kind, SqlError> {
        self.expect("TABLE")?;
        let table = self.name()?;
        if self.at("WITH") && (self.at_second("CHECK") || self.at_second("NOCHECK")) {
            self.parser.advance_token();
            self.parser.advance_token();
        }
        let change = if self.take("ADD") {
            self.alter_add()?
        } else if self.take("DROP") {
            self.alter_drop()?
        } else if self.take_all(&["ALTER", "COLUMN"]) {
            let mut constraints = Vec::new();
            AlterTable::AlterColumn(self.column(&mut constraints)?)
        } else if self.at("CHECK")
            || self.at("NOCHECK")
            || self.at("ENABLE")
            || self.at("DISABLE")
            || self.at("SET")
            || self.at("REBUILD")
        {
            self.parser.advance_token();
            self.rest_of_statement();
            AlterTable::Nothing
        } else {
            return self.unexpected();
        };
        Ok(Kind::AlterTable { table, change: Box::new(change) })
    }

    fn alter_add(&mut self) -> Result<AlterTable, SqlError> {
        let (mut columns, mut constraints) = (Vec::new(), Vec::new());
        loop {
            if self.at("CONSTRAINT") || self.at_constraint() || self.at("DEFAULT") {
                constraints.push(self.constraint(None)?);
            } else {
                self.take("COLUMN");
                columns.push(self.column(&mut constraints)?);
            }
            if !self.punctuation(&Token::Comma) {
                return Ok(AlterTable::Add { columns, constraints });
            }
        }
    }

    fn alter_drop(&mut self) -> Result<AlterTable, SqlError> {
        let columns = self.take("COLUMN");
        if !columns {
            self.take("CONSTRAINT");
        }
        let if_exists = self.take_all(&["IF", "EXISTS"]);
        let mut names = vec![self.identifier()?];
        while self.punctuation(&Token::Comma) {
            names.push(self.identifier()?);
        }
        Ok(if columns { AlterTable::DropColumns { names, if_exists } } else { AlterTable::DropConstraints { names, if_exists } })
    }

    pub(super) fn create_index(&mut self) -> Result<Kind, SqlError> {
        let unique = self.take("UNIQUE");
        let clustered = self.clustered(false);
        self.expect("INDEX")?;
        let name = self.identifier()?;
        self.expect("ON")?;
        let table = self.name()?;
        let columns = self.index_columns()?;
        let included = if self.take("INCLUDE") { self.columns()? } else { Vec::new() };
        let filter = if self.take("WHERE") {
            let start = self.parser.peek_token().span.start;
            self.expression()?;
            Some(self.text_from_to(start))
        } else {
            None
        };
        self.storage_options()?;
        Ok(Kind::CreateIndex(Box::new(IndexDefinition { name, table, unique, clustered, columns, included, filter })))
    }

    pub(super) fn create_view(&mut self, replace: bool) -> Result<Kind, SqlError> {
        self.expect("VIEW")?;
        let name = self.name()?;
        let columns = if self.peek() == Token::LParen { self.columns()? } else { Vec::new() };
        if self.take("WITH") {
            // SCHEMABINDING, VIEW_METADATA, ENCRYPTION
            self.identifier()?;
            while self.punctuation(&Token::Comma) {
                self.identifier()?;
            }
        }
        self.expect("AS")?;
        let start = self.parser.peek_token().span.start;
        let query = self.query()?;
        let text = self.text_from(start);
        if self.take("WITH") {
            return Err(message::unsupported("WITH CHECK OPTION"));
        }
        Ok(Kind::CreateView { name, text, query, columns, replace })
    }
}
