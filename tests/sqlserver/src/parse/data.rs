//! INSERT, UPDATE, DELETE and the WITH before them.

use sqlparser::ast::{Ident, With};
use sqlparser::tokenizer::Token;
use tds::SqlError;

use super::{Delete, Insert, Kind, Name, Output, Reader, Source, Statement, Update};
use crate::message;

impl Reader<'_> {
    /// WITH may begin a SELECT or any DML: the common table expressions are read as those of a query, the statement behind them here.
    pub(super) fn with(&mut self) -> Result<Kind, SqlError> {
        let start = self.parser.get_current_index();
        let query_start = self.find_statement_behind_with()?;
        if query_start == "SELECT" {
            let _ = start;
            return Ok(Kind::Query(self.query()?));
        }
        self.expect("WITH")?;
        let mut cte_tables = vec![self.parser.parse_cte().map_err(|e| self.fault(&e))?];
        while self.punctuation(&Token::Comma) {
            cte_tables.push(self.parser.parse_cte().map_err(|e| self.fault(&e))?);
        }
        let with =
            With { with_token: sqlparser::ast::helpers::attached_token::AttachedToken::empty(), recursive: true, cte_tables };
        match query_start.as_str() {
            "INSERT" => self.insert(Some(with)),
            "UPDATE" => self.update(Some(with)),
            "DELETE" => self.delete(Some(with)),
            _ => self.unexpected(),
        }
    }

    /// The first statement word outside parentheses after WITH.
    fn find_statement_behind_with(&self) -> Result<String, SqlError> {
        let (mut n, mut depth) = (0, 0);
        loop {
            match &self.parser.peek_nth_token_ref(n).token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                Token::EOF => return self.unexpected(),
                Token::Word(w) if depth == 0 && w.quote_style.is_none() => {
                    let word = w.value.to_ascii_uppercase();
                    if matches!(word.as_str(), "SELECT" | "INSERT" | "UPDATE" | "DELETE" | "MERGE") {
                        return Ok(word);
                    }
                }
                _ => {}
            }
            n += 1;
        }
    }

    fn top(&mut self) -> Result<Option<sqlparser::ast::Expr>, SqlError> {
        if !self.take("TOP") {
            return Ok(None);
        }
        if self.punctuation(&Token::LParen) {
            let e = self.expression()?;
            self.expect_token(&Token::RParen)?;
            return Ok(Some(e));
        }
        Ok(Some(self.expression()?))
    }

    pub(super) fn hints(&mut self) -> Result<(), SqlError> {
        if self.at("WITH") && self.parser.peek_nth_token(1).token == Token::LParen {
            self.parser.advance_token();
            self.skip_parentheses()?;
        }
        Ok(())
    }

    fn output(&mut self) -> Result<Option<Output>, SqlError> {
        if !self.take("OUTPUT") {
            return Ok(None);
        }
        let mut items = vec![self.parser.parse_select_item().map_err(|e| self.fault(&e))?];
        while self.punctuation(&Token::Comma) {
            items.push(self.parser.parse_select_item().map_err(|e| self.fault(&e))?);
        }
        let into = if self.take("INTO") {
            let name = self.name()?;
            let columns = if self.peek() == Token::LParen { self.columns()? } else { Vec::new() };
            Some((name, columns))
        } else {
            None
        };
        Ok(Some(Output { items, into }))
    }

    pub(super) fn insert(&mut self, with: Option<With>) -> Result<Kind, SqlError> {
        self.expect("INSERT")?;
        self.top()?;
        self.take("INTO");
        let target = self.name()?;
        self.hints()?;
        let has_columns = self.peek() == Token::LParen && !matches!(self.word_at(1).as_deref(), Some("SELECT"));
        let columns = if has_columns { self.columns()? } else { Vec::new() };
        let output = self.output()?;
        let source = if self.take("VALUES") {
            Source::Values(self.rows()?)
        } else if self.take_all(&["DEFAULT", "VALUES"]) {
            Source::DefaultValues
        } else if self.at("EXEC") || self.at("EXECUTE") {
            let line = self.line();
            let kind = self.execute()?;
            Source::Execute(Box::new(Statement {
                kind,
                line,
                id: super::NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            }))
        } else if self.at("SELECT") || self.at("WITH") || self.peek() == Token::LParen {
            Source::Query(self.query()?)
        } else {
            return self.unexpected();
        };
        Ok(Kind::Insert(Box::new(Insert { target, columns, output, source, with })))
    }

    pub(super) fn rows(&mut self) -> Result<Vec<Vec<Option<sqlparser::ast::Expr>>>, SqlError> {
        let mut rows = Vec::new();
        loop {
            self.expect_token(&Token::LParen)?;
            let mut row = Vec::new();
            loop {
                if self.at("DEFAULT") {
                    self.parser.advance_token();
                    row.push(None);
                } else {
                    row.push(Some(self.expression()?));
                }
                if !self.punctuation(&Token::Comma) {
                    break;
                }
            }
            self.expect_token(&Token::RParen)?;
            rows.push(row);
            if !self.punctuation(&Token::Comma) {
                return Ok(rows);
            }
        }
    }

    fn read_from(&mut self) -> Result<Vec<sqlparser::ast::TableWithJoins>, SqlError> {
        let mut from = vec![self.parser.parse_table_and_joins().map_err(|e| self.fault(&e))?];
        while self.punctuation(&Token::Comma) {
            from.push(self.parser.parse_table_and_joins().map_err(|e| self.fault(&e))?);
        }
        Ok(from)
    }

    /// What follows SET: columns, and what they become.
    pub(super) fn assignments(&mut self) -> Result<Vec<(String, Option<sqlparser::ast::Expr>)>, SqlError> {
        let mut set = Vec::new();
        loop {
            if self.word().is_some_and(|word| word.starts_with('@')) {
                return Err(message::unsupported("Assigning variables in UPDATE"));
            }
            let name: Name = self.name()?;
            if self.peek() == Token::Eq && self.word_at(1).as_deref() == Some("DEFAULT") {
                self.parser.advance_token();
                self.parser.advance_token();
                set.push((name.object, None));
            } else {
                let value = self.assigned(Ident::with_quote('[', &name.object))?;
                set.push((name.object, Some(value)));
            }
            if !self.punctuation(&Token::Comma) {
                return Ok(set);
            }
        }
    }

    pub(super) fn update(&mut self, with: Option<With>) -> Result<Kind, SqlError> {
        self.expect("UPDATE")?;
        let top = self.top()?;
        let target = self.name()?;
        self.hints()?;
        self.expect("SET")?;
        let set = self.assignments()?;
        let output = self.output()?;
        let from = if self.take("FROM") { self.read_from()? } else { Vec::new() };
        let condition = if self.take("WHERE") { Some(self.expression()?) } else { None };
        Ok(Kind::Update(Box::new(Update { target, top, set, output, from, condition, with })))
    }

    pub(super) fn delete(&mut self, with: Option<With>) -> Result<Kind, SqlError> {
        self.expect("DELETE")?;
        let top = self.top()?;
        self.take("FROM");
        let target = self.name()?;
        self.hints()?;
        let output = self.output()?;
        let from = if self.take("FROM") { self.read_from()? } else { Vec::new() };
        let condition = if self.take("WHERE") { Some(self.expression()?) } else { None };
        Ok(Kind::Delete(Box::new(Delete { target, top, output, from, condition, with })))
    }
}
